"""Products: which rows and columns of a weight each CTA streams, and the fragment it multiplies them with."""

from __future__ import annotations

from dataclasses import replace

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import CHUNK, RowTiles, column_turns, least_stage, row_pieces, thread_registers, tile_rows, warps_per_row
from cfdsl.compiler.lowering.pointwise import Where, aligned, expression, fragment_var
from cfdsl.compiler.lowering.values import Product
from cfdsl.compiler.lowering.weights import Matrix, matrix
from cfdsl.dsl.graph import ITEMSIZE, Node
from cfdsl.dsl.placement import Partial, Shard
from cfdsl.errors import ConfigError, NotLowered


def lower_linear(b: Builder, node: Node) -> None:
    """A stream of weight tiles and a `gemv` step for each turn of columns; the sums over warps wait until somebody reads them."""
    x, weight = node.args[0], matrix(b, node)
    first, turns = weight_tiles(b, node, weight)
    place = operand_place(b, node, turns * first.cols)
    parts = []
    for turn in range(turns):
        start = Affine.of(turn * first.cols)
        tiles = replace(first, col0=first.col0 + start)
        parts.append(_multiply(b, node, weight.name, tiles, fragment_var(b, x, place.moved(start), tiles), turn))
    b.values[node] = Product(tuple(parts), first, first.run, bias_expr(b, node))


def _multiply(b: Builder, node: Node, name: str, tiles: RowTiles, held: Expr, turn: int) -> tuple[str, int]:
    """One turn: the buffer with its warps' terms, and the first of its rows there."""
    rows, behind = tiles.run, f" from column {tiles.col0}" if turn else ""
    part, first = joined(b, held.name, tiles, rows) or (b.buffer(f"{name}_terms", (tiles.warps_per_row, rows)), 0)
    stream = b.stream_rows(node, name, tiles)
    b.step(
        "gemv", f"{part}[:, {first}:{first + rows}] = {name}[{rows} rows of {tiles.cols}{behind}] . {held}", writes=(part,), src=node.src,
        joins=first > 0, stream=stream, value=held.name, part=part, tiles=tiles, first=first, turn=turn,
        length=int(node.args[0].type.shape[-1]),
    )  # fmt: skip
    return part, first


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


def weight_tiles(b: Builder, node: Node, weight: Matrix) -> tuple[RowTiles, int]:
    """Cut this CTA's part of the weight into tiles, as the node's placement says: those of the first turn of columns; how many turns."""
    itemsize = ITEMSIZE[weight.leaf.type.dtype]
    placement = b.placed.of(node)
    out = Shard(len(node.type.shape) - 1)
    if node.attr("across") == "all" and placement.cluster == out and placement.grid == out:
        if len(node.type.shape) == 3:
            why = "rows of a weight by heads are spread over all CTAs"
            raise NotLowered(op="linear", why=why, advice="split the heads of the result, and not those of the weight", src=node.src)
        share = b.share(weight.rows, weight.cols, itemsize)
        turns = _turns(b, node, weight.cols)
        cols = weight.cols // turns
        rows = min(share.granule, _rows(b, node, cols, itemsize, share.granule))
        row0 = weight.row0 + Affine.of(**{share.symbol: share.granule})
        return _tiles(b, node, cols, weight.ld, rows, share.most, row0, weight.col0, share=share.name), turns
    whole, col0 = contraction(b, node, weight)
    turns = _turns(b, node, whole)
    cols = whole // turns
    local = b.local(node)
    heads, last = (local[1], int(node.type.shape[-1])) if len(local) == 3 else (1, weight.rows)
    mine = local[-1]
    if mine == last:  # not sharded by rows: one run of rows
        rows = _rows(b, node, cols, itemsize, weight.rows)
        return _tiles(b, node, cols, weight.ld, rows, weight.rows, weight.row0, col0), turns
    rows = _rows(b, node, cols, itemsize, mine)
    blocks = (mine, last) if heads > 1 else (0, 0)
    return _tiles(b, node, cols, weight.ld, rows, heads * mine, weight.row0 + Affine.of(rank=mine), col0, *blocks), turns


def _tiles(
    b: Builder, node: Node, cols: int, ld: int, rows: int, run: int, row0: Affine, col0: Affine, block_rows: int = 0, block_stride: int = 0,
    share: str | None = None,
) -> RowTiles:  # fmt: skip
    """Tiles of `rows` rows, or of pieces of one row, for a run of `run` rows of `cols` columns."""
    pieces = row_pieces(cols, ITEMSIZE[node.args[1].type.dtype], b.config.stage_bytes)
    tiles = run // rows * pieces
    return RowTiles(cols, ld, rows, _warps(b, cols, rows, pieces), tiles, row0, col0, block_rows, block_stride, share, pieces)


def contraction(b: Builder, node: Node, weight: Matrix) -> tuple[int, Affine]:
    """The columns that this CTA multiplies: all that its cluster has, or a rank's slice of them (split-K)."""
    cols, col0 = weight.cols, weight.col0
    if isinstance(b.placed.of(node).cluster, Partial):
        cols //= b.ranks
        col0 = col0 + Affine.of(rank=cols)
    if cols % CHUNK:
        expected = f"such that a slice of {weight.cols} columns is a multiple of {CHUNK}"
        raise ConfigError(name="cluster_size", value=b.ranks, expected=expected, src=node.src)
    return cols, col0


def operand_place(b: Builder, node: Node, cols: int) -> Where:
    """Where in the operand's own slice the fragment starts: at the rank's `cols` columns, if the operand is not cut over ranks already."""
    split_k = isinstance(b.placed.of(node).cluster, Partial) and not isinstance(b.placed.of(node.args[0]).cluster, Shard)
    return Where(Affine.of(rank=cols)) if split_k else Where()


def bias_expr(b: Builder, node: Node) -> Expr | None:
    """The bias at this CTA's rows, in the order of `part`."""
    if len(node.args) < 3:
        return None
    bias = node.args[2]
    return expression(b, bias, aligned(b, node, bias, Where()))


def _rows(b: Builder, node: Node, cols: int, itemsize: int, divides: int) -> int:
    """Rows of a tile: as many as fit a stage, and of short ones no more than a warp has registers for."""
    rows = tile_rows(cols, itemsize, b.config.stage_bytes, divides)
    if rows == 0:
        expected = f"at least {least_stage(cols, itemsize)}, a piece of a weight row"
        raise ConfigError(name="stage_bytes", value=b.config.stage_bytes, expected=expected, src=node.src)
    pieces = row_pieces(cols, itemsize, b.config.stage_bytes)
    while rows > 1 and not _warps(b, cols, rows, pieces):
        rows //= 2
    return rows


def _warps(b: Builder, cols: int, rows: int, pieces: int) -> int:
    return warps_per_row(cols, rows, b.config.warps, pieces, _registers(b))


def _registers(b: Builder) -> int:
    return thread_registers(b.config.warps + 1, b.config.ctas_per_sm)


def _turns(b: Builder, node: Node, cols: int) -> int:
    """Turns of columns in which the vector is multiplied. Where a stage holds no piece of a row, that is somebody else's to say."""
    itemsize, config = ITEMSIZE[node.args[1].type.dtype], b.config
    turns = column_turns(cols, itemsize, config.stage_bytes, config.warps, config.ctas_per_sm)
    if not turns and row_pieces(cols, itemsize, config.stage_bytes):
        why = f"a row of {cols} elements does not fit the {_registers(b)} registers of each thread of {config.warps} warps"
        raise NotLowered(op="linear", why=why, advice="use more warps, or one CTA per SM", src=node.src)
    return turns or 1
