"""What a kernel's result is held against: float64, with a limit per dtype."""

from __future__ import annotations

import torch

LIMIT = {"bf16": 4e-3, "f16": 1e-3}  # relative L2 error


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative L2 error of what both have: a NaN on one side only is infinitely wrong."""
    holes = want.isnan()
    if not torch.equal(got.isnan(), holes):
        return float("inf")
    got, want = got[~holes].double(), want[~holes].double()
    return float((got - want).norm() / want.norm())
