"""The end of a decoder, decoding one token per sequence: from the residual stream to the next token.

    n = rms_norm(x);  logits = n @ w_head.T;  token = argmax(logits)

Rows of the vocabulary are spread over every CTA of the launch. Each finds the greatest logit of its rows; the pairs of value and index are
few enough for one exchange of all CTAs, and their order does not matter to the result: the lowest index of the greatest value.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import cfdsl as cf
from fusions._tensors import Random

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@cf.fusion
def lm_head(m: cf.ModelConfig, batch: int, *, out: Literal["token", "logits", "both"] = "token") -> cf.Outputs:
    """token (batch,) i32, the greatest logit's index, the lowest of equal ones; logits (batch, vocab) f32, not rounded; or both."""
    if not m.vocab:
        raise cf.TraceError(problem=f"the model {m.name} has no vocabulary size", advice="give its ModelConfig `vocab`")
    x, norm = cf.input("x", (batch, m.hidden)), cf.weight("norm", (m.hidden,))
    w_head = cf.weight("w_head", (m.vocab, m.hidden))

    n = cf.rms_norm(x, norm, m.norm_eps)
    logits = cf.cast(cf.linear(n, w_head, shard="out"), "f32")
    if out == "logits":
        return cf.outputs(logits=logits)
    token = cf.grid_reduce(cf.argmax(logits))
    if out == "token":
        return cf.outputs(token=token)
    return cf.outputs(token=token, logits=logits)


@lm_head.reference
def reference(m: cf.ModelConfig, tensors: dict[str, Tensor], precision: str = "f64", *, out: str = "token") -> dict[str, Tensor]:
    """What the fusion must compute, as one would write it in PyTorch. precision: of everything, "f32" or "f64"; token is i32."""
    import torch
    import torch.nn.functional as F

    dtype = torch.float64 if precision == "f64" else torch.float32
    t = {name: tensors[name].to(dtype) for name in ("x", "norm", "w_head")}
    logits = F.linear(F.rms_norm(t["x"], (m.hidden,), t["norm"], m.norm_eps), t["w_head"])
    top = logits.max(-1, keepdim=True).values
    found = {"token": (logits == top).int().argmax(-1).int(), "logits": logits}  # of equal ones the first: argmax itself promises nothing
    return found if out == "both" else {out: found[out]}


@lm_head.example_inputs
def example_inputs(
    m: cf.ModelConfig,
    batch: int = 1,
    dtype: str = "bf16",
    length: int = 0,
    capacity: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    *,
    out: str = "token",
) -> dict[str, Tensor]:
    """Random tensors for one call, with logits of a deviation of 2; the outputs are -1 (token) and NaN (logits).

    length and capacity mean nothing here.
    """
    import torch

    random = Random(dtype, seed, device)
    t = {"x": random.normal(batch, m.hidden), "norm": random.norm(m.hidden)}
    t["w_head"] = random.normal(m.vocab, m.hidden, scale=2 / math.sqrt(m.hidden))
    if out in ("token", "both"):
        t["token"] = torch.full((batch,), -1, dtype=torch.int32, device=device)
    if out in ("logits", "both"):
        t["logits"] = torch.full((batch, m.vocab), math.nan, dtype=torch.float32, device=device)
    return t


@lm_head.peer("torch.compile", "max-autotune, F.linear, argmax", compile=True)
@lm_head.peer("torch eager", "F.linear, argmax")
def _in_torch(m: cf.ModelConfig, tensors: dict[str, Tensor], length: int, out: str = "token") -> tuple[Any, tuple[Any, ...]]:
    return _outputs, (tensors["x"], tensors["norm"], tensors["w_head"], m.norm_eps, out)


def _outputs(x: Tensor, norm: Tensor, w_head: Tensor, eps: float, out: str) -> Tensor | tuple[Tensor, Tensor]:
    import torch.nn.functional as F

    logits = F.linear(F.rms_norm(x, (x.shape[-1],), norm, eps), w_head)
    if out == "logits":
        return logits.float()
    token = logits.argmax(-1).int()
    return token if out == "token" else (token, logits.float())
