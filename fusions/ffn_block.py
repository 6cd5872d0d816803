"""The feed-forward block of a decoder layer, decoding one token per sequence: from the residual stream to the residual stream.

    n = rms_norm(x);  a = act(n @ w_gate.T) * (n @ w_up.T);  y = x + a @ w_down.T

The work is not tied to heads, so the rows of all three weights are spread over every CTA of the launch. A CTA has the same rows of gate and
up, so its slice of a needs no exchange; one exchange through device memory gives everybody all of a, and each CTA computes whole rows of y.
The load stream goes on through it: rows of down fill the ring while the last rows of gate and up are waited for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import cfdsl as cf
from fusions._tensors import Random

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@cf.fusion
def ffn_block(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """y = x + down(act(gate(n)) * up(n)) with n = rms_norm(x). The activation is the model's: SiLU, or GELU by its tanh approximation."""
    x = cf.input("x", (batch, m.hidden))
    return cf.outputs(y=feed_forward(m, batch, x) + x)


def feed_forward(m: cf.ModelConfig, batch: int, x: cf.Value, norm: str = "norm") -> cf.Value:
    """What the block adds to x (batch, hidden), which everybody has: rows on every CTA, [S(1), S(1)]. norm: the norm weight's name."""
    if not m.intermediate:
        raise cf.TraceError(problem=f"the model {m.name} has no feed-forward size", advice="give its ModelConfig `intermediate`")
    w_gate, w_up = cf.weight("w_gate", (m.intermediate, m.hidden)), cf.weight("w_up", (m.intermediate, m.hidden))
    w_down = cf.weight("w_down", (m.hidden, m.intermediate))

    n = cf.rms_norm(x, cf.weight(norm, (m.hidden,)), m.norm_eps)
    g = cf.linear(n, w_gate, shard="out")
    u = cf.linear(n, w_up, shard="out")
    a = (cf.silu(g) if m.activation == "silu" else cf.gelu(g, tanh=m.activation == "gelu_pytorch_tanh")) * u
    a = cf.grid_gather(a)
    return cf.linear(a, w_down, shard="out")


@ffn_block.reference
def reference(m: cf.ModelConfig, tensors: dict[str, Tensor], precision: str = "f64") -> dict[str, Tensor]:
    """What the block must compute, as one would write it in PyTorch: {"y": (batch, hidden)}, not rounded. precision: "f32" or "f64"."""
    import torch
    import torch.nn.functional as F

    dtype = torch.float64 if precision == "f64" else torch.float32
    t = {name: value.to(dtype) for name, value in tensors.items()}
    n = F.rms_norm(t["x"], (m.hidden,), t["norm"], m.norm_eps)
    g, u = F.linear(n, t["w_gate"]), F.linear(n, t["w_up"])
    return {"y": t["x"] + F.linear(activation(m.activation, g) * u, t["w_down"])}


def activation(name: str, g: Tensor) -> Tensor:
    """A model's activation of a tensor: silu, gelu (exact) or gelu_pytorch_tanh."""
    import torch.nn.functional as F

    return F.silu(g) if name == "silu" else F.gelu(g, approximate="tanh" if name == "gelu_pytorch_tanh" else "none")


@ffn_block.example_inputs
def example_inputs(
    m: cf.ModelConfig,
    batch: int = 1,
    dtype: str = "bf16",
    length: int = 0,
    capacity: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Random tensors for one call, scaled so that the block adds about as much as x has; the output y is full of NaN.

    length and capacity mean nothing here.
    """
    import torch

    random = Random(dtype, seed, device)
    normal = random.normal
    t = {"x": normal(batch, m.hidden)}
    t["norm"] = random.norm(m.hidden)
    t["w_gate"], t["w_up"] = (normal(m.intermediate, m.hidden, scale=1.5 / math.sqrt(m.hidden)) for _ in range(2))
    t["w_down"] = normal(m.hidden, m.intermediate, scale=1 / math.sqrt(m.intermediate))
    t["y"] = torch.full_like(t["x"], math.nan)
    return t


@ffn_block.peer("torch.compile", "max-autotune, one matrix for gate and up", compile=True)
@ffn_block.peer("torch eager", "one matrix for gate and up")
def _with_one_matrix(m: cf.ModelConfig, tensors: dict[str, Tensor], length: int) -> tuple[Any, tuple[Any, ...]]:
    import torch

    both = torch.cat([tensors["w_gate"], tensors["w_up"]])
    return with_both, (tensors["x"], tensors["norm"], both, tensors["w_down"], m.norm_eps, m.activation)


@ffn_block.peer("torch.compile", "max-autotune, gate and up apart", compile=True)
def _with_two_matrices(m: cf.ModelConfig, tensors: dict[str, Tensor], length: int) -> tuple[Any, tuple[Any, ...]]:
    return _apart, (*(tensors[name] for name in ("x", "norm", "w_gate", "w_up", "w_down")), m.norm_eps, m.activation)


def with_both(x: Tensor, norm: Tensor, w_gate_up: Tensor, w_down: Tensor, eps: float, act: str) -> Tensor:
    """The block in torch, with one matrix (2 intermediate, hidden) for gate and up: a peer."""
    import torch.nn.functional as F

    g, u = F.linear(F.rms_norm(x, (x.shape[-1],), norm, eps), w_gate_up).chunk(2, -1)
    return x + F.linear(activation(act, g) * u, w_down)


def _apart(x: Tensor, norm: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, eps: float, act: str) -> Tensor:
    import torch.nn.functional as F

    n = F.rms_norm(x, (x.shape[-1],), norm, eps)
    return x + F.linear(activation(act, F.linear(n, w_gate)) * F.linear(n, w_up), w_down)
