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
def _dot(row: cute.Tensor, x: cute.Tensor, n: cutlass.Constexpr) -> Float32:
    acc = Float32(0.0)
    for i in cutlass.range_constexpr(n):
        for j in cutlass.range_constexpr(8):
            acc += row[j, i].to(Float32) * x[j, i]
    return acc


@cute.jit
def rows(
    smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, x: cute.Tensor, dtype: cutlass.Constexpr, shape: cutlass.Constexpr,
    tiles: Int32, part: cute.Tensor,
) -> Int32:
    """Eat `tiles` tiles of rows; row `r` of tile `t` is `part[:, t * shape.rows + r]`. Returns the number of the next tile.

    A stage is released as soon as its values are in registers, before the arithmetic. Call `cta.consumer_sync` before `total`.
    """
    per_warp = cutlass.const_expr(shape.rows // shape.row_groups)
    cpl = cutlass.const_expr(shape.chunks_per_lane)
    w = cta.warp()
    lane = cta.lane()
    warp_in_row = w % shape.warps_per_row
    group = w // shape.warps_per_row
    values = cute.make_rmem_tensor((8, cpl, per_warp), dtype)
    for t in cutlass.range(tiles, unroll=1):
        rings.wait(smem, ring, at + t)
        tile = rings.slot(smem, ring, at + t, dtype)
        for r in cutlass.range_constexpr(per_warp):
            row = tile + (group + r * shape.row_groups) * shape.cols
            for i in cutlass.range_constexpr(cpl):
                c = frag.chunk(shape, i)
                if cutlass.const_expr(shape.ragged):
                    c = cutlass.min(c, Int32(shape.chunks - 1))  # past the end `x` is zero: any finite weight will do
                frag.load8(row + c * 8, values[(None, i, r)])
        rings.release(smem, ring, at + t)
        base = t * shape.rows + group
        for r in cutlass.range_constexpr(0, per_warp - 1, 2):
            both = warp.total_pair(_dot(values[(None, None, r)], x, cpl), _dot(values[(None, None, r + 1)], x, cpl))
            if lane % 16 == 0:
                part[warp_in_row, base + (r + lane // 16) * shape.row_groups] = both
        if cutlass.const_expr(per_warp % 2 == 1):
            last = warp.total(_dot(values[(None, None, per_warp - 1)], x, cpl))
            if lane == 0:
                part[warp_in_row, base + (per_warp - 1) * shape.row_groups] = last
    return at + tiles


@cute.jit
def total(part: cute.Tensor, i: Int32, warps_per_row: cutlass.Constexpr) -> Float32:
    """Row `i` of the product: its warps' terms, added in warp order."""
    acc = part[0, i]
    for w in cutlass.range_constexpr(1, warps_per_row):
        acc += part[w, i]
    return acc
