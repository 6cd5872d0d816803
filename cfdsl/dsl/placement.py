"""Placements: how one value is spread over the two-level mesh of a launch.

A launch is `clusters` thread-block clusters (the *grid* axis) of `ranks` CTAs each (the *cluster* axis). Where several clusters share
one slice of the work, they are the *splits* of a group, and the grid axis counts groups. A value has one placement per axis, in
DTensor's vocabulary (PyTorch's `torch.distributed.tensor`):

    R        every holder along the axis has all of it
    S(d)     each holder has a slice along dimension d
    P(op)    each holder has a term; the value is `op` over the holders (sum, max, lse: the online-softmax monoid, or argmax)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReduceOp(StrEnum):
    """The monoids a Partial may be over.

    LSE combines (m, l, o) triples of an online softmax. ARGMAX combines pairs of a value and its index: the greater value's index is
    the result, the lower of equal ones.
    """

    SUM = "sum"
    MAX = "max"
    LSE = "lse"
    ARGMAX = "argmax"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Replicate:
    def __str__(self) -> str:
        return "R"


@dataclass(frozen=True)
class Shard:
    dim: int

    def __str__(self) -> str:
        return f"S({self.dim})"


@dataclass(frozen=True)
class Partial:
    op: ReduceOp = ReduceOp.SUM

    def __str__(self) -> str:
        return f"P({self.op})"


AxisPlacement = Replicate | Shard | Partial
R = Replicate()


@dataclass(frozen=True)
class Placement:
    """A value's placement on the grid of clusters, on the ranks of a cluster, and on the splits of a group of clusters.

    Where grid and cluster shard one dimension, rank r of cluster c has share `c * ranks + r` of `clusters * ranks` (balanced; some may
    be empty). `split` is R or P(lse): each split has attended to its share of the tokens. It is printed only where it is not R.
    """

    grid: AxisPlacement = R
    cluster: AxisPlacement = R
    split: AxisPlacement = R

    def __str__(self) -> str:
        split = "" if self.split == R else f", {self.split}"
        return f"[{self.grid}, {self.cluster}{split}]"


@dataclass(frozen=True)
class Mesh:
    """`clusters` clusters of `ranks` CTAs, of which `splits` neighbours at a time form a group that shares the tokens of its units.

    Cluster c is split `c % splits` of group `c // splits`. `x[axis]` is cut over groups, and all splits of a group hold the same slice.
    """

    clusters: int
    ranks: int
    splits: int = 1

    @property
    def ctas(self) -> int:
        return self.clusters * self.ranks

    @property
    def groups(self) -> int:
        """Holders of different slices of `x[axis]`."""
        return self.clusters // self.splits

    def __str__(self) -> str:
        splits = f" ({_counted(self.groups, 'group')} of {self.splits} splits)" if self.splits > 1 else ""
        return f"{_counted(self.clusters, 'cluster')}{splits} x {_counted(self.ranks, 'rank')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shard_bounds(size: int, parts: int, index: int) -> tuple[int, int]:
    """The half-open range of a dimension of `size` that holder `index` of `parts` has.

    `parts` divides `size`: equal slices. `size` divides `parts` (more clusters than slices): `parts // size` neighbours hold the
    same single slice. Anything else is balanced: slice lengths differ by at most one.
    """
    if parts > size and parts % size == 0:
        owner = index // (parts // size)
        return owner, owner + 1
    return size * index // parts, size * (index + 1) // parts
