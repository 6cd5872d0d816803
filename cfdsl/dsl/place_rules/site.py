"""What a placement rule may look at, and the demands that several rules make of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cfdsl.dsl.graph import Dim, Node
from cfdsl.dsl.placement import AxisPlacement, Mesh, Partial, Placement, ReduceOp, Shard
from cfdsl.errors import CfdslError, NeedsReduce, PlacementMismatch, ShardDoesNotDivide

AXES = ("grid", "cluster", "split")
SUM = Partial(ReduceOp.SUM)
TUPLES = (Partial(ReduceOp.LSE), Partial(ReduceOp.ARGMAX))  # terms of several numbers


@dataclass(frozen=True)
class Site:
    """One node about to be placed: what its placement rule may look at."""

    node: Node
    args: tuple[Placement, ...]
    mesh: Mesh
    over: int | None

    @property
    def op(self) -> str:
        """The op as the user wrote it."""
        if self.node.op == "output":
            return f"output {self.node.attr('name')!r}"
        return self.node.word

    def shape(self, index: int) -> tuple[Dim, ...]:
        return self.node.args[index].type.shape

    def name(self, index: int) -> str:
        """How messages call an argument: a leaf's own name, else what made it and where."""
        node = self.node.args[index]
        return str(node.attr("name") or f"the result of {node.word} (line {node.src.line})")

    def mismatch(self, problem: str, legal: str) -> CfdslError:
        return PlacementMismatch(op=self.op, problem=problem, legal=legal, src=self.node.src)

    def no_partial(self, *indices: int, axes: tuple[str, ...] = AXES) -> None:
        """These arguments (all, if none is given) must be values, not terms."""
        for index in indices or range(len(self.args)):
            for axis in axes:
                if isinstance(on(self.args[index], axis), Partial):
                    raise self._needs_reduce(index, axis)

    def no_open_tuples(self) -> None:
        """Nothing but a collective takes the (m, l, o) triples of an unfinished softmax, or pairs of value and index, not even a view."""
        for index, placement in enumerate(self.args):
            for axis in AXES:
                if on(placement, axis) in TUPLES:
                    raise self._needs_reduce(index, axis)

    def one_deal(self) -> None:
        """With splits, values cut over all CTAs and values cut over groups do not meet: a CTA has other slices of the one and the other."""
        sharded = [index for index, placement in enumerate(self.args) if isinstance(placement.grid, Shard)]
        dealt = {over_all_ctas(self.node.args[index]): index for index in sharded} if self.mesh.splits > 1 else {}
        if len(dealt) == 2:
            everywhere, by_group = self.name(dealt[True]), self.name(dealt[False])
            problem = f"{everywhere} is cut over all CTAs and {by_group} over groups of {self.mesh.splits} splits"
            raise self.mismatch(problem, "call grid_gather on one of them, or use one split")

    def _needs_reduce(self, index: int, axis: str) -> CfdslError:
        at, argument = str(on(self.args[index], axis)), self.name(index)
        collective = "cluster_reduce" if axis == "cluster" else "grid_reduce"
        return NeedsReduce(op=self.op, argument=argument, placement=at, axis=axis, collective=collective, src=self.node.src)

    def whole(self, index: int, dims: tuple[int, ...], axes: tuple[str, ...] = AXES) -> None:
        """An argument must not be sharded along these dimensions."""
        for axis in axes:
            at = on(self.args[index], axis)
            if isinstance(at, Shard) and at.dim in dims:
                where = f"is sharded along dimension {at.dim} on the {axis} axis"
                problem = f"{self.name(index)} {self.args[index]} {where}, which this op needs whole"
                raise self.mismatch(problem, f"call {axis}_gather on it first")

    def replicated(self, index: int, axes: tuple[str, ...] = AXES) -> None:
        self.no_partial(index, axes=axes)
        self.whole(index, tuple(range(len(self.shape(index)))), axes)

    def local(self, size: Dim, dim: int, placement: Placement) -> Dim:
        """The size of a dimension that one cluster holds."""
        if placement.grid == Shard(dim) and isinstance(size, int):
            return max(1, size // self.mesh.groups)
        return size

    def divide(self, size: Dim, axis: str, dim: int) -> None:
        """A dimension of `size` must be cut into equal slices over an axis (on the grid, neighbours may share a slice)."""
        parts = self.mesh.ranks if axis == "cluster" else self.mesh.groups
        fits = isinstance(size, int) and (size % parts == 0 or (axis == "grid" and parts % size == 0))
        if not fits:
            names, advice = "ranks", "choose a cluster size that divides it, or shard another dimension"
            if axis == "grid":
                names = "clusters" if self.mesh.splits == 1 else "groups of clusters"
                advice = f"choose a number of {names} that divides it or is a multiple of it"
            raise ShardDoesNotDivide(op=self.op, dim=dim, size=size, parts=parts, axis=names, advice=advice, src=self.node.src)

    def exclusive(self, size: Dim, dim: int, why: str) -> None:
        """No two clusters may hold the same slice of a dimension that is summed or merged over the grid."""
        if self.mesh.splits > 1:
            problem = f"the {self.mesh.splits} splits of a group hold the same slice of dimension {dim}: {why}"
            raise self.mismatch(problem, "use one split, or gather over the grid first")
        if not isinstance(size, int) or size % self.mesh.clusters:
            advice = f"{why}: choose a number of clusters that divides it"
            raise ShardDoesNotDivide(
                op=self.op, dim=dim, size=size, parts=self.mesh.clusters, axis="clusters", advice=advice, src=self.node.src
            )


def on(placement: Placement, axis: str) -> AxisPlacement:
    """The placement on one of AXES."""
    return {"grid": placement.grid, "cluster": placement.cluster, "split": placement.split}[axis]


def over_all_ctas(node: Node) -> bool:
    """Whether a value that is sharded on the grid is cut over every CTA of the launch, and not by `x[axis]` over groups of clusters."""
    todo, seen = [node], set[Node]()
    while todo:
        at = todo.pop()
        if at.op == "grid_reduce_scatter" or (at.op == "linear" and at.attr("shard") == "out" and at.attr("across") == "all"):
            return True
        if at not in seen and at.op not in ("slice_grid", "grid_gather", "grid_reduce"):
            todo += at.args
        seen.add(at)
    return False


Rule = Callable[[Site], tuple[Placement, ...]]
