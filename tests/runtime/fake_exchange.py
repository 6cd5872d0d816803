"""A stand-in for `cfdsl.collective`: right results from the float64 reference, and times by a formula, so that every number can be derived.

An exchange takes `cycles(case, algorithm)`; a launch takes LAUNCH_US, FIXED cycles and its exchanges, at a clock of GHZ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cfdsl.runtime import measure
from cfdsl.runtime.exchange_bench.cases import Case
from cfdsl.runtime.exchange_bench.reference import expected

LAUNCH_US, FIXED, GHZ = 1.5, 1000, 2.0


def default_cycles(case: Case, algorithm: str) -> int:
    """240 and the pushed bytes at 16 a cycle; through global memory 1000 and the payload at 64 a cycle."""
    if algorithm == "global":
        return 1000 + case.payload // 64
    return 240 + case.payload * (case.cluster - 1) // 16


class FakeKernel:
    """One launch computes the result; `flaw` may spoil it."""

    def __init__(self, factory: FakeFactory, case: Case, algorithm: str, repeat: int, timed: bool) -> None:
        self.factory, self.case, self.algorithm, self.repeat, self.timed = factory, case, algorithm, repeat, timed
        self.smem_bytes, self.launches, self.flags = 2 * case.payload * case.cluster, 0, tuple[str, ...]()
        self.bytes_pushed = 0 if algorithm == "global" else case.payload * (case.cluster - 1)
        self.bytes_global = case.payload * (case.cluster + 1) if algorithm == "global" else 0

    def __call__(self, *tensors: torch.Tensor) -> None:
        given = tensors[: 2 if self.case.op == "lse" else 1]
        y = tensors[len(given)]
        y.copy_(expected(self.case, given))
        total = FIXED + self.repeat * self.factory.cycles(self.case, self.algorithm)
        if self.timed:
            tensors[-1].copy_(total - torch.arange(self.case.cluster, dtype=torch.int32))  # rank 0 is the slowest
        self.factory.last_us = LAUNCH_US + total / GHZ / 1e3
        self.launches += 1
        self.factory.flaw(self, y)

    def status(self, clear: bool = False) -> tuple[str, ...]:
        """What a flaw has flagged."""
        return self.flags


class FakeFactory:
    """Called like `cfdsl.collective`; counts what is built."""

    def __init__(self, chosen: str = "push", flaw: Callable[[FakeKernel, torch.Tensor], Any] = lambda kernel, y: None) -> None:
        self.chosen, self.flaw, self.built, self.last_us = chosen, flaw, list[tuple[Any, ...]](), 0.0
        self.cycles: Callable[[Case, str], int] = default_cycles

    def __call__(
        self, kind: str, *, op: str, shape: tuple[int, ...], dtype: str, cluster: int, clusters: int, algorithm: str | None, repeat: int,
        timed: bool, part: Any,
    ) -> FakeKernel:  # fmt: skip
        name = algorithm or self.chosen
        self.built.append((kind, op, shape, dtype, cluster, clusters, name, repeat, timed))
        operator = op if kind == "reduce" else kind
        payload = {"f32": 4, "f16": 2, "bf16": 2}[dtype] * torch.Size(shape).numel()
        return FakeKernel(self, Case(operator, cluster, payload, clusters, name, dtype), name, repeat, timed)

    def time_graph(self, calls: Sequence[Callable[[], Any]], *rest: int) -> measure.Timing:
        """In place of `measure.time_graph`."""
        for call in calls:
            call()
        return measure.Timing(self.last_us, self.last_us - 0.1, self.last_us + 0.1, 1, 1)


def possible(kind: str, *, op: str, shape: tuple[int, ...], dtype: str, cluster: int) -> list[str]:
    """In place of `cfdsl.collective_algorithms`."""
    if kind == "reduce_scatter" and shape[0] % cluster:
        return []
    return ["push", "bulk", "global"] if torch.Size(shape).numel() * cluster <= 32768 else ["global"]
