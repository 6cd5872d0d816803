"""Cases of clusters and of the grid: exchange, cluster_gather, cluster_reduce, multicast, grid."""

from __future__ import annotations

from typing import Any

import cluster_kernels
import torch
from case import Case, Outs
from tensors import assert_close, random
from torch import Tensor

from primitives import attention


def _check_pushes(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
    clusters = ins[0].view(2, 4, cluster_kernels.PUSHED)
    assert_close(outs["out"].view_as(clusters), clusters.roll(1, 1), 0.0, f"{label}: (cluster, rank, value; 0-3 push4, 4-5 push2, 6 push1)")


def collective(kind: str, ranks: int) -> Case:
    """The case of one collective on two clusters of `ranks`."""
    n_in, n_out = cluster_kernels.sizes(ranks)[kind]
    blocks, block = cluster_kernels.BLOCKS, cluster_kernels.BLOCK

    def make(variant: Any) -> list[Tensor]:
        x = random("f32", 2, ranks, n_in)
        if kind == "scatter":
            stats = x[..., -2 * blocks :].view(2, ranks, blocks, 2)
            stats[..., 0] *= 8
            stats[..., 1] = stats[..., 1].abs() + 0.1
            if ranks > 1:  # a rank that had no token
                stats[:, 1, :, 0], stats[:, 1, :, 1] = attention.LOWEST, 0.0
                x[:, 1, : -2 * blocks] = 0.0
        return [x.view(2 * ranks, n_in)]

    def want(x: Tensor) -> Tensor:
        if kind in ("scalar", "reduce"):
            return x.sum(1, keepdim=True).expand(-1, ranks, -1)
        if kind == "gather":
            per_block = cluster_kernels.GATHER_BLOCK
            return x.view(2, ranks, -1, per_block).transpose(1, 2).reshape(2, 1, n_out).expand(-1, ranks, -1)
        terms = x[..., : -2 * blocks].view(2, ranks, blocks, ranks, block)
        stats = x[..., -2 * blocks :].view(2, ranks, blocks, 2)
        weight = torch.exp2(stats[..., 0] - stats[..., 0].amax(1, keepdim=True))
        whole = (weight[..., None, None] * terms).sum(1) / (weight * stats[..., 1]).sum(1)[..., None, None]
        return whole.transpose(1, 2).reshape(2, ranks, n_out)

    def check(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
        got, expected = outs["out"].view(2, ranks, n_out), want(ins[0].double().view(2, ranks, n_in))
        bound = 0.0 if kind == "gather" else 1e-5 * (1 + expected.abs())
        assert_close(got, expected, bound, f"{label}: (cluster, rank, element)")
        if kind != "scatter":
            assert torch.equal(got, got[:, :1].expand_as(got)), f"{label}: the ranks of a cluster got different bits"

    ctas = 2 * ranks
    return Case(
        f"{kind}, {ranks} ranks", cluster_kernels.collective, (("f32", (ctas, n_in)),), {"out": ("f32", (ctas, n_out))}, check,
        (kind, ranks), make, grid=ctas, cluster=ranks,
    )  # fmt: skip


def _broadcast(dtype: str, n: int, ranks: int) -> Case:
    def check(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
        assert_close(outs["out"], ins[0].expand(2 * ranks, n), 0.0, f"{label}: (CTA, element)")

    return Case(
        f"multicast {n} {dtype}, {ranks} ranks", cluster_kernels.broadcast, ((dtype, (n,)),), {"out": (dtype, (2 * ranks, n))}, check,
        (n, ranks), grid=2 * ranks, cluster=ranks,
    )  # fmt: skip


GRID = 64  # CTAs: fewer than any Hopper GPU has SMs


def _check_grid(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
    whole = ins[0].view(GRID, 2, cluster_kernels.RUN).transpose(0, 1).reshape(-1)
    assert_close(outs["out"], whole.expand(GRID, -1), 0.0, f"{label}: what was published, (reader, element)")
    sums = ins[0].double().sum(0)
    assert_close(outs["sums"], sums.expand(GRID, -1), 1e-4, f"{label}: grid.add, (reader, element)")
    assert outs["sync"][1:].tolist() == [0] * 7, f"{label}: sync words {outs['sync'].tolist()}: only word 0 may change"


def grid_exchange(counted: int = GRID) -> Case:
    """The case of the grid barrier; `counted`, the CTAs that it expects."""
    total = cluster_kernels.PUBLISHED * GRID
    return Case(
        f"grid barrier of {counted}", cluster_kernels.grid_exchange, (("f32", (GRID, 8)),),
        {"sync": ("i32", (8,)), "ws": ("f32", (total,)), "acc": ("f32", (8,)), "out": ("f32", (GRID, total)), "sums": ("f32", (GRID, 8))},
        _check_grid, (GRID, counted), grid=GRID, zeroed=("acc",), loose=("acc", "sums"),
    )  # fmt: skip


def split_softmax(ranks: int, splits: int, pushed: bool = False) -> Case:
    """The case of softmax terms that clusters of `ranks` share by way of global memory; `pushed`: and that ranks combine in parts."""
    groups, heads, dim = cluster_kernels.SPLIT_GROUPS, cluster_kernels.SPLIT_HEADS, cluster_kernels.SPLIT_DIM
    ctas, size = groups * splits * ranks, heads * dim

    def make(variant: Any) -> list[Tensor]:
        x = random("f32", groups, splits, ranks, size + 2 * heads)
        stats = x[..., size:].view(groups, splits, ranks, heads, 2)
        stats[..., 0] *= 8
        stats[..., 1] = stats[..., 1].abs() + 0.1
        if splits > 1:  # clusters that had no token
            stats[:, -1, ..., 0], stats[:, -1, ..., 1] = attention.LOWEST, 0.0
            x[:, -1, :, :size] = 0.0
        return [x.view(ctas, -1)]

    def check(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
        x = ins[0].double().view(groups, splits * ranks, size + 2 * heads)
        terms, stats = x[..., :size].view(groups, -1, heads, dim), x[..., size:].view(groups, -1, heads, 2)
        weight = torch.exp2(stats[..., 0] - stats[..., 0].amax(1, keepdim=True))
        want = (weight[..., None] * terms).sum(1) / (weight * stats[..., 1]).sum(1)[..., None]
        want = want.view(1, -1).expand(ctas, -1)
        assert_close(outs["out"].view(ctas, -1), want, 1e-5 * (1 + want.abs()), f"{label}: (CTA, element)")

    whole = groups * size
    return Case(
        f"split softmax, {splits} clusters of {ranks}{', pushed' * pushed}", cluster_kernels.split_softmax,
        (("f32", (ctas, size + 2 * heads)),),
        {"sync": ("i32", (8,)), "ws_o": ("f32", (splits * whole,)), "ws_ml": ("f32", (splits * groups * heads * 2,)),
         "out": ("f32", (ctas * whole,))}, check, (ranks, splits, pushed), make, grid=ctas, cluster=ranks,
    )  # fmt: skip


RANKS = (1, 2, 4, 8, 16)
SPLIT = split_softmax(2, 3)
SPREAD = split_softmax(2, 3, pushed=True)
PUSHES = Case("pushes", cluster_kernels.pushes, (("f32", (8, 7)),), {"out": ("f32", (8, 7))}, _check_pushes, (4,), grid=8, cluster=4)
BROADCASTS = tuple(_broadcast(*how) for how in (("f32", 1024, 1), ("f32", 8, 4), ("bf16", 1168, 8), ("bf16", 4096, 16)))
CLUSTER_CASES = (
    PUSHES,
    *(collective(kind, ranks) for ranks in RANKS for kind in cluster_kernels.KINDS),
    *BROADCASTS,
    SPLIT,
    split_softmax(1, 1),
    SPREAD,
    split_softmax(4, 5, pushed=True),
    split_softmax(8, 2, pushed=True),
)
GRID_CASE = grid_exchange()
