"""Collectives over the grid: stores or atomic adds to a workspace in global memory, and a grid barrier."""

from __future__ import annotations

from math import prod

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.lowering.cluster import wait_for
from cfdsl.compiler.lowering.stores import share_of, store
from cfdsl.compiler.lowering.values import Best, GlobalBest, GlobalTerms, GlobalVector, Product, Softmax, Vector
from cfdsl.compiler.plan import Exchange
from cfdsl.dsl.exchange import in_parts
from cfdsl.dsl.graph import Node
from cfdsl.dsl.placement import R, Replicate, Shard
from cfdsl.errors import NotLowered


def lower_grid_gather(b: Builder, node: Node) -> None:
    """Each holder stores its slice to a workspace; one grid barrier; then everybody may read all of it."""
    moved: list[str] = []
    for i, arg in enumerate(node.args):
        size = prod(int(dim) for dim in arg.type.shape)
        workspace = b.workspace("ws_gather", (size,), "f32")
        store(b, arg, workspace)
        b.values[(node, i)] = GlobalVector(workspace, size)
        moved.append(workspace)
    _barrier_exchange(b, node, "gather", None, "grid_barrier", moved)


def lower_grid_reduce(b: Builder, node: Node) -> None:
    """Softmax terms of clusters that split tokens, or pairs of argmax: each CTA stores its own; one grid barrier; readers combine them."""
    if all(isinstance(b.values.get(arg), Best) for arg in node.args):
        _reduce_pairs(b, node)
        return
    moved: list[str] = []
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
        b.values[(node, i)] = GlobalTerms(outs, stats, b.splits, heads, dim)
        moved += [outs, stats]
    _barrier_exchange(b, node, "reduce", "lse", "grid_barrier", moved)
    for i in range(len(node.args)):
        terms = b.values[(node, i)]
        if in_parts(terms.heads * terms.dim, b.splits, b.ranks):
            b.values[(node, i)] = _push_terms(b, node, terms)


def _push_terms(b: Builder, node: Node, terms: GlobalTerms) -> Vector:
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
    wait_for(b, node, mbar, "gather", None, (dst,), mine * 4, mine * 4 * (b.ranks - 1), size * 4)
    return Vector(dst, size)


def _reduce_pairs(b: Builder, node: Node) -> None:
    moved: list[str] = []
    for i, arg in enumerate(node.args):
        pair: Best = b.values[arg]
        workspace = b.workspace("ws_best", (2 * b.placed.mesh.ctas,), "i32")
        b.step("publish", f"{workspace}[CTA] = {pair.key}, {pair.index}", src=node.src, workspace=workspace, key=pair.key, index=pair.index)
        b.values[(node, i)] = GlobalBest(workspace)
        moved.append(workspace)
    _barrier_exchange(b, node, "reduce", "argmax", "grid_barrier", moved)


def lower_grid_reduce_scatter(b: Builder, node: Node) -> None:
    """Each cluster adds its terms to a zeroed workspace with atomics; one grid barrier; each CTA reads its rows and zeroes them."""
    moved: list[str] = []
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
        b.values[(node, i)] = GlobalVector(workspace, size, share)
        b.clears.append((workspace, share))
        moved.append(workspace)
    _barrier_exchange(b, node, "reduce_scatter", "sum", "atomic", moved)


def _barrier_exchange(b: Builder, node: Node, op: str, monoid: str | None, algorithm: str, workspaces: list[str]) -> None:
    """One grid barrier after all values are stored: then every CTA sees them. What it moves is counted when all steps are there."""
    values = tuple(workspaces)
    number = 1 + sum(step.op == "grid_barrier" for step in b.steps)
    step = b.step("grid_barrier", f"every CTA sees {', '.join(values)}", src=node.src, number=number)
    b.synced()
    name = f"{node.op}:{','.join(values)}"
    b.exchanges.append(Exchange(name, "grid", op, monoid, algorithm, values, 0, 0, 0, None, step, node.src))
