"""RMSNorm with every row spread over a cluster: one exchange of one number per row. The smallest fusion that needs a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cfdsl as cf
from fusions._tensors import Random

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@cf.fusion
def rms_norm(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """y = x / sqrt(mean(x*x) + eps) * weight, row by row: x (batch, hidden) -> y (batch, hidden)."""
    x = cf.input("x", (batch, m.hidden))
    weight = cf.weight("weight", (m.hidden,))
    with cf.clusters(over=batch) as row:
        mine = cf.shard(x[row], dim=1)
        mean_square = cf.cluster_reduce(cf.mean_square(mine))
        y = cf.rms_norm(mine, weight, m.norm_eps, mean_square=mean_square)
    return cf.outputs(y=y)


@rms_norm.reference
def reference(m: cf.ModelConfig, tensors: dict[str, Tensor], precision: str = "f64") -> dict[str, Tensor]:
    """What the fusion must compute, as one would write it in PyTorch: {"y": (batch, hidden)}, not rounded. precision: "f32" or "f64"."""
    import torch

    dtype = torch.float64 if precision == "f64" else torch.float32
    return {"y": torch.nn.functional.rms_norm(tensors["x"].to(dtype), (m.hidden,), tensors["weight"].to(dtype), m.norm_eps)}


@rms_norm.example_inputs
def example_inputs(
    m: cf.ModelConfig,
    batch: int = 1,
    dtype: str = "bf16",
    length: int = 0,
    capacity: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Random tensors for one call: x, weight, and the output y full of NaN. length and capacity mean nothing here."""
    import torch

    random = Random(dtype, seed, device)
    x, weight = random.normal(batch, m.hidden), random.norm(m.hidden)
    return {"x": x, "weight": weight, "y": torch.full_like(x, float("nan"))}


@rms_norm.peer("torch.compile", "max-autotune, F.rms_norm", compile=True)
@rms_norm.peer("torch eager", "F.rms_norm")
def _in_torch(m: cf.ModelConfig, tensors: dict[str, Tensor], length: int) -> tuple[Any, tuple[Any, ...]]:
    return _norm, (tensors["x"], tensors["weight"], m.norm_eps)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    import torch.nn.functional as F

    return F.rms_norm(x, (x.shape[-1],), weight, eps)
