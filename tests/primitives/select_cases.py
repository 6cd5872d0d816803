"""Cases of what finds an index."""

from __future__ import annotations

from typing import Any

import select_kernels
import tensors
import torch
from case import Case, Outs
from tensors import random
from torch import Tensor

CTAS = 40  # more than a warp has lanes
KINDS = ("random", "ties", "all equal", "zeros of both signs", "nan", "negative nan", "minus infinity", "last", "negative")


def greatest(n: int) -> Case:
    """The case of `n` values to a CTA; fewer than a CTA has threads leave some with nothing."""
    size = CTAS * n

    def make(kind: str) -> list[Tensor]:
        x = random("f32", size)
        where = torch.randint(size, (5,), device=tensors.DEVICE)
        if kind == "ties":
            x[where] = 100.0
        if kind == "all equal":
            x.fill_(-3.0)
        if kind == "zeros of both signs":
            x = -x.abs()
            x[where] = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0], device=tensors.DEVICE)
        if kind == "nan":
            x[where] = torch.tensor([float("nan"), float("inf"), 1e38, float("nan"), 0.0], device=tensors.DEVICE)
        if kind == "negative nan":
            x[where[0]] = torch.tensor([-1], dtype=torch.int32, device=tensors.DEVICE).view(torch.float32)[0]
        if kind == "minus infinity":
            x.fill_(-float("inf"))
        if kind == "last":
            x[-1] = float("inf")
        if kind == "negative":
            x = -1 - x.abs()
        return [x]

    def check(outs: Outs, kind: str, ins: list[Tensor], label: str) -> None:
        parts = ins[0].view(CTAS, n)
        want = [first_of_greatest(part) + cta * n for cta, part in enumerate(parts)]
        assert outs["each"].tolist() == [[index, index] for index in want], f"{label}: the greatest of each CTA, by two threads"
        assert outs["out"].tolist() == [first_of_greatest(ins[0])], f"{label}: got {outs['out'].tolist()}"

    return Case(
        f"argmax of {n} to a CTA", select_kernels.greatest, (("f32", (size,)),),
        {"sync": ("i32", (8,)), "pairs": ("i32", (2 * CTAS,)), "out": ("i32", (1,)), "each": ("i32", (CTAS, 2))}, check, (CTAS, n), make,
        variants=KINDS, grid=CTAS,
    )  # fmt: skip


def first_of_greatest(x: Tensor) -> int:
    """By PyTorch: NaN is the greatest, and of equal ones the first counts."""
    same = x.isnan() if bool(x.isnan().any()) else x == x.max()
    return int(same.nonzero()[0, 0])


SELECT_CASES: tuple[Any, ...] = (greatest(1000), greatest(100), greatest(1))
