"""What one CTA of a placed graph moves, in program order: the bytes it streams, and what happens between two streams.

Bytes are those of the busiest CTA, and the unique ones of the whole launch; the difference are loads that neighbours repeat.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from cfdsl.dsl.graph import GRID_COLLECTIVES, ITEMSIZE, VIEWS, Dim, Graph, Node
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.place_rules.site import over_all_ctas
from cfdsl.dsl.placement import AxisPlacement, Mesh, Partial, Placement, R, ReduceOp, Shard

DEFAULT_SIZES: Mapping[str, int] = {"tokens": 4096}
POINTWISE = ("add", "mul", "silu", "gelu", "cast", "rms_norm")


@dataclass(frozen=True)
class Load:
    """Bytes that come from global memory. `cta`: of the busiest CTA; `unique`: of the launch, each byte once; `streamed`: by the ring.

    `asked`: what the CTA itself asks the L2 for, where a multicast of its peers delivers the rest; None: all of it.
    `copies`: how many CTAs load each byte; all but one find it in the L2.
    """

    name: str
    cta: int
    unique: int
    streamed: bool = True
    asked: int | None = None
    copies: int = 1


@dataclass(frozen=True)
class Pause:
    """Something that consumers do while they eat no tile.

    kind      block (a sum over the CTA's warps), round (read what others wrote), cluster or grid (a collective), multicast (inputs that
              ranks ask for in parts)
    payload   cluster: bytes a rank pushes to its peers; grid: bytes a CTA writes and reads back
    heads     block: heads of the cluster, each of which is a pass over terms
    """

    kind: str
    what: str
    payload: int = 0
    heads: int = 1


@dataclass(frozen=True)
class Traffic:
    """Events of the busiest CTA in program order, and sums over the launch."""

    events: tuple[Load | Pause, ...]
    mesh: Mesh
    written: int

    @cached_property
    def loads(self) -> tuple[Load, ...]:
        return tuple(event for event in self.events if isinstance(event, Load))

    @cached_property
    def unique_bytes(self) -> int:
        """Bytes that device memory must move once: weights, caches, inputs, outputs."""
        return sum(load.unique for load in self.loads) + self.written

    @cached_property
    def cta_bytes(self) -> int:
        """Bytes that the busiest CTA takes in."""
        return sum(load.cta for load in self.loads)

    @cached_property
    def repeated_bytes(self) -> float:
        """Those of them that another CTA loads from memory."""
        return sum(load.cta * (1 - 1 / load.copies) for load in self.loads)

    @property
    def l2_bytes(self) -> int:
        """Bytes that all CTAs together ask the L2 for, repeats counted."""
        return sum(load.cta if load.asked is None else load.asked for load in self.loads) * self.mesh.ctas

    @property
    def streams(self) -> bool:
        """Whether there is a load stream for a ring to hold."""
        return any(load.streamed for load in self.loads)

    @property
    def waits_for_grid(self) -> bool:
        """Whether all clusters must run at once: the graph has a grid collective."""
        return any(isinstance(event, Pause) and event.kind == "grid" for event in self.events)

    @property
    def dsmem_bytes(self) -> int:
        """Bytes pushed between the CTAs of clusters."""
        return sum(event.payload for event in self.events if isinstance(event, Pause) and event.kind == "cluster") * self.mesh.ctas


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int:
    """A dimension's size; a symbol without one counts as 1 (a table of which a call reads one row)."""
    return dim if isinstance(dim, int) else sizes.get(dim, DEFAULT_SIZES.get(dim, 1))


def streams(graph: Graph) -> bool:
    """Whether the graph has weights or a cache to stream: without, its kernel has no ring."""
    return any(node.op in ("linear", "attend") for node in graph.nodes)


def local_elements(shape: tuple[Dim, ...], placement: Placement, mesh: Mesh, sizes: Mapping[str, int], over_all: bool = False) -> int:
    """Elements of the largest slice that a CTA holds. over_all: the grid's slices go to all clusters, and not to groups of splits."""
    extent = [size_of(dim, sizes) for dim in shape]
    for axis, holders in ((placement.grid, mesh.clusters if over_all else mesh.groups), (placement.cluster, mesh.ranks)):
        if isinstance(axis, Shard):
            extent[axis.dim] = ceil(extent[axis.dim] / holders)
    return prod(extent)


def traffic(
    placed: PlacedGraph, sizes: Mapping[str, int] | None = None, stage_bytes: int = 16384, multicast: Collection[str] = ()
) -> Traffic:
    """Walk a placed graph. `sizes` gives symbolic dimensions ("tokens" defaults to 4096), `multicast` the arguments that come that way."""
    walk = _Walk(placed, sizes or {}, stage_bytes, multicast)
    for node in placed.graph.nodes:
        walk.visit(node)
    written = sum(walk.whole(node) * ITEMSIZE[placed.graph.output_dtype(node)] for _, node in placed.graph.outputs)
    return Traffic(tuple(walk.events), placed.mesh, written)


class _Walk:
    def __init__(self, placed: PlacedGraph, sizes: Mapping[str, int], stage_bytes: int, multicast: Collection[str]) -> None:
        self.placed, self.mesh, self.sizes, self.stage_bytes = placed, placed.mesh, sizes, stage_bytes
        self.multicast = multicast
        self.events: list[Load | Pause] = []
        self.seen: set[str] = set()
        self.multiplied: Node | None = None
        self.users: dict[Node, list[Node]] = {}
        for node in placed.graph.nodes:
            for arg in node.args:
                self.users.setdefault(arg, []).append(node)

    def whole(self, node: Node) -> int:
        return prod(size_of(dim, self.sizes) for dim in node.type.shape)

    def visit(self, node: Node) -> None:
        if node.op in ("input", "weight"):
            self._small(node)
        elif node.op == "linear":
            heads = self._joins_last_product(node.args[0])
            self._load(node.args[1], self._weight_elements(node))
            self.events.append(Pause("block", "linear", heads=max(heads, self._heads(node))))
        elif node.op == "attend":
            self._load(node.args[1], self._cache_elements(node), tensors=2)
            self.events += [Pause("block", "attend", heads=self._heads(node))] * 2  # the new token and this warp's lanes; then the warps
        elif node.op == "rope" and self.events and is_block(self.events[-1], "rope"):
            pass  # q and k are rotated together
        elif node.op in ("rope", "mean_square", "argmax") or (node.op == "rms_norm" and len(node.args) == 2):
            self.events.append(Pause("block", node.op, heads=self._heads(node)))
        elif node.is_collective:
            self._collective(node)

    def _heads(self, node: Node) -> int:
        """Heads (dimension 1 of three) of a value that a cluster has."""
        shape = node.types[0].shape
        return local_elements(shape[1:2], self._grid_only(node), self.mesh, self.sizes) if len(shape) == 3 else 1

    def _grid_only(self, node: Node) -> Placement:
        return Placement(Shard(0) if self.placed.placements[node][0].grid == Shard(1) else R)

    def _joins_last_product(self, x: Node) -> int:
        """Products of one vector (q, k, v) follow each other without a pause: their sums are waited for together. Heads so far."""
        last = next((i for i in reversed(range(len(self.events))) if isinstance(self.events[i], Pause)), None)
        heads = 1
        if x is self.multiplied and last is not None and is_block(event := self.events[last], "linear"):
            assert isinstance(event, Pause)
            heads = event.heads
            del self.events[last]
        self.multiplied = x
        return heads

    def _load(self, operand: Node, elements: int, tensors: int = 1) -> None:
        leaf = leaf_of(operand)
        itemsize = ITEMSIZE[leaf.type.dtype] * tensors
        name, whole = leaf.attr("name"), self.whole(leaf)
        unique = 0 if name in self.seen else whole * itemsize
        self.seen.add(name)
        self.events.append(Load(name, elements * itemsize, unique, copies=max(1, elements * self.mesh.ctas // whole) if whole else 1))

    def _weight_elements(self, node: Node) -> int:
        """Of the busiest CTA: rows (shard="out") or columns ("in") cut over the cluster, heads or all rows over the grid."""
        weight, out = node.args[1], self.placed.of(node)
        at = self.placed.of(weight)
        local = local_elements(weight.type.shape, at, self.mesh, self.sizes)
        shard = node.attr("shard")
        if shard is None or isinstance(at.cluster, Shard):
            return local
        cut = size_of(weight.type.shape[-1 if shard == "in" else -2], self.sizes)
        holders = self.mesh.ranks
        if not isinstance(at.grid, Shard) and isinstance(out.grid, Shard):
            holders *= self.mesh.clusters
        return local // cut * ceil(cut / holders)

    def _cache_elements(self, node: Node) -> int:
        """Of the busiest CTA, keys alone: tokens are dealt to ranks (of all splits, if across them) in tiles of a stage."""
        cache = node.args[1]
        batch, heads, tokens, dim = (size_of(size, self.sizes) for size in cache.type.shape)
        at = self.placed.of(cache)
        if isinstance(at.grid, Shard):
            sharded = [batch, heads]
            sharded[at.grid.dim] = ceil(sharded[at.grid.dim] / self.mesh.groups)
            batch, heads = sharded
        if node.attr("shard") == "tokens":
            tile = max(1, self.stage_bytes // (2 * dim * ITEMSIZE[leaf_of(cache).type.dtype]))
            holders = self.mesh.ranks * (self.mesh.splits if node.attr("across") == "all" else 1)
            tokens = min(tokens, ceil(ceil(tokens / tile) / holders) * tile)
        return batch * heads * tokens * dim

    def _small(self, leaf: Node) -> None:
        """Inputs, norm weights, tables: read by ordinary loads, all of it by each CTA unless its user holds a slice."""
        users = self.users.get(leaf, [])
        if any(user.op == "linear" and leaf_of(user.args[1]) is leaf for user in self._readers(leaf)):
            return
        held, whole = max((self._slice_read(leaf, user) for user in users), default=0), self.whole(leaf)
        if users and all(user.op == "rope" and leaf in user.args[1:3] for user in users):  # a table: one row per sequence is read
            held = whole = size_of(users[0].type.shape[0], self.sizes) * size_of(leaf.type.shape[-1], self.sizes)
        if users and all(user.op == "embedding" and leaf is user.args[1] for user in users):  # likewise
            held = whole = self.whole(users[0])
        itemsize = ITEMSIZE[leaf.type.dtype]
        name = leaf.attr("name")
        asked = ceil(held * itemsize / self.mesh.ranks) if name in self.multicast else None
        self.events.append(Load(name, held * itemsize, whole * itemsize, streamed=False, asked=asked))
        if leaf.op == "input" and not any(isinstance(event, Pause) for event in self.events):
            self.events.append(Pause("round", name))  # the inputs are read together: one round for all
        if name in self.multicast and Pause("multicast", "inputs") not in self.events:
            self.events.append(Pause("multicast", "inputs"))  # they are delivered together too

    def _readers(self, node: Node) -> list[Node]:
        found = []
        for user in self.users.get(node, []):
            found += self._readers(user) if user.op in VIEWS else [user]
        return found

    def _slice_read(self, leaf: Node, user: Node) -> int:
        at = self.placed.of(user) if user.op in (*POINTWISE, "slice_grid", "slice_cluster") else Placement()
        lead = len(user.types[0].shape) - len(leaf.type.shape)  # a 1-D weight lies along the last dimension

        def moved(axis: AxisPlacement) -> AxisPlacement:
            sliced = isinstance(axis, Shard) and axis.dim >= lead and leaf.type.shape[axis.dim - lead] != 1
            return Shard(axis.dim - lead) if isinstance(axis, Shard) and sliced else R

        return local_elements(leaf.type.shape, Placement(moved(at.grid), moved(at.cluster)), self.mesh, self.sizes)

    def _collective(self, node: Node) -> None:
        at = [self.placed.placements[arg][0] for arg in node.args]
        shapes = [arg.types[0].shape for arg in node.args]
        held = sum(4 * local_elements(arg.types[0].shape, placement, self.mesh, self.sizes, over_all_ctas(arg))
                   for arg, placement in zip(node.args, at))  # fmt: skip
        if node.op in GRID_COLLECTIVES:
            self.events.append(Pause("grid", node.op, held + sum(self._read_back(*value) for value in zip(shapes, at))))
            return
        pushed = _pushed(node.op, held, self.mesh.ranks)
        for shape, placement in zip(shapes, at):
            if isinstance(placement.cluster, Partial) and placement.cluster.op is ReduceOp.LSE:  # everybody needs all (max, sum)
                pushed += 8 * local_elements(shape[:-1], placement, self.mesh, self.sizes) * (self.mesh.ranks - 1)
        self.events.append(Pause("cluster", node.op, pushed))
        heads = max(self._heads(arg) for arg in node.args)
        self.events.append(Pause("block", node.op, heads=heads))  # the terms are put together, then everybody may read

    def _read_back(self, shape: tuple[Dim, ...], at: Placement) -> int:
        """Bytes that every CTA reads of one value of a grid collective; of an open softmax all splits' o, and m and l of each head."""
        whole = prod(size_of(dim, self.sizes) for dim in shape)
        if isinstance(at.split, Partial):
            return 4 * self.mesh.splits * (whole + 2 * whole // size_of(shape[-1], self.sizes))
        return 4 * whole


def is_block(event: Load | Pause, what: str) -> bool:
    """Whether an event is the pause of a sum over warps in `what`."""
    return isinstance(event, Pause) and event.kind == "block" and event.what == what


def _pushed(op: str, held: int, ranks: int) -> int:
    """Bytes a rank pushes: what it holds to each peer, or (scatter) to each peer its part of it."""
    to_all = held * (ranks - 1)
    return to_all // ranks if op == "cluster_reduce_scatter" else to_all


def leaf_of(node: Node) -> Node:
    """The input, weight or cache that a chain of views and appends starts from."""
    while node.args and (node.op in VIEWS or node.op == "append"):
        node = node.args[0]
    return node
