"""A vector of `cols` elements in the consumer warps' registers, laid out as `gemv` multiplies with it.

The vector is cut into chunks of 8. The `warps_per_row` warps of a row group share it: chunk `c` belongs to lane `c % 32` of warp
`(c // 32) % warps_per_row`; the row groups hold the same thing. A thread has `8 x chunks_per_lane` values in float32, zeros past the end.
A vector that meets rows in pieces (see `stream.Rows`) is spread piece by piece, each in this way.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import cta


@cute.jit
def chunk(shape: cutlass.Constexpr, i: cutlass.Constexpr) -> Int32:
    """The number, in its piece of the row, of this thread's chunk `i`; at or past `shape.chunks` where the thread has none."""
    warp_in_row = cta.warp() % shape.warps_per_row
    return warp_in_row * 32 + cta.lane() + i % shape.tile_chunks_per_lane * (32 * shape.warps_per_row)


def start(shape: cutlass.Constexpr, i: int) -> int:
    """The first column of the piece that this thread's chunk `i` lies in."""
    return i // shape.tile_chunks_per_lane * shape.tile_cols


@cute.jit
def load8(src: cute.Pointer, dst: cute.Tensor):
    """16 bytes (or 32, for f32) from `src`, 16-byte aligned, into the 8 registers of `dst`."""
    cute.autovec_copy(cute.make_tensor(src.align(16), cute.make_layout(8)), dst)


@cute.jit
def fetch(src: cute.Tensor, shape: cutlass.Constexpr, col0: Int32 = 0) -> cute.Tensor:
    """Start reading the fragment (8, chunks_per_lane) of `src[col0 : col0 + cols]` into registers of its type. Follow with `widen`.

    `src` is a vector of any float type in global or shared memory, `col0` a multiple of 8. All consumer threads call it. No barrier: a
    vector in shared memory must be synchronised before. Positions past the end of the vector are 0. Nothing waits for the values here.
    """
    raw = cute.make_rmem_tensor((8, shape.chunks_per_lane), src.element_type)
    if cutlass.const_expr(shape.ragged):
        raw.fill(0)
    for i in cutlass.range_constexpr(shape.chunks_per_lane):
        c = chunk(shape, i)
        if cutlass.const_expr(shape.ragged):
            if c < shape.chunks:
                load8(src.iterator + (col0 + start(shape, i) + c * 8), raw[(None, i)])
        else:
            load8(src.iterator + (col0 + start(shape, i) + c * 8), raw[(None, i)])
    return raw


def widen(raw: cute.Tensor) -> cute.TensorSSA:
    """What `fetch` reads, in float32: here it is waited for."""
    return raw.load().to(Float32)


@cute.jit
def load(src: cute.Tensor, shape: cutlass.Constexpr, col0: Int32 = 0) -> cute.TensorSSA:
    """`fetch` and `widen` at once: the fragment f32 (8, chunks_per_lane) of `src[col0 : col0 + cols]`."""
    return widen(fetch(src, shape, col0))


@cute.jit
def hold(value: cute.TensorSSA) -> cute.Tensor:
    """A fragment f32 (8, chunks_per_lane) in registers that can be indexed, by constants only."""
    kept = cute.make_rmem_tensor(value.shape, Float32)
    kept.store(value)
    return kept


@cute.jit
def store(dst: cute.Tensor, value: cute.TensorSSA, shape: cutlass.Constexpr, col0: Int32 = 0):
    """Write a fragment to `dst[col0 : col0 + cols]`, rounded to its type; all consumer threads call it, one row group writes.

    `dst` is in shared or global memory, `col0` a multiple of 8. No barrier: synchronise before others read.
    """
    out = cute.make_rmem_tensor(value.shape, dst.element_type)
    out.store(value.to(dst.element_type))
    for i in cutlass.range_constexpr(shape.chunks_per_lane):
        c = chunk(shape, i)
        if (c < shape.chunks) & (cta.warp() < shape.warps_per_row):
            at = dst.iterator + (col0 + start(shape, i) + c * 8)
            cute.autovec_copy(out[(None, i)], cute.make_tensor(at.align(16), cute.make_layout(8)))
