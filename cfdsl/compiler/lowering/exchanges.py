"""Collectives: pushes, waits and sums on a cluster; stores and a grid barrier through global memory."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.lowering.linear import flush
from cfdsl.compiler.lowering.pointwise import Where, expression
from cfdsl.compiler.lowering.values import Product, Scalar, Shared, Softmax, Vector
from cfdsl.compiler.plan import Exchange
from cfdsl.dsl.graph import Node
from cfdsl.dsl.placement import Partial, Replicate, Shard
from cfdsl.errors import NotLowered

ONE_ROUND_BYTES = 24 * 1024  # an all-reduce box larger than this is scattered and gathered instead


@dataclass(frozen=True)
class Slices:
    """A rank's slice of a vector: `blocks` blocks of `block` adjacent elements, `ranks` slices to a whole block."""

    blocks: int
    block: int

    @property
    def size(self) -> int:
        return self.blocks * self.block


def slices(b: Builder, node: Node, index: int = 0) -> Slices:
    """How the result `index` of `node`, placed R on the cluster, is cut along its last dimension over the ranks."""
    shape = b.local(node, index)
    return Slices(shape[1] if len(shape) == 3 else 1, shape[-1] // b.ranks)


def materialise(b: Builder, node: Node) -> Vector:
    """This rank's slice of `node` in shared memory."""
    value = b.values.get(node)
    if isinstance(value, Product):
        return flush(b, node)
    if isinstance(value, Vector):
        return value
    if node.op in ("item", "split_heads", "merge_heads") and node.args[0] in b.values:
        return materialise(b, node.args[0])
    size = 1
    for dim in b.local(node):
        size *= dim
    tree = expression(b, node, Where())
    out = b.buffer("vector", (size,))
    b.step("finish", f"{out}[i] = {tree}", reads=tree.buffers(), writes=(out,), src=node.src, tree=tree, out=out, rows=size)
    b.values[node] = Vector(out, size)
    return b.values[node]


def lower_item(b: Builder, node: Node) -> None:
    b.values[node] = b.values[(node.args[0], node.attr("index"))]


def lower_mean_square(b: Builder, node: Node) -> None:
    from cfdsl.compiler.lowering.pointwise import mean_square, row_tiles

    x = node.args[0]
    cols = b.local(x)[-1]
    if cols % 8:
        raise NotLowered(op="mean_square", why=f"a slice of {cols} elements is not a multiple of 8", src=node.src)
    b.values[node] = Scalar(mean_square(b, x, node, Where(), row_tiles(cols, b.config.warps)))


def lower_cluster_gather(b: Builder, node: Node) -> None:
    """One round: each rank pushes its slices to all ranks; one barrier counts the bytes of all values."""
    moved = []
    for i, arg in enumerate(node.args):
        cut = Slices(*_gather_cut(b, arg))
        moved.append((materialise(b, arg), cut, b.buffer(_name(arg), (cut.size * b.ranks,), peer_written=True), i))
    nbytes = sum(b.ranks * cut.size * 4 for _, cut, _, _ in moved)
    mbar = b.barrier("gather", nbytes)
    b.rendezvous()
    for source, cut, dst, _ in moved:
        _push(b, "gather_push", node, source.buffer, dst, mbar, n=cut.size, block=cut.block)
    payload = sum(cut.size * 4 for _, cut, _, _ in moved)
    _wait(b, node, mbar, "gather", None, "push", tuple(dst for _, _, dst, _ in moved), payload, payload * (b.ranks - 1), nbytes)
    for _, cut, dst, i in moved:
        b.values[(node, i)] = Vector(dst, cut.size * b.ranks)


def _gather_cut(b: Builder, arg: Node) -> tuple[int, int]:
    shape = b.local(arg)
    return (shape[1] if len(shape) == 3 else 1), shape[-1]


def lower_cluster_reduce(b: Builder, node: Node) -> None:
    """Scalars and sums: everybody's term to everybody, or scatter and gather if that is too much. Softmax: scatter, combine, gather."""
    kinds = {_monoid(b, arg) for arg in node.args}
    if kinds == {"lse"}:
        for i, arg in enumerate(node.args):
            combined = _scatter_lse(b, node, arg, slices(b, node, i))
            b.values[(node, i)] = _gather_again(b, node, combined, slices(b, node, i))
    elif all(isinstance(b.values.get(arg), Scalar) for arg in node.args):
        for i, arg in enumerate(node.args):
            b.values[(node, i)] = _reduce_scalar(b, node, b.values[arg])
    else:
        _reduce_vectors(b, node)


def _reduce_scalar(b: Builder, node: Node, value: Scalar) -> Scalar:
    box = b.buffer("box", (b.ranks,), peer_written=True)
    mbar = b.barrier("reduce", 4 * b.ranks)
    b.rendezvous()
    b.step("scalar_push", f"{value.variable} -> {box}[rank] on every rank", touches=(box,), src=node.src, value=value.variable, box=box, mbar=mbar)
    _wait(b, node, mbar, "reduce", "sum", "push", (box,), 4, 4 * (b.ranks - 1), 4 * b.ranks)
    out = b.variable("total")
    b.step("scalar_sum", f"{out} = sum of {box}, in rank order", reads=(box,), src=node.src, out=out, box=box)
    return Scalar(out)


def _reduce_vectors(b: Builder, node: Node) -> None:
    terms = [materialise(b, arg) for arg in node.args]
    total = sum(term.size for term in terms)
    if b.ranks * total * 4 > ONE_ROUND_BYTES and all(term.size % (4 * b.ranks) == 0 for term in terms):
        for i, term in enumerate(terms):
            cut = Slices(1, term.size // b.ranks)
            b.values[(node, i)] = _gather_again(b, node, _scatter_sum(b, node, term, cut), cut)
        return
    boxes = [b.buffer("box", (b.ranks, term.size), peer_written=True) for term in terms]
    mbar = b.barrier("reduce", b.ranks * total * 4)
    b.rendezvous()
    for term, box in zip(terms, boxes, strict=True):
        _push(b, "reduce_push", node, term.buffer, box, mbar, n=term.size, block=term.size)
    _wait(b, node, mbar, "reduce", "sum", "push", tuple(boxes), total * 4, total * 4 * (b.ranks - 1), b.ranks * total * 4)
    for i, (arg, term, box) in enumerate(zip(node.args, terms, boxes, strict=True)):
        out = b.buffer(_name(arg), (term.size,))
        b.step("reduce_sum", f"{out} = sum of {box}, in rank order", reads=(box,), writes=(out,), src=node.src, box=box, out=out, n=term.size)
        b.values[(node, i)] = Vector(out, term.size)


def lower_cluster_reduce_scatter(b: Builder, node: Node) -> None:
    for i, arg in enumerate(node.args):
        dim = node.attr("dim")
        if dim != len(arg.types[0].shape) - 1:
            raise NotLowered(op="cluster_reduce_scatter", why=f"dimension {dim} is not the last one", src=node.src)
        shape = b.local(node, i)
        cut = Slices(shape[1] if len(shape) == 3 else 1, shape[-1])
        if _monoid(b, arg) == "lse":
            b.values[(node, i)] = _scatter_lse(b, node, arg, cut)
        else:
            b.values[(node, i)] = _scatter_sum(b, node, materialise(b, arg), cut)


def _scatter_sum(b: Builder, node: Node, term: Vector, cut: Slices) -> Vector:
    box = b.buffer("box", (b.ranks, cut.size), peer_written=True)
    mbar = b.barrier("scatter", b.ranks * cut.size * 4)
    b.rendezvous()
    _push(b, "scatter_push", node, term.buffer, box, mbar, n=cut.size, block=cut.block)
    sent = cut.size * 4 * (b.ranks - 1)
    _wait(b, node, mbar, "reduce_scatter", "sum", "push", (box,), term.size * 4, sent, b.ranks * cut.size * 4)
    out = b.buffer("slice_sum", (cut.size,))
    b.step("reduce_sum", f"{out} = sum of {box}, in rank order", reads=(box,), writes=(out,), src=node.src, box=box, out=out, n=cut.size)
    return Vector(out, cut.size)


def _scatter_lse(b: Builder, node: Node, arg: Node, cut: Slices) -> Vector:
    value = b.values[arg]
    assert isinstance(value, Softmax)
    box = b.buffer("box_o", (b.ranks, cut.size), peer_written=True)
    box_ml = b.buffer("box_ml", (b.ranks, value.heads, 2), peer_written=True)
    nbytes = b.ranks * (cut.size * 4 + value.heads * 8)
    mbar = b.barrier("softmax", nbytes)
    b.rendezvous()
    _push(b, "scatter_push", node, value.out, box, mbar, n=cut.size, block=cut.block)
    b.step(
        "lse_push", f"{value.stats} -> {box_ml}[rank] on every rank", reads=(value.stats,), touches=(box_ml,), src=node.src,
        stats=value.stats, box=box_ml, mbar=mbar, heads=value.heads,
    )  # fmt: skip
    payload = value.heads * (value.dim + 2) * 4
    sent = (b.ranks - 1) * (cut.size * 4 + value.heads * 8)
    _wait(b, node, mbar, "reduce_scatter", "lse", "push", (box, box_ml), payload, sent, nbytes)
    out = b.buffer("attended", (cut.size,))
    b.step(
        "lse_combine", f"{out} = softmax terms of {box} combined, in rank order", reads=(box, box_ml), writes=(out,), src=node.src,
        box=box, stats=box_ml, out=out, heads=value.heads, block=cut.block, ranks=b.ranks,
    )  # fmt: skip
    return Vector(out, cut.size)


def _gather_again(b: Builder, node: Node, mine: Vector, cut: Slices) -> Vector:
    """The second round of an all-reduce: every rank's finished slice to every rank."""
    dst = b.buffer("whole", (cut.size * b.ranks,), peer_written=True)
    nbytes = b.ranks * cut.size * 4
    mbar = b.barrier("gather", nbytes)
    _push(b, "gather_push", node, mine.buffer, dst, mbar, n=cut.size, block=cut.block)
    _wait(b, node, mbar, "gather", None, "push", (dst,), cut.size * 4, cut.size * 4 * (b.ranks - 1), nbytes)
    return Vector(dst, cut.size * b.ranks)


def lower_grid_gather(b: Builder, node: Node) -> None:
    """Each holder stores its slice to a workspace; one grid barrier; then everybody may read all of it."""
    for i, arg in enumerate(node.args):
        size = 1
        for dim in arg.type.shape:
            size *= int(dim)
        workspace = b.workspace("ws_gather", (size,), "f32")
        stored = store(b, arg, workspace)
        b.values[(node, i)] = Shared(workspace, size)
        _barrier_exchange(b, node, "gather", None, "grid_barrier", workspace, stored * 4, size * 4, last=i == len(node.args) - 1)


def lower_grid_reduce_scatter(b: Builder, node: Node) -> None:
    """Each cluster adds its terms to a zeroed workspace with atomics; one grid barrier; each CTA reads its rows and zeroes them."""
    for i, arg in enumerate(node.args):
        value = b.values.get(arg)
        if not isinstance(value, Product) or node.attr("dim") != len(arg.type.shape) - 1:
            raise NotLowered(op="grid_reduce_scatter", why="its argument is not a partial product", src=node.src)
        size = int(arg.type.shape[-1])
        workspace = b.workspace("ws_sum", (size,), "f32")
        b.step(
            "atomic_add", f"{workspace}[row] += {value.expr}", reads=value.expr.buffers(), src=node.src,
            tree=value.expr, workspace=workspace, rows=value.rows, offset=value.tiles.row0,
        )  # fmt: skip
        share = share_of(b, size)
        b.values[(node, i)] = Shared(workspace, size, share)
        b.clears.append((workspace, share))
        rows = value.rows * 4
        _barrier_exchange(b, node, "reduce_scatter", "sum", "atomic", workspace, rows, b.shares[share].most * 4, last=i == len(node.args) - 1)


def share_of(b: Builder, rows: int) -> str:
    """The mesh-wide partition of `rows` rows that already exists, or one in granules of 8."""
    return b.share(rows, b.config.stage_bytes // 16, 2).name


def store(b: Builder, node: Node, dst: str) -> int:
    """A step that writes this rank's slice of `node` to the global vector `dst`; returns the number of elements it writes."""
    placement = b.placed.of(node)
    last = Shard(len(node.type.shape) - 1)
    if placement.grid == last and placement.cluster == last and f"rows{node.type.shape[-1]}" in b.shares:
        share = b.shares[f"rows{node.type.shape[-1]}"]
        tree = expression(b, node, Where())
        clears = tuple(ws for ws, name in b.clears if name == share.name)
        b.clears = [(ws, name) for ws, name in b.clears if name != share.name]
        b.step(
            "store_rows", f"{dst}[row] = {tree}", reads=tree.buffers(), src=node.src, tree=tree, dst=dst, share=share, clears=clears
        )
        return share.most
    return _store_vector(b, node, dst)


def _store_vector(b: Builder, node: Node, dst: str) -> int:
    placement = b.placed.of(node)
    local = b.local(node)
    shape = [int(dim) for dim in node.type.shape]
    block, whole = local[-1], shape[-1]
    n = 1
    for dim in local:
        n *= dim
    offset = Affine()
    if isinstance(placement.grid, Shard):
        stride = 1
        for dim in shape[placement.grid.dim + 1 :]:
            stride *= dim
        offset = b.grid_offset(shape[placement.grid.dim], stride)
    if isinstance(placement.cluster, Shard):
        if placement.cluster != Shard(len(shape) - 1):
            raise NotLowered(op="outputs", why=f"a value placed {placement} cannot be stored", src=node.src)
        offset = offset + Affine.of(rank=block)
    if isinstance(placement.cluster, Partial) or isinstance(placement.grid, Partial):
        raise NotLowered(op="outputs", why=f"a value placed {placement} cannot be stored", src=node.src)
    alone = isinstance(placement.cluster, Replicate)  # every rank has it: the first one stores
    fragment = _as_fragment(b, node, n, block)
    if fragment is not None:
        tree, tiles = fragment
        b.step("store_fragment", f"{dst} = {tree}", src=node.src, tree=tree, tiles=tiles, dst=dst, offset=offset, alone=alone)
        return n
    tree = expression(b, node, Where())
    b.step(
        "store_vector", f"{dst}[i + {offset}] = {tree}", reads=tree.buffers(), src=node.src, tree=tree, dst=dst, n=n,
        block=block if n > block else 0, stride=whole, offset=offset, alone=alone,
        everywhere=not isinstance(placement.grid, Shard),
    )  # fmt: skip
    return n


def _as_fragment(b: Builder, node: Node, n: int, block: int) -> tuple[Expr, object] | None:
    """A row that can be computed and stored 16 bytes at a time, without passing through shared memory."""
    from cfdsl.compiler.lowering.pointwise import ELEMENTWISE, row_tiles

    if n != block or n % 8 or node in b.values or node.op not in ELEMENTWISE:
        return None
    tiles = row_tiles(n, b.config.warps)
    tree = expression(b, node, Where(), tiles)
    return (tree, tiles) if not tree.buffers() else None


def _barrier_exchange(
    b: Builder, node: Node, op: str, monoid: str | None, algorithm: str, workspace: str, sent: int, received: int, last: bool
) -> None:
    step = len(b.steps)
    if last:
        step = b.step("grid_barrier", f"every CTA sees {workspace}", src=node.src)
        b.dirty.clear()
        b.seen.clear()
    b.exchanges.append(
        Exchange(f"{node.op}:{workspace}", "grid", op, monoid, algorithm, (workspace,), sent, sent, received, None, step, node.src)
    )


def _push(b: Builder, op: str, node: Node, source: str, dst: str, mbar: str, *, n: int, block: int) -> None:
    b.step(
        op, f"{source} -> {dst}, pushed to every rank", reads=(source,), touches=(dst,), src=node.src,
        source=source, dst=dst, mbar=mbar, n=n, block=block,
    )  # fmt: skip


def _wait(
    b: Builder, node: Node, mbar: str, op: str, monoid: str | None, algorithm: str, buffers: tuple[str, ...], payload: int, sent: int,
    received: int,
) -> None:  # fmt: skip
    step = b.step("wait", f"{received} bytes have landed: {', '.join(buffers)}", touches=buffers, src=node.src, mbar=mbar, fills=buffers)
    name = f"{node.op}:{','.join(buffers)}"
    b.exchanges.append(Exchange(name, "cluster", op, monoid, algorithm, buffers, payload, sent, received, mbar, step, node.src))


def _monoid(b: Builder, arg: Node) -> str:
    cluster = b.placed.of(arg).cluster
    return str(cluster.op) if isinstance(cluster, Partial) else "none"


def _name(node: Node) -> str:
    """A short name for the buffer that will hold the whole of `node`: that of the weight it was made with."""
    if node.op == "linear":
        weight = node.args[1]
        while weight.op != "weight":
            weight = weight.args[0]
        name = weight.attr("name")
        return name[1:] if name.startswith("w") and len(name) > 1 else name
    return node.op
