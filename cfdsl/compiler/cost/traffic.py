"""What one CTA of a placed graph moves, in program order: the bytes it streams, and what happens between two streams.

Bytes are those of the busiest CTA, and the unique ones of the whole launch; the difference are loads that neighbours repeat.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import ceil, prod

from cfdsl.compiler.cost.moves import Load, Pause, Traffic, local_elements, size_of, slice_read
from cfdsl.compiler.cost.pauses import Pauses, heads_of
from cfdsl.dsl.graph import ITEMSIZE, VIEWS, Graph, Node, leaf_of
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.placement import Shard


def streams(graph: Graph) -> bool:
    """Whether the graph has weights or a cache to stream: without, its kernel has no ring."""
    return any(node.op in ("linear", "attend") for node in graph.nodes)


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
        self.pauses = Pauses(placed, sizes, self.users)

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
            self.events += self.pauses.of(node)

    def _heads(self, node: Node) -> int:
        return heads_of(self.placed, node, self.sizes)

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
        held, whole = max((slice_read(self.placed, leaf, user, self.sizes) for user in users), default=0), self.whole(leaf)
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


def is_block(event: Load | Pause, what: str) -> bool:
    """Whether an event is the pause of a sum over warps in `what`."""
    return isinstance(event, Pause) and event.kind == "block" and event.what == what
