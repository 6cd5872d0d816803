"""The tensors of an exchange, and what it must give, in float64."""

from __future__ import annotations

import math

import torch

from cfdsl.runtime.arguments import DTYPES
from cfdsl.runtime.exchange_bench.cases import Case

Tensors = tuple[torch.Tensor, ...]

# Largest error over the largest value. Sums and lse are f32 in rank order (lse with approximate powers of two), then rounded to the dtype.
TOLERANCE = {"f32": 1e-5, "f16": 1e-3, "bf16": 8e-3}


def inputs(case: Case, device: str, seed: int = 0) -> Tensors:
    """x (clusters, cluster, *shape) of normal numbers; for lse also ml (clusters, cluster, heads, 2) f32: base-2 maximum, and sum."""
    generator = torch.Generator(device=device).manual_seed(seed)
    head = (case.clusters, case.cluster)
    x = torch.randn((*head, *case.shape), generator=generator, device=device).to(DTYPES[case.dtype])
    if case.op != "lse":
        return (x,)
    highest = 4 * torch.randn((*head, case.shape[0]), generator=generator, device=device)
    total = 1 + 100 * torch.rand(highest.shape, generator=generator, device=device)
    return x, torch.stack((highest, total), -1).contiguous()


def expected(case: Case, given: Tensors) -> torch.Tensor:
    """y (clusters, cluster, *result shape) in float64: what every rank must hold."""
    x = given[0].double()
    if case.kind == "gather":
        return everywhere(x.flatten(1, 2), case.cluster)
    if case.kind == "broadcast":
        return everywhere(x[:, 0], case.cluster)
    if case.kind == "reduce_scatter":
        return x.sum(1).unflatten(1, (case.cluster, -1))
    if case.op == "lse":
        highest, total = given[1].double().unbind(-1)
        weight = torch.exp2(highest - highest.amax(1, keepdim=True))
        return everywhere((weight.unsqueeze(-1) * x).sum(1) / (weight * total).sum(1).unsqueeze(-1), case.cluster)
    reduced = {"sum": x.sum(1), "max": x.amax(1), "min": x.amin(1)}[case.op]
    return everywhere(reduced, case.cluster)


def everywhere(value: torch.Tensor, ranks: int) -> torch.Tensor:
    """`value` (clusters, ...) on each of a cluster's ranks: (clusters, ranks, ...)."""
    return value.unsqueeze(1).expand(-1, ranks, *value.shape[1:])


def tolerance(case: Case) -> float:
    """The largest error that is right: none where values only move or are picked."""
    moves = case.kind in ("gather", "broadcast") or case.op in ("max", "min")
    return 0.0 if moves else TOLERANCE[case.dtype]


def largest_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """max |got - want| over max |want|; infinite where `got` is not a number. One wrong element shows, however many are right."""
    difference = (got.double() - want).abs()
    if not bool(difference.isfinite().all()):
        return math.inf
    return float(difference.max() / want.abs().max().clamp_min(1e-300))
