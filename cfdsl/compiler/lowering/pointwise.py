"""Elementwise nodes: turned into expressions at the place, and in the coordinates, where somebody needs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import CHUNK, RowTiles
from cfdsl.compiler.lowering.embedding import looked_up
from cfdsl.compiler.lowering.products import flush
from cfdsl.compiler.lowering.values import GlobalTerms, GlobalVector, Product, Scalar, Vector
from cfdsl.dsl.graph import POINTWISE, VIEWS, Node
from cfdsl.dsl.placement import Placement, Shard
from cfdsl.errors import NotLowered

ELEMENTWISE = (*POINTWISE, "rms_norm", "embedding")


@dataclass(frozen=True)
class Where:
    """Element i of a consumer is element `at + map(i)` of a node's slice: blocks of `block` elements lie `stride` apart."""

    at: Affine = Affine()
    block: int = 0
    stride: int = 0

    def moved(self, by: Affine) -> Where:
        return replace(self, at=self.at + by)


def expression(b: Builder, node: Node, where: Where, tiles: RowTiles | None = None) -> Expr:
    """The tree that computes `node`'s slice at `where`. `tiles`: the caller wants a fragment of that geometry."""
    value = b.values.get(node)
    if where.block and (tiles or isinstance(value, (Product, Vector)) or node.op == "rms_norm"):
        raise NotLowered(op=node.word, why="it is needed in blocks of elements, and only launch arguments can be read so", src=node.src)
    if isinstance(value, Product) and (tiles or where != Where()):
        value = flush(b, node)
    known = _known(b, node, value, where, tiles)
    if known is not None:
        return known
    if node.op in ("input", "weight"):
        return Expr("leaf", node.attr("name"), where.at, block=where.block, stride=where.stride)
    if node.op == "embedding":
        row = looked_up(b, node)
        return replace(row, offset=row.offset + where.at, block=where.block, stride=where.stride)
    if node.op in VIEWS:
        place = through_view(b, node, where)
        first = place.at.const - where.at.const
        if tiles and first % CHUNK:
            why = f"it is read {CHUNK} elements at a time, and starts at element {first} of what it is cut from"
            raise NotLowered(op="split", why=why, src=node.src)
        return expression(b, node.args[0], place, tiles)
    return _computed(b, node, where, tiles)


def _known(b: Builder, node: Node, value: object, where: Where, tiles: RowTiles | None) -> Expr | None:
    """The tree that reads a value which a step has left somewhere; None where there is none that is read element by element."""
    if isinstance(value, Product):
        return value.expr
    if isinstance(value, Vector):
        return Expr("smem", value.buffer, where.at)
    if isinstance(value, Scalar):
        return Expr("var", value.variable)
    if isinstance(value, GlobalTerms):
        if tiles is None or where != Where():
            why = "softmax terms of several clusters are only combined where a product reads all of them"
            raise NotLowered(op=node.word, why=why, src=node.src)
        terms = (value.splits, value.heads, value.dim)
        return Expr("terms", value.outs, args=(Expr("var", value.stats),), terms=terms)
    if isinstance(value, GlobalVector):
        at = where.at
        if value.share:
            at = at + Affine.of(**{b.shares[value.share].symbol: b.shares[value.share].granule})
        return Expr("leaf", value.workspace, at, block=where.block, stride=where.stride)
    return None


def _computed(b: Builder, node: Node, where: Where, tiles: RowTiles | None) -> Expr:
    """The tree of an elementwise node over those of its arguments."""
    if node.op == "cast":
        inner = expression(b, node.args[0], where, tiles)
        return inner if node.attr("dtype") == "f32" else Expr("cast", node.attr("dtype"), args=(inner,))
    if node.op == "rms_norm":
        return normalised(b, node, where, tiles)
    if node.op == "gelu" and not node.attr("tanh"):
        raise NotLowered(op="gelu", why="only its tanh approximation is lowered", advice="write gelu(x, tanh=True)", src=node.src)
    if node.op in ("silu", "gelu"):
        return Expr(node.op, args=(expression(b, node.args[0], where, tiles),))
    if node.op in ("add", "mul"):
        return Expr(node.op, args=tuple(operand(b, node, arg, where, tiles) for arg in node.args))
    raise NotLowered(op=node.word, why="its value is not available elementwise here", src=node.src)


def operand(b: Builder, node: Node, arg: Node, where: Where, tiles: RowTiles | None) -> Expr:
    """One argument of an elementwise node, from the slice fetched early if there is one."""
    early = b.values.get((node, arg))
    if isinstance(early, Vector) and where == Where():
        return Expr("smem", early.buffer)
    return expression(b, arg, aligned(b, node, arg, where), tiles)


def through_view(b: Builder, node: Node, where: Where) -> Where:
    """The same elements, in the coordinates of a view's argument."""
    if node.op == "slice_cluster":
        dim = node.attr("dim")
        if dim != len(node.type.shape) - 1:
            raise NotLowered(op="shard", why=f"dimension {dim} is not the last one", src=node.src)
        return cut(b, node, node.args[0], where)
    if node.op == "slice_grid":
        return cut(b, node, node.args[0], where)
    if node.op == "item" and node.args[0].op == "split":
        return piece(b, node.args[0], node.attr("index"), where)
    return where  # the same flat elements


def piece(b: Builder, node: Node, index: int, where: Where) -> Where:
    """The elements of piece `index` of a split, in the coordinates of what was split: a run, or one in each row before its dimension."""
    dim, sizes = node.attr("dim"), node.attr("sizes")
    have = b.local(node.args[0])
    row = prod(have[dim + 1 :])
    before = Affine.of(sum(sizes[:index]) * row)
    if prod(have[:dim]) == 1:
        return where.moved(before)
    if where != Where():
        raise NotLowered(op="split", why=f"a part of a piece along dimension {dim} is not a run of elements", src=node.src)
    return Where(before, sizes[index] * row, have[dim] * row)


def aligned(b: Builder, node: Node, arg: Node, where: Where) -> Where:
    """A replicated operand meets a sharded one: take the slice of it that this CTA works on."""
    if isinstance(b.values.get(arg), Scalar):
        return where
    if b.spread(node):
        rows, theirs = int(node.type.shape[-1]), b.placed.of(arg)
        if b.spread(arg) and prod(arg.type.shape) == prod(node.type.shape) == rows:
            return where
        if theirs != Placement() or prod(arg.type.shape) != rows or prod(node.type.shape) != rows:
            why = f"an operand of shape {list(arg.type.shape)} placed {theirs} meets rows spread over all CTAs"
            raise NotLowered(op=node.word, why=why, src=node.src)
        share = b.shares[f"rows{rows}"]
        return where.moved(Affine.of(**{share.symbol: share.granule}))
    return cut(b, node, arg, where)


def cut(b: Builder, node: Node, arg: Node, where: Where) -> Where:
    """Element i of this CTA's slice of `node`, in the coordinates of its slice of `arg`: a larger one, or one that is broadcast.

    Leading dimensions of size 1 do not matter. Otherwise the slice is a run of `arg`, or equal runs at equal distances.
    """
    mine, theirs = b.placed.placements[node][0], b.placed.of(arg)
    have, missing = b.local(arg), len(node.type.shape) - len(arg.type.shape)
    spread = [whole == size for whole, size in zip(arg.type.shape, node.type.shape[missing:])]
    want = tuple(size if full else 1 for size, full in zip(b.local(node)[missing:], spread))
    if prod(want) != prod(b.local(node)):
        raise NotLowered(op=node.word, why=f"an operand of shape {list(arg.type.shape)} is broadcast over elements", src=node.src)
    at, inner = Affine(), [dim for dim in range(len(want)) if want[dim] != have[dim]]
    for axis in ("grid", "cluster"):
        placed = getattr(mine, axis)
        dim = placed.dim - missing if isinstance(placed, Shard) else -1
        if dim >= 0 and spread[dim] and getattr(theirs, axis) != Shard(dim):
            row = prod(have[dim + 1 :])
            at = at + (b.grid_offset(int(arg.type.shape[dim]), row) if axis == "grid" else Affine.of(rank=want[dim] * row))
    if not inner or prod(want[: inner[-1]]) == 1:
        return where.moved(at)
    if where != Where() or any(prod(want[:dim]) != 1 for dim in inner[:-1]):
        raise NotLowered(op=node.word, why=f"its slice of an operand of shape {list(arg.type.shape)} is not a run of it", src=node.src)
    return Where(at, prod(want[inner[-1] :]), prod(have[inner[-1] :]))


def normalised(b: Builder, node: Node, where: Where, tiles: RowTiles | None) -> Expr:
    """x * rsqrt(mean square + eps) * weight; the mean comes from the spec's exchange, or is computed here from the whole row."""
    x, weight = node.args[:2]
    if (rows := prod(b.local(node)[:-1])) != 1:
        raise NotLowered(op="rms_norm", why=f"a cluster has {rows} rows, and one is lowered", src=node.src)
    mean = node.args[2] if len(node.args) > 2 else None
    rstd = b.values.get((node, "rstd"))
    if rstd is None:
        if mean is not None:
            scalar = b.values.get(mean)
            if not isinstance(scalar, Scalar):
                raise NotLowered(op="rms_norm", why="its mean_square is not the result of an exchange of scalars", src=node.src)
            source = scalar.variable
        else:
            cols = int(x.type.shape[-1])
            whole = tiles if tiles and tiles.cols == cols else row_tiles(cols, b.config.warps)
            source = mean_square(b, x, node, Where(), whole)
        rstd = b.variable("rstd")
        b.step("rms", f"{rstd} = rsqrt({source} + eps)", src=node.src, out=rstd, mean=source, eps=node.attr("eps"))
        b.values[(node, "rstd")] = rstd
    inner = fragment_var(b, x, aligned(b, node, x, where), tiles) if tiles else expression(b, x, aligned(b, node, x, where))
    scaled = Expr("mul", args=(inner, Expr("var", rstd)))
    return Expr("mul", args=(scaled, expression(b, weight, aligned(b, node, weight, where), tiles)))


def row_tiles(cols: int, warps: int) -> RowTiles:
    """The geometry of a fragment that no product reads: all warps share the row."""
    return RowTiles(cols, cols, 1, warps, 0, Affine(), Affine())


def mean_square(b: Builder, x: Node, node: Node, where: Where, tiles: RowTiles) -> str:
    """A step that leaves (sum of squares of this slice of `x`) / (length of the whole row) in a variable."""
    if tiles.cols % CHUNK:
        raise NotLowered(op=node.word, why=f"a slice of {tiles.cols} elements is not a multiple of {CHUNK}", src=node.src)
    held = fragment_var(b, x, where, tiles)
    scratch = b.buffer("scratch", (b.config.warps,))
    out = b.variable("mean")
    b.step(
        "mean_square", f"{out} = mean square of {held}", writes=(scratch,), src=node.src, out=out, value=held.name, tiles=tiles,
        cols=int(x.type.shape[-1]), scratch=scratch,
    )  # fmt: skip
    b.synced()
    b.seen.add(scratch)  # which it reads behind its barrier
    return out


def fragment_var(b: Builder, node: Node, where: Where, tiles: RowTiles) -> Expr:
    """`node` as a fragment in a named variable, computed once per geometry and place."""
    key = (node, "fragment", tiles.cols, tiles.pieces, tiles.warps_per_row, where)
    if key not in b.values:
        tree = expression(b, node, where, tiles)
        name = b.variable({"add": "h", "rms_norm": "normed", "input": node.attr("name") or "x"}.get(node.op, "v") + "_frag")
        b.step("fragment", f"{name} = {tree}", reads=tree.buffers(), src=node.src, out=name, tree=tree, tiles=tiles)
        b.values[key] = name
        hoist_slices(b)
    return Expr("var", b.values[key])


def hoist_slices(b: Builder) -> None:
    """Operands of the epilogue that need only launch arguments are fetched now, while the first tiles are on their way."""
    pending, b.hoisted = b.hoisted, []
    for node, arg in pending:
        tree = expression(b, arg, aligned(b, node, arg, Where()))
        share = b.shares[f"rows{node.type.shape[-1]}"]
        buffer = b.buffer("my_rows", (share.most,))
        b.step("slice", f"{buffer}[i] = {tree}", writes=(buffer,), src=arg.src, tree=tree, out=buffer, share=share)
        b.values[(node, arg)] = Vector(buffer, share.most)
