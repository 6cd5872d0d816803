"""What a collective moves, and how often it is waited for: in a cluster by pushes, over the grid through global memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, prod

from cfdsl.compiler.cost.moves import Pause, local_elements, size_of, slice_read
from cfdsl.dsl.exchange import WORD, heads_of_part, in_parts, pushed
from cfdsl.dsl.graph import GRID_COLLECTIVES, VIEWS, Node
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.place_rules.site import over_all_ctas
from cfdsl.dsl.placement import Partial, Placement, R, ReduceOp, Shard


def heads_of(placed: PlacedGraph, node: Node, sizes: Mapping[str, int]) -> int:
    """Heads (dimension 1 of three) of a value that a cluster has."""
    shape = node.types[0].shape
    grid_only = Placement(Shard(0) if placed.placements[node][0].grid == Shard(1) else R)
    return local_elements(shape[1:2], grid_only, placed.mesh, sizes) if len(shape) == 3 else 1


class Pauses:
    """The pauses of a graph's collectives. `users` has the users of every node."""

    def __init__(self, placed: PlacedGraph, sizes: Mapping[str, int], users: Mapping[Node, list[Node]]) -> None:
        self.placed, self.mesh, self.sizes, self.users = placed, placed.mesh, sizes, users

    def _whole(self, node: Node) -> int:
        return prod(size_of(dim, self.sizes) for dim in node.types[0].shape)

    def of(self, node: Node) -> Iterator[Pause]:
        """What consumers wait for in a collective, in order."""
        if node.op in GRID_COLLECTIVES:
            yield from self._over_the_grid(node)
            return
        for moved in self._pushes(node):
            yield Pause("cluster", node.op, WORD * moved // self.mesh.ranks, total=WORD * moved * self.mesh.clusters)
            heads = max(heads_of(self.placed, arg, self.sizes) for arg in node.args)
            yield Pause("block", node.op, heads=heads)  # the terms are put together, then everybody may read

    def _pushes(self, node: Node) -> tuple[int, ...]:
        """Elements that the ranks of a cluster push to peers, in each round."""
        sizes, stats = [], 0
        for arg in node.args:
            at, shape = self.placed.placements[arg][0], arg.types[0].shape
            sizes.append(self._local(arg))
            if isinstance(at.cluster, Partial) and at.cluster.op is ReduceOp.LSE:  # everybody needs all (max, sum)
                stats += 2 * local_elements(shape[:-1], at, self.mesh, self.sizes)
        return pushed(node.op, sizes, self.mesh.ranks, stats)

    def _local(self, node: Node) -> int:
        """Elements that a CTA has of a value."""
        return local_elements(node.types[0].shape, self.placed.placements[node][0], self.mesh, self.sizes, over_all_ctas(node))

    def _over_the_grid(self, node: Node) -> Iterator[Pause]:
        """Everybody stores; a barrier; everybody reads what he needs. Many splits' terms are put together by ranks in parts."""
        busiest, total, parts = 0, 0, 0
        for index, arg in enumerate(node.args):
            for elements, everywhere in (self._stored(arg), self._read(node, index, arg)):
                busiest, total = busiest + elements, total + everywhere
            if self._in_parts(node, arg):
                parts += self._whole(arg)
        yield Pause("grid", node.op, WORD * busiest, total=WORD * total)
        if parts:
            moved = WORD * parts * (self.mesh.ranks - 1)
            yield Pause("cluster", node.op, moved // self.mesh.ranks, total=moved * self.mesh.clusters)

    def _stored(self, arg: Node) -> tuple[int, int]:
        """Elements of one value of a grid collective that the busiest CTA stores, and all of them."""
        at, shape, local, mesh = self.placed.placements[arg][0], arg.types[0].shape, self._local(arg), self.mesh
        if isinstance(at.grid, Partial) and at.grid.op is ReduceOp.ARGMAX:
            return 2, 2 * mesh.ctas
        each = local * (mesh.ranks if isinstance(at.cluster, Shard) else 1)  # of a cluster
        if isinstance(at.split, Partial) and mesh.splits > 1:
            heads = local_elements(shape[:-1], Placement(at.grid), mesh, self.sizes)
            return local + 2 * heads, (each + 2 * heads) * mesh.clusters
        if over_all_ctas(arg):
            return local, self._whole(arg)
        holders = mesh.clusters if at.grid != R else 1
        return local, each * holders

    def _read(self, node: Node, index: int, arg: Node) -> tuple[int, int]:
        """Elements that the busiest CTA reads back, and all CTAs."""
        at, whole, mesh = self.placed.placements[arg][0], self._whole(arg), self.mesh
        if node.op == "grid_reduce_scatter":
            return ceil(whole / mesh.ctas), whole
        if isinstance(at.grid, Partial) and at.grid.op is ReduceOp.ARGMAX:
            return 2 * mesh.ctas, 2 * mesh.ctas  # by the one that stores the index
        if isinstance(at.split, Partial) and mesh.splits > 1:
            dim = size_of(arg.types[0].shape[-1], self.sizes)
            if not self._in_parts(node, arg):
                terms = mesh.splits * (whole + 2 * whole // dim)
                return terms, terms * mesh.ctas
            heads = [last - first for first, last in (heads_of_part(whole, dim, mesh.ranks, rank) for rank in range(mesh.ranks))]
            read = [mesh.splits * (whole // mesh.ranks + 2 * n) for n in heads]
            return max(read), sum(read) * mesh.clusters
        return self._used(node, index)

    def _in_parts(self, node: Node, arg: Node) -> bool:
        open_softmax = isinstance(self.placed.placements[arg][0].split, Partial) and node.op == "grid_reduce"
        return open_softmax and in_parts(self._whole(arg), self.mesh.splits, self.mesh.ranks)

    def _used(self, node: Node, index: int) -> tuple[int, int]:
        """Elements that the busiest CTA reads of a gathered value, and all CTAs: the slices that its users take."""
        found: dict[tuple[Node, int], int] = {}
        for item in self.users.get(node, []):
            if item.attr("index") == index:
                self._taken(item, found)
        return sum(elements for _, elements in found), sum(found.values())

    def _taken(self, value: Node, found: dict[tuple[Node, int], int]) -> None:
        """(view of a value, elements of it that a CTA reads) -> elements that all CTAs read."""
        for user in self.users.get(value, []):
            elements = self._local(value)
            if user.op in VIEWS:
                self._taken(user, found)
            elif user.op in ("add", "mul") and over_all_ctas(user):
                found[value, ceil(self._whole(value) / self.mesh.ctas)] = self._whole(value)
            else:
                if user.op in ("add", "mul") and self.placed.of(value) == Placement():
                    elements = slice_read(self.placed, value, user, self.sizes)
                elif user.op == "linear" and user.attr("shard") == "in" and value is user.args[0]:
                    elements //= self.mesh.ranks
                found[value, elements] = elements * self.mesh.ctas
