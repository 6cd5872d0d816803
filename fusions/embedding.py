"""The embedding of one token per sequence: a row of a table, by an index that is on the GPU. A tiny kernel that starts a decode step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cfdsl as cf
from fusions._tensors import Random

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@cf.fusion
def embedding(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """y = table[token], row by row. A token out of range is clamped to the table, and flagged (`Kernel.status`)."""
    if not m.vocab:
        raise cf.TraceError(problem=f"the model {m.name} has no vocabulary size", advice="give its ModelConfig `vocab`")
    token = cf.input("token", (batch,), "i32")
    table = cf.weight("table", (m.vocab, m.hidden))
    with cf.clusters(over=batch) as row:
        y = cf.embedding(token[row], table)
    return cf.outputs(y=y)


@embedding.reference
def reference(m: cf.ModelConfig, tensors: dict[str, Tensor], precision: str = "f64") -> dict[str, Tensor]:
    """What the fusion must compute, as one would write it in PyTorch: {"y": (batch, hidden)}. precision: "f32" or "f64"."""
    import torch
    import torch.nn.functional as F

    dtype = torch.float64 if precision == "f64" else torch.float32
    return {"y": F.embedding(tensors["token"].long().clamp(0, m.vocab - 1), tensors["table"]).to(dtype)}


@embedding.example_inputs
def example_inputs(
    m: cf.ModelConfig,
    batch: int = 1,
    dtype: str = "bf16",
    length: int = 0,
    capacity: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    token: int | Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Random tensors for one call: token (random, if it is not given), table, and the output y full of NaN.

    length and capacity mean nothing here.
    """
    import torch

    random = Random(dtype, seed, device)
    given = [token] * batch if isinstance(token, int) else token
    drawn = torch.randint(m.vocab, (batch,), generator=random.generator, device=device, dtype=torch.int32)
    table = random.normal(m.vocab, m.hidden)
    chosen = drawn if given is None else torch.tensor(given, dtype=torch.int32, device=device)
    return {"token": chosen, "table": table, "y": torch.full((batch, m.hidden), float("nan"), dtype=random.kind, device=device)}


@embedding.peer("torch.compile", "max-autotune, F.embedding", compile=True)
@embedding.peer("torch eager", "F.embedding")
def _in_torch(m: cf.ModelConfig, tensors: dict[str, Tensor], length: int) -> tuple[Any, tuple[Any, ...]]:
    import torch.nn.functional as F

    return F.embedding, (tensors["token"], tensors["table"])
