"""Inputs for cfdsl.collective, what must come out, and verdicts: for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from cfdsl.compiler.collective.request import Collective
from cfdsl.runtime.arguments import DTYPES

LOWEST = -1e30  # base-2 maximum of a rank that had no token
# Of the value: rounding to the type once. Of the sum of magnitudes: float32 sums of at most 16 terms.
ROUNDING = {"f32": 2**-23, "bf16": 2**-8, "f16": 2**-11}


def inputs(request: Collective, device: str = "cuda") -> list[Tensor]:
    """x, and ml for LSE; the last rank had no token if there is another."""
    ctas = (request.clusters, request.cluster)
    x = torch.randn(*ctas, *request.shape, device=device).to(DTYPES[request.dtype])
    if not request.lse:
        return [x]
    ml = torch.rand(*ctas, request.heads, 2, device=device) + 0.1
    ml[..., 0] = torch.randn(*ctas, request.heads, device=device) * 8
    if request.cluster > 1:
        x[:, -1], ml[:, -1, :, 0], ml[:, -1, :, 1] = 0.0, LOWEST, 0.0
    return [x, ml]


def wanted(request: Collective, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(y, the allowed error) in float64, of shape (clusters, cluster, *result shape)."""
    x = given[0].double()
    ranks = request.cluster
    if request.kind == "gather":
        return (whole := x.flatten(1, 2).unsqueeze(1).expand(-1, ranks, *request.result_shape)), torch.zeros_like(whole)
    if request.kind == "broadcast":
        return (first := x[:, :1].expand_as(x)), torch.zeros_like(first)
    if request.lse:
        ml = given[1].double()
        weight = torch.exp2(ml[..., 0] - ml[..., 0].amax(1, keepdim=True))
        y = (weight[..., None] * x).sum(1) / (weight * ml[..., 1]).sum(1)[..., None]
        bound = 1e-5 * (1 + y.abs()) + (ROUNDING[request.dtype] * y.abs() if request.dtype != "f32" else 0.0)
    elif request.op == "sum":
        y, bound = x.sum(1), ROUNDING[request.dtype] * x.sum(1).abs() + 16 * 2**-24 * x.abs().sum(1) + 1e-7 * (request.dtype == "f16")
    else:
        y = x.amax(1) if request.op == "max" else x.amin(1)
        bound = torch.zeros_like(y)
    if request.kind == "reduce":
        return y.unsqueeze(1).expand(-1, ranks, *request.shape), bound.unsqueeze(1).expand(-1, ranks, *request.shape)
    shape = (request.clusters, ranks, *request.result_shape)
    return y.reshape(shape), bound.reshape(shape)


def verdict(request: Collective, given: list[Tensor], y: Tensor) -> str:
    """How `y` is wrong; empty if it is right, and the same on every rank that has the same."""
    want, bound = wanted(request, given)
    excess = ((y.double() - want).abs() - bound).nan_to_num(float("inf"))
    if float(excess.max()) > 0:
        where = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        wrong = int((excess > 0).sum())
        return f"{wrong} of {y.numel()} elements are off; worst at {where}: got {float(y[where])!r}, expected {float(want[where])!r}"
    if request.kind != "reduce_scatter" and not torch.equal(y, y[:, :1].expand_as(y)):
        return "the ranks of a cluster got different bits"
    return ""
