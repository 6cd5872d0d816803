"""Collectives over the grid: stores or atomic adds to a workspace in global memory, and a grid barrier."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.lowering.cluster import wait_for
from cfdsl.compiler.lowering.stores import share_of, store
from cfdsl.compiler.lowering.values import Best, Product, Shared, SharedBest, SharedTerms, Softmax, Vector
from cfdsl.compiler.plan import Exchange
from cfdsl.dsl.graph import Node
from cfdsl.dsl.placement import R, Replicate, Shard
from cfdsl.errors import NotLowered


def lower_grid_gather(b: Builder, node: Node) -> None:
    """Each holder stores its slice to a workspace; one grid barrier; then everybody may read all of it."""
    moved = _Moved()
    for i, arg in enumerate(node.args):
        size = prod(int(dim) for dim in arg.type.shape)
        workspace = b.workspace("ws_gather", (size,), "f32")
        stored = store(b, arg, workspace)
        b.values[(node, i)] = Shared(workspace, size)
        moved.add(workspace, stored * 4, size * 4)
    _barrier_exchange(b, node, "gather", None, "grid_barrier", moved)


def lower_grid_reduce(b: Builder, node: Node) -> None:
    """Softmax terms of clusters that split tokens, or pairs of argmax: each CTA stores its own; one grid barrier; readers combine them."""
    if all(isinstance(b.values.get(arg), Best) for arg in node.args):
        _reduce_pairs(b, node)
        return
    moved = _Moved()
    for i, arg in enumerate(node.args):
        value = b.values.get(arg)
        if b.placed.of(arg).split == R:
            raise NotLowered(op="grid_reduce", why="only softmax terms are lowered", advice="use grid_reduce_scatter", src=node.src)
        if isinstance(value, Vector):  # one split: the term is the value
            lower_grid_gather(b, node)
            return
        if not isinstance(value, Softmax):
            raise NotLowered(op="grid_reduce", why="indices and softmax terms do not share an exchange", src=node.src)
        _, heads, dim = (int(size) for size in arg.type.shape)
        outs, stats = b.workspace("ws_terms", (b.splits * heads * dim,), "f32"), b.workspace("ws_stats", (b.splits * heads * 2,), "f32")
        head0 = b.grid_offset(heads, 1) if isinstance(b.placed.of(arg).grid, Shard) else Affine()
        b.step(
            "store_terms", f"{outs}[split], {stats}[split] = {value.out}, {value.stats}", reads=(value.out, value.stats), src=node.src,
            outs=outs, stats=stats, source=value.out, source_stats=value.stats, heads=value.heads, block=value.dim, dim=dim,
            all_heads=heads, head0=head0,
        )  # fmt: skip
        b.values[(node, i)] = SharedTerms(outs, stats, b.splits, heads, dim)
        readers = b.ranks if _spread(b, heads * dim) else 1
        moved.add(outs, (value.heads * value.dim + 2 * value.heads) * 4, b.splits * heads * (dim + 2) * 4 // readers)
    _barrier_exchange(b, node, "reduce", "lse", "grid_barrier", moved)
    for i in range(len(node.args)):
        terms = b.values[(node, i)]
        if _spread(b, terms.heads * terms.dim):
            b.values[(node, i)] = _push_terms(b, node, terms)


def _spread(b: Builder, size: int) -> bool:
    """Whether each rank combines a part of the terms and pushes it to its peers, rather than every CTA all of them.

    With many splits the terms are many times what they make, and all CTAs read them at once.
    """
    return b.splits > 2 and b.ranks > 1 and size % (4 * b.ranks) == 0


def _push_terms(b: Builder, node: Node, terms: SharedTerms) -> Vector:
    size = terms.heads * terms.dim
    mine = size // b.ranks
    dst = b.buffer("attended", (size,), peer_written=True)
    mbar = b.barrier("terms", size * 4)
    b.rendezvous()
    b.step(
        "terms_push", f"{dst} = terms of {terms.outs} combined, 1/{b.ranks} by each rank, pushed to every rank", touches=(dst,),
        src=node.src, outs=terms.outs, stats=terms.stats, splits=terms.splits, heads=terms.heads, dim=terms.dim, dst=dst, mbar=mbar,
        n=mine, block=mine,
    )  # fmt: skip
    wait_for(b, node, mbar, "gather", None, "push", (dst,), mine * 4, mine * 4 * (b.ranks - 1), size * 4)
    return Vector(dst, size)


def _reduce_pairs(b: Builder, node: Node) -> None:
    moved = _Moved()
    for i, arg in enumerate(node.args):
        pair: Best = b.values[arg]
        workspace = b.workspace("ws_best", (2 * b.placed.mesh.ctas,), "i32")
        b.step("publish", f"{workspace}[CTA] = {pair.key}, {pair.index}", src=node.src, workspace=workspace, key=pair.key, index=pair.index)
        b.values[(node, i)] = SharedBest(workspace)
        moved.add(workspace, 8, 8 * b.placed.mesh.ctas)
    _barrier_exchange(b, node, "reduce", "argmax", "grid_barrier", moved)


def lower_grid_reduce_scatter(b: Builder, node: Node) -> None:
    """Each cluster adds its terms to a zeroed workspace with atomics; one grid barrier; each CTA reads its rows and zeroes them."""
    moved = _Moved()
    for i, arg in enumerate(node.args):
        value, cluster = b.values.get(arg), b.placed.of(arg).cluster
        if not isinstance(value, Product) or len(arg.type.shape) != 2 or node.attr("dim") != 1:
            raise NotLowered(op="grid_reduce_scatter", why="its argument is not a partial product", src=node.src)
        size = int(arg.type.shape[-1])
        workspace = b.workspace("ws_sum", (size,), "f32")
        b.step(
            "atomic_add", f"{workspace}[row] += {value.expr}", reads=value.expr.buffers(), src=node.src, tree=value.expr,
            workspace=workspace, rows=value.rows, offset=value.tiles.row0, alone=isinstance(cluster, Replicate),
        )  # fmt: skip
        share = share_of(b, size)
        b.values[(node, i)] = Shared(workspace, size, share)
        b.clears.append((workspace, share))
        moved.add(workspace, value.rows * 4, b.shares[share].most * 4)
    _barrier_exchange(b, node, "reduce_scatter", "sum", "atomic", moved)


@dataclass
class _Moved:
    """What one exchange through global memory moves, for all its values: workspaces, bytes a rank writes, and bytes it reads back."""

    workspaces: list[str] = field(default_factory=list)
    sent: int = 0
    received: int = 0

    def add(self, workspace: str, sent: int, received: int) -> None:
        self.workspaces.append(workspace)
        self.sent += sent
        self.received += received


def _barrier_exchange(b: Builder, node: Node, op: str, monoid: str | None, algorithm: str, moved: _Moved) -> None:
    """One grid barrier after all values are stored: then every CTA sees them."""
    values = tuple(moved.workspaces)
    number = 1 + sum(step.op == "grid_barrier" for step in b.steps)
    step = b.step("grid_barrier", f"every CTA sees {', '.join(values)}", src=node.src, number=number)
    b.synced()
    name = f"{node.op}:{','.join(values)}"
    b.exchanges.append(Exchange(name, "grid", op, monoid, algorithm, values, moved.sent, moved.sent, moved.received, None, step, node.src))
