"""Random tensors for the fusions' example inputs, and what several of them need besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cfdsl as cf

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Random:
    """Seeded tensors of one dtype, "bf16" or "f16", on one device; what comes of a seed depends on the order of the calls."""

    def __init__(self, dtype: str, seed: int, device: str | torch.device) -> None:
        import torch

        self.kind = torch.bfloat16 if dtype in ("bf16", "bfloat16") else torch.float16
        self.generator, self.device = torch.Generator(device).manual_seed(seed), device

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        """Normal numbers of this deviation, rounded to the dtype."""
        import torch

        return (mean + scale * torch.randn(shape, generator=self.generator, device=self.device)).to(self.kind)

    def norm(self, size: int) -> Tensor:
        """The weight of a norm: about 1."""
        return self.normal(size, scale=0.1, mean=1.0)


def rope_tables(m: cf.ModelConfig, positions: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, (positions, rotary_dim / 2) f32 on `device`: computed in float64, because angles grow large."""
    import torch

    frequencies = torch.tensor(cf.rope_inv_freq(m), dtype=torch.float64)  # on the CPU, so that all devices have the same bits
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float().to(device), angles.sin().float().to(device)
