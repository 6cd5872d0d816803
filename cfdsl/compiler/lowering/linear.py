"""Products: which rows and columns of a weight each CTA streams, and the fragment it multiplies them with."""

from __future__ import annotations

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import RowTiles, least_stage, row_pieces, thread_registers, tile_rows, warps_per_row
from cfdsl.compiler.lowering.pointwise import Where, expression, fragment_var, through_view
from cfdsl.compiler.lowering.values import Product, leaf
from cfdsl.dsl.graph import ITEMSIZE, Node
from cfdsl.dsl.placement import Partial, Shard
from cfdsl.errors import ConfigError, NotLowered, ShardDoesNotDivide


def lower_linear(b: Builder, node: Node) -> None:
    """One stream of weight tiles and one `gemv` step; the sums over warps wait until somebody reads them."""
    x, weight = node.args[:2]
    tiles = weight_tiles(b, node)
    held = fragment_var(b, x, operand_place(b, node, x, tiles), tiles)
    rows = tiles.run
    name = leaf(weight).attr("name")
    part, first = joined(b, held.name, tiles, rows) or (b.buffer(f"{name}_terms", (tiles.warps_per_row, rows)), 0)
    stream = b.stream_rows(node, name, tiles)
    b.step(
        "gemv", f"{part}[:, {first}:{first + rows}] = {name}[{rows} rows of {tiles.cols}] . {held}", writes=(part,), src=node.src,
        joins=first > 0, stream=stream, value=held.name, part=part, tiles=tiles, first=first,
    )  # fmt: skip
    b.values[node] = Product(part, tiles, rows, bias_expr(b, node, tiles), first)


def joined(b: Builder, value: str, tiles: RowTiles, rows: int) -> tuple[str, int] | None:
    """The buffer of the product just before, widened, and this one's first row in it: if one loop can eat the tiles of both.

    It can if they multiply the same fragment, tile their rows alike, and every CTA has all tiles of the first.
    """
    last = b.steps[-1]
    if last.op != "gemv" or last.params["value"] != value:
        return None
    before: RowTiles = last.params["tiles"]
    alike = (before.cols, before.rows, before.warps_per_row, before.pieces) == (tiles.cols, tiles.rows, tiles.warps_per_row, tiles.pieces)
    if not alike or any(t.share is not None and not b.shares[t.share].even for t in (before, tiles)):
        return None
    part, first = last.params["part"], last.params["first"] + before.run
    b.buffers[part].shape = (tiles.warps_per_row, first + rows)
    return part, first


def weight_tiles(b: Builder, node: Node) -> RowTiles:
    """Cut this CTA's part of the weight into tiles, as the node's placement says."""
    weight = node.args[1]
    ld = int(leaf(weight).type.shape[-1])
    itemsize = ITEMSIZE[weight.type.dtype]
    placement = b.placed.of(node)
    out = Shard(len(node.type.shape) - 1)
    if node.attr("across") == "all" and placement.cluster == out and placement.grid == out:
        share = b.share(int(node.type.shape[-1]), ld, itemsize)
        rows = min(share.granule, _rows(b, node, ld, itemsize, share.granule))
        row0 = Affine.of(**{share.symbol: share.granule})
        return _tiles(b, node, ld, ld, rows, share.most, row0, Affine(), share=share.name)
    cols, col0 = contraction(b, node, ld, itemsize)
    row0 = through_view(b, weight, Where()).at if weight.op == "slice_grid" and weight.attr("dim") == 0 else Affine()
    # in rows of the stored matrix: a head is head_dim rows
    row0 = Affine.of(row0.const // ld, **{name: k // ld for name, k in row0.terms})
    local = b.local(node)
    heads, last = (local[1], int(node.type.shape[-1])) if len(local) == 3 else (1, int(node.type.shape[-1]))
    mine = local[-1]
    if mine == last:  # not sharded by rows: one run of rows
        run = heads * last
        rows = _rows(b, node, cols, itemsize, run)
        return _tiles(b, node, cols, ld, rows, run, row0, col0)
    rows = _rows(b, node, cols, itemsize, mine)
    row0 = row0 + Affine.of(rank=mine)
    blocks = (mine, last) if heads > 1 else (0, 0)
    return _tiles(b, node, cols, ld, rows, heads * mine, row0, col0, *blocks)


def _tiles(
    b: Builder, node: Node, cols: int, ld: int, rows: int, run: int, row0: Affine, col0: Affine, block_rows: int = 0, block_stride: int = 0,
    share: str | None = None,
) -> RowTiles:  # fmt: skip
    """Tiles of `rows` rows, or of pieces of one row, for a run of `run` rows of `cols` columns."""
    pieces = row_pieces(cols, ITEMSIZE[node.args[1].type.dtype], b.config.stage_bytes)
    tiles = run // rows * pieces
    return RowTiles(cols, ld, rows, _wpr(b, node, cols, rows, pieces), tiles, row0, col0, block_rows, block_stride, share, pieces)


def contraction(b: Builder, node: Node, ld: int, itemsize: int) -> tuple[int, Affine]:
    """The columns that this CTA multiplies: all, a rank's slice (split-K), or a cluster's slice (a partial product per cluster)."""
    placement = b.placed.of(node)
    cols, col0 = ld, Affine()
    weight = node.args[1]
    if isinstance(placement.grid, Partial):
        if weight.op != "slice_grid" or weight.attr("dim") != len(weight.type.shape) - 1 or ld % b.clusters:
            raise ShardDoesNotDivide(op="linear", dim=1, size=ld, parts=b.clusters, axis="clusters", src=node.src)
        cols, col0 = ld // b.clusters, Affine.of(cluster=ld // b.clusters)
    if isinstance(placement.cluster, Partial):
        cols //= b.ranks
        col0 = col0 + Affine.of(rank=cols)
    if cols * itemsize % 16:
        raise ConfigError(name="cluster_size", value=b.ranks, expected=f"such that a slice of {ld} columns is a multiple of 16 bytes")
    return cols, col0


def operand_place(b: Builder, node: Node, x: Node, tiles: RowTiles) -> Where:
    """Where in the operand's own slice the fragment starts."""
    if isinstance(b.placed.of(node).grid, Partial):
        return Where()  # the operand is already this cluster's slice
    return Where(tiles.col0)


def bias_expr(b: Builder, node: Node, tiles: RowTiles) -> Expr | None:
    """The bias at this CTA's rows, in the order of `part`."""
    if len(node.args) < 3:
        return None
    bias = node.args[2]
    where = Where(tiles.row0, tiles.block_rows, tiles.block_stride)
    return expression(b, leaf(bias), where)


def _rows(b: Builder, node: Node, cols: int, itemsize: int, divides: int) -> int:
    rows = tile_rows(cols, itemsize, b.config.stage_bytes, divides)
    if rows == 0:
        expected = f"at least {least_stage(cols, itemsize)}, a piece of a weight row"
        raise ConfigError(name="stage_bytes", value=b.config.stage_bytes, expected=expected, src=node.src)
    return rows


def _wpr(b: Builder, node: Node, cols: int, rows: int, pieces: int) -> int:
    registers = thread_registers(b.config.warps + 1, b.config.ctas_per_sm)
    found = warps_per_row(cols, rows, b.config.warps, pieces, registers)
    if not found:
        why = f"a row of {cols} elements does not fit the {registers} registers of each thread of {b.config.warps} warps"
        raise NotLowered(op="linear", why=why, advice="use more warps, or one CTA per SM", src=node.src)
    return found
