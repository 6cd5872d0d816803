"""The bytes of a launch in closed form: from shapes and placements, without a tensor. The same numbers that the oracle counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from cfdsl.dsl import exchange as rules
from cfdsl.dsl.graph import ITEMSIZE, VIEWS, Node, Type
from cfdsl.dsl.interpret.traffic import ExchangeTraffic, Traffic, exchange_row
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.placement import Partial, Placement, ReduceOp, Shard
from cfdsl.errors import ArgumentError

LENGTH = "length"


def count_traffic(placed: PlacedGraph, sizes: Mapping[str, int] | None = None) -> Traffic:
    """The traffic of one launch of `placed`, as `interpret` would count it.

    sizes: the named dimensions that matter ("tokens": the capacity of the cache), and "length": the tokens that every sequence has in
    the cache before the launch (out of 0..capacity: clamped, and nothing is appended). Without it a cache is as full as it can be
    before an append.
    Raises ArgumentError where a size is missing.
    """
    return _Count(placed, dict(sizes or {})).total()


@dataclass
class _Count:
    placed: PlacedGraph
    sizes: dict[str, int]
    loads: dict[object, int] = field(default_factory=dict)  # (leaf, how it is cut) -> bytes that all CTAs load
    unique: dict[tuple[str, str], int] = field(default_factory=dict)  # (role, leaf) -> bytes
    read: dict[Node, dict[object, int]] = field(default_factory=dict)  # grid exchange -> as `loads`, in elements
    kv_read: dict[str, int] = field(default_factory=dict)
    kv_loads: int = 0
    kv_write: int = 0

    def total(self) -> Traffic:
        """Walk the graph once."""
        graph = self.placed.graph
        for node in graph.nodes:
            if node.op not in VIEWS:
                self._use(node)
        for _, node in graph.outputs:
            self._load(node, by_one=True)
        outputs = sum(self._numel(node.type) * ITEMSIZE[graph.output_dtype(node)] for _, node in graph.outputs)
        role = {role: sum(size for (of, _), size in self.unique.items() if of == role) for role in ("weight", "input")}
        rows = tuple(self._row(node) for node in graph.nodes if node.is_collective)
        l2 = sum(self.loads.values()) + self.kv_loads
        return Traffic(role["weight"], role["input"], sum(self.kv_read.values()), self.kv_write, outputs, l2, rows)

    # ---- sizes -------------------------------------------------------------------------------------------------------------------

    def _shape(self, of: Type) -> tuple[int, ...]:
        for dim in of.shape:
            if isinstance(dim, str) and dim not in self.sizes:
                raise ArgumentError(argument="sizes", expected=f"sizes with a number for {dim!r}", got=repr(self.sizes))
        return tuple(self.sizes[dim] if isinstance(dim, str) else dim for dim in of.shape)

    def _numel(self, of: Type) -> int:
        return prod(self._shape(of))

    def _at(self, node: Node) -> Placement:
        return self.placed.placements[node][0]

    def _copies(self, node: Node) -> int:
        """How many clusters hold the same slice of a value that is sharded on the grid: more than one if clusters outnumber slices."""
        mesh = self.placed.mesh
        if node.op == "slice_grid":
            return max(1, mesh.groups // self._shape(node.type)[node.attr("dim")]) * mesh.splits
        if node.op == "item":
            source = node.args[0]
            return self._copies(source.args[0 if source.op == "split" else node.attr("index")])
        sharded = [arg for arg in node.args if isinstance(self._at(arg).grid, Shard)]
        return self._copies(sharded[0]) if sharded else 1

    # ---- loads -------------------------------------------------------------------------------------------------------------------

    def _use(self, node: Node) -> None:
        """Count what `node` loads of the leaves among its operands."""
        if node.op == "linear":
            self._linear(node)
        elif node.op in ("add", "mul"):
            for arg in node.args:
                self._load(arg, self._sliced_like(node, arg, "grid"), self._sliced_like(node, arg, "cluster"), of=node)
        elif node.op == "rms_norm":
            x = self._at(node.args[0])
            self._load(node.args[0])
            self._load(node.args[1], x.grid == Shard(1), x.cluster == Shard(1), of=node.args[0])
        elif node.op == "rope":
            self._rope(node)
        elif node.op == "embedding":
            self._embedding(node)
        elif node.op in ("append", "attend"):
            self._attention(node)
        else:
            for arg in node.args:
                self._load(arg)

    def _linear(self, node: Node) -> None:
        x, w, *bias = node.args
        shard, everywhere = node.attr("shard"), node.attr("across") == "all" and node.attr("shard") == "out"
        self._load(x, cluster=shard == "in")
        self._load(w, grid=everywhere, cluster=shard is not None)
        for b in bias:
            self._load(b, grid=everywhere or isinstance(self._at(w).grid, Shard), cluster=shard == "out", of=w)

    def _sliced_like(self, node: Node, arg: Node, axis: str) -> bool:
        """Whether an operand of a pointwise op is cut along `axis` because the result is."""
        at = getattr(self._at(node), axis)
        if not isinstance(at, Shard):
            return False
        dim = at.dim - len(node.type.shape) + len(arg.type.shape)
        return dim >= 0 and arg.type.shape[dim] == node.type.shape[at.dim]

    def _rope(self, node: Node) -> None:
        x, cos, sin, pos = node.args
        self._load(x)
        grid, cluster = (at == Shard(0) for at in (self._at(x).grid, self._at(x).cluster))
        self._load(pos, grid, cluster, of=x)
        for table in (cos, sin):
            row = table.type.shape[1]
            assert isinstance(row, int)
            self._load(table, grid, cluster, of=x, numel=self._shape(x.type)[0] * row)

    def _embedding(self, node: Node) -> None:
        token, table = node.args
        self._load(token)
        self._load(table, grid=isinstance(self._at(token).grid, Shard), of=token, numel=self._numel(node.type))

    def _attention(self, node: Node) -> None:
        q_or_cache, k_or_cache, *rest = node.args
        cache = q_or_cache if node.op == "append" else k_or_cache
        batch, heads, capacity, dim = self._shape(cache.type)
        leaf, appended = cache, node.op == "append"
        while leaf.op != "kv_cache":
            appended |= leaf.op == "append"
            if leaf.op == "append" and node.op == "attend":
                rest = [leaf.args[3]]
            leaf = leaf.args[0]
        given = self.sizes.get(LENGTH, capacity - 1 if appended else capacity)
        length = min(max(0, given), capacity)
        row = 2 * batch * heads * dim * ITEMSIZE[leaf.type.dtype]
        for arg in [q_or_cache, k_or_cache, *rest]:
            if arg is not cache:
                self._load(arg)
        if node.op == "append":
            self.kv_write += row if 0 <= given < capacity else 0
            return
        mesh = self.placed.mesh
        ctas = mesh.ranks * (self._copies(cache) if isinstance(self._at(cache).grid, Shard) else mesh.clusters)
        dealt = 1 if node.attr("shard") != "tokens" else mesh.ranks * (mesh.splits if node.attr("across") == "all" else 1)
        self.kv_loads += row * length * ctas // dealt
        self.kv_read[leaf.attr("name")] = row * length

    def _load(
        self, arg: Node, grid: bool = False, cluster: bool = False, of: Node | None = None, numel: int | None = None, by_one: bool = False
    ) -> None:
        """All CTAs load `arg`, if it is a leaf, what a grid exchange left in memory, or a view of one.

        grid, cluster: it is cut along the axis in passing, as `of` is. by_one: what all hold is stored by the first holder, who reads it.
        """
        source = _source(arg)
        mesh, placement = self.placed.mesh, self._at(arg)
        own = isinstance(placement.grid, Shard)
        grid, cluster = grid or own, cluster or isinstance(placement.cluster, Shard)
        copies = self._copies(arg if own or of is None else of) if grid else mesh.clusters
        size = self._numel(arg.type) if numel is None else numel
        key = (source, size, grid and mesh.clusters > 1, cluster and mesh.ranks > 1)
        if source.op in ("input", "weight"):
            size *= ITEMSIZE[source.type.dtype]
            name = source.attr("name")
            self.loads[key] = size * copies * (1 if cluster else mesh.ranks)
            self.unique[(source.op, name)] = max(size, self.unique.get((source.op, name), 0))
        elif source.op == "item" and self._stays_in_memory(source.args[0], source.attr("index")):
            holders = (copies if grid or not by_one else 1) * (1 if cluster or by_one else mesh.ranks)
            self.read.setdefault(source.args[0], {})[key] = size * holders

    def _stays_in_memory(self, node: Node, index: int) -> bool:
        """Whether a result of an exchange is read from global memory by who uses it: a gathered value, or the one split's."""
        return node.op == "grid_gather" or (node.op == "grid_reduce" and self._one_split(node.args[index]))

    def _one_split(self, arg: Node) -> bool:
        return isinstance(self._at(arg).split, Partial) and self.placed.mesh.splits == 1

    # ---- exchanges -----------------------------------------------------------------------------------------------------------------

    def _row(self, node: Node) -> ExchangeTraffic:
        if node.op.startswith("cluster"):
            return exchange_row(node, self._pushed(node))
        moved = sum(self._through_memory(node, arg) for arg in node.args) + sum(self.read.get(node, {}).values())
        return exchange_row(node, moved, sum(self._pushed_parts(arg) for arg in node.args if node.op == "grid_reduce"))

    def _pushed(self, node: Node) -> int:
        """Elements that all ranks push to peers."""
        mesh, sizes, stats, dim = self.placed.mesh, [], 0, node.attr("dim", 2)
        for arg in node.args:
            placement = self._at(arg)
            held = self._held(arg) // (mesh.ranks if isinstance(placement.cluster, Shard) else 1)
            beside = 2 * held // self._shape(arg.type)[2] if placement.cluster == Partial(ReduceOp.LSE) else 0
            beside = held if placement.cluster == Partial(ReduceOp.ARGMAX) else beside  # a value with each index
            together = placement.cluster == Partial(ReduceOp.ARGMAX) or dim < 2
            sizes.append(held + beside * together)
            stats += beside * (not together)
        return sum(rules.pushed(node.op, sizes, mesh.ranks, stats)) * mesh.clusters

    def _held(self, arg: Node) -> int:
        """Elements of a cluster's slice."""
        at = self._at(arg).grid
        slices = min(self.placed.mesh.groups, self._shape(arg.type)[at.dim]) if isinstance(at, Shard) else 1
        return self._numel(arg.type) // slices

    def _pushed_parts(self, arg: Node) -> int:
        """Elements that ranks push because each combined a part of the splits' terms."""
        mesh, size = self.placed.mesh, self._numel(arg.type)
        parts = isinstance(self._at(arg).split, Partial) and rules.in_parts(size, mesh.splits, mesh.ranks)
        return size * (mesh.ranks - 1) * mesh.clusters if parts else 0

    def _through_memory(self, node: Node, arg: Node) -> int:
        """Elements written to global memory for one value, and read from it at once."""
        size, mesh, at = self._numel(arg.type), self.placed.mesh, self._at(arg)
        written = size * (self._copies(arg) if isinstance(at.grid, Shard) else 1)
        if node.op == "grid_gather" or (node.op == "grid_reduce" and self._one_split(arg)):
            return written
        if at.grid == Partial(ReduceOp.ARGMAX):  # a pair of every holder of a term, read by the CTA that stores the index
            return 2 * size * mesh.ctas * 2
        if isinstance(at.split, Partial):  # o, and m and l of each head, by every cluster
            held = self._held(arg)
            return (held + 2 * held // self._shape(arg.type)[2]) * mesh.clusters + self._terms_read(arg)
        return size * mesh.clusters + size * (mesh.ctas if node.op == "grid_reduce" else 1)

    def _terms_read(self, arg: Node) -> int:
        """Elements of the splits' terms that all CTAs read: all of them, or (see `in_parts`) a part by each rank."""
        mesh, size, dim = self.placed.mesh, self._numel(arg.type), self._shape(arg.type)[2]
        if not rules.in_parts(size, mesh.splits, mesh.ranks):
            return mesh.splits * (size + 2 * size // dim) * mesh.ctas
        parts = [rules.heads_of_part(size, dim, mesh.ranks, rank) for rank in range(mesh.ranks)]
        return mesh.splits * (size + 2 * sum(last - first for first, last in parts)) * mesh.clusters


def _source(node: Node) -> Node:
    """What a chain of views starts from: a leaf, something computed, or a result of an exchange."""
    while node.op in VIEWS and not (node.op == "item" and node.args[0].is_collective):
        node = node.args[0]
    return node
