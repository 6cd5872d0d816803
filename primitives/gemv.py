"""Matrix-vector products: weight rows come through the ring, the vector sits in registers (see `frag`).

Each row is shared by `warps_per_row` warps, whose partial sums go to `part` f32 (warps_per_row, rows) in shared memory; `total` adds them
in warp order after a consumer barrier. Products and sums are float32.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import cta, frag, warp
from primitives import ring as rings


@cute.jit
def _dot(row: cute.Tensor, x: cute.Tensor, n: cutlass.Constexpr, first: cutlass.Constexpr) -> Float32:
    """The product of `n` chunks with those of `x` from chunk `first`, in the calling thread."""
    acc = Float32(0.0)
    for i in cutlass.range_constexpr(n):
        for j in cutlass.range_constexpr(8):
            acc += row[j, i].to(Float32) * x[j, first + i]
    return acc


@cute.jit
def _fetch(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, dtype: cutlass.Constexpr, shape: cutlass.Constexpr, into: cute.Tensor):
    """Wait for tile `at`, take this thread's part of it into registers, and release the stage: before any arithmetic."""
    rings.wait(smem, ring, at)
    group = cta.warp() // shape.warps_per_row
    tile = rings.slot(smem, ring, at, dtype) + group * shape.tile_cols
    for r in cutlass.range_constexpr(shape.rows // shape.row_groups):
        for i in cutlass.range_constexpr(shape.tile_chunks_per_lane):
            c = frag.chunk(shape, i)
            if cutlass.const_expr(shape.ragged):
                c = cutlass.min(c, Int32(shape.chunks - 1))  # past the end `x` is zero: any finite weight will do
            frag.load8(tile + (r * shape.row_groups * shape.tile_cols + c * 8), into[(None, i, r)])
    rings.release(smem, ring, at)


@cute.jit
def rows(
    smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, x: cute.Tensor, dtype: cutlass.Constexpr, shape: cutlass.Constexpr,
    tiles: Int32, part: cute.Tensor,
) -> Int32:
    """Eat `tiles` tiles of rows; row `r` of tile `t` is `part[:, t // pieces * shape.rows + r]`. Returns the number of the next tile.

    All consumer threads. Before: the producer streams, or will stream, the same tiles with `stream.rows`; `x` f32 (8, chunks_per_lane) is
    the vector as `frag` spreads it, 0 past its end, in registers (`frag.hold`). Tiles hold values of the 16-bit type `dtype`. After a
    consumer barrier: `part` f32 (warps_per_row, >= tiles / pieces x rows) has each warp's terms. `tiles` is a multiple of the pieces.

    A warp takes a batch of tiles per round, the next tile's values on their way to registers while it multiplies the last one's, and adds
    up all rows of the batch over its lanes together (`warp.totals`): reductions, not products, are what a lone row costs. Rows in pieces
    cost registers for the whole vector, and for two tiles; which piece a tile of the batch holds is known at compile time.
    """
    per_warp = cutlass.const_expr(shape.rows // shape.row_groups)
    pieces = cutlass.const_expr(shape.pieces)
    batch = cutlass.const_expr(pieces * max(2, 8 // (per_warp * pieces)))
    turns = cutlass.const_expr(2 * pieces if pieces % 2 else pieces)
    cpl = cutlass.const_expr(shape.tile_chunks_per_lane)
    w = cta.warp()
    lane = cta.lane()
    even = cute.make_rmem_tensor((8, cpl, per_warp), dtype)
    odd = cute.make_rmem_tensor((8, cpl, per_warp), dtype)
    rows_at_once = cutlass.const_expr(batch // pieces * per_warp)
    sums = cute.make_rmem_tensor(rows_at_once, Float32)
    few = cute.make_rmem_tensor(8, Float32)
    if tiles > 0:
        _fetch(smem, ring, at, dtype, shape, even)
    for first in cutlass.range(0, tiles, batch, unroll=1):
        for turn in cutlass.range(0, batch, turns, unroll_full=True):
            for u in cutlass.range_constexpr(turns):
                now, then = (even, odd) if u % 2 == 0 else (odd, even)
                if first + turn + (u + 1) < tiles:
                    _fetch(smem, ring, at + first + turn + (u + 1), dtype, shape, then)
                for r in cutlass.range_constexpr(per_warp):
                    term = _dot(now[(None, None, r)], x, cpl, u % pieces * cpl)
                    spot = (turn + u) // pieces * per_warp + r
                    if cutlass.const_expr(u % pieces > 0):
                        term += sums[spot]
                    sums[spot] = term
        for some in cutlass.range_constexpr(0, rows_at_once, 8):
            for v in cutlass.range_constexpr(8):
                few[v] = sums[some + v] if some + v < rows_at_once else Float32(0.0)
            acc = warp.totals(few, 8)
            mine = some + warp.index(lane, 8)
            tile = first + mine // per_warp * pieces
            if (lane % 4 == 0) & (mine < rows_at_once) & (tile < tiles):
                row = tile // pieces * shape.rows + w // shape.warps_per_row + (mine % per_warp) * shape.row_groups
                part[w % shape.warps_per_row, row] = acc
    return at + tiles


@cute.jit
def total(part: cute.Tensor, i: Int32, warps_per_row: cutlass.Constexpr) -> Float32:
    """Row `i` of the product: its warps' terms, added in warp order. Any thread, after the consumer barrier that follows `rows`."""
    acc = part[0, i]
    for w in cutlass.range_constexpr(1, warps_per_row):
        acc += part[w, i]
    return acc
