"""The index of the greatest of many float32: pairs of a key and an index, compared as integers, so the result does not depend on order.

A key orders values as `torch.argmax` does: -0.0 equals 0.0, and NaN, of either sign, is above everything. Of equal keys the lower index
wins. `NOTHING` loses to every value, -inf too.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import cta

LOWEST, NO_INDEX = -(2**31), 2**31 - 1
INFINITY = 0x7F800000


def nothing() -> tuple[Int32, Int32]:
    """The pair to start from."""
    return Int32(LOWEST), Int32(NO_INDEX)


@cute.jit
def order(value: Float32) -> Int32:
    """The key of a value: keys compare as signed integers like the values do."""
    bits = value.bitcast(Int32)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # a negative float's magnitude counts down
    if key == -1:  # -0.0
        key = Int32(0)
    if (bits & 0x7FFFFFFF) > INFINITY:  # NaN
        key = Int32(0x7FFFFFFF)
    return key


@cute.jit
def better(key: Int32, index: Int32, other: Int32, other_index: Int32) -> tuple[Int32, Int32]:
    """The better of two pairs, in the calling thread."""
    if (other > key) | ((other == key) & (other_index < index)):
        key = other
        index = other_index
    return key, index


@cute.jit
def over_warp(key: Int32, index: Int32) -> tuple[Int32, Int32]:
    """The best pair of a warp, on every lane. All 32 lanes call it."""
    for i in cutlass.range_constexpr(5):
        other = cute.arch.shuffle_sync_bfly(key, 16 >> i)
        other_index = cute.arch.shuffle_sync_bfly(index, 16 >> i)
        key, index = better(key, index, other, other_index)
    return key, index


@cute.jit
def over_block(key: Int32, index: Int32, scratch: cute.Tensor, warps: cutlass.Constexpr) -> tuple[Int32, Int32]:
    """The best pair of the CTA, in every consumer thread. All of them call it.

    `scratch` is i32 (warps, 2) in shared memory, for this call alone. One barrier among the consumer warps.
    """
    key, index = over_warp(key, index)
    own = cta.warp()  # by all lanes: see there
    if cta.lane() == 0:
        scratch[own, 0] = key
        scratch[own, 1] = index
    cta.consumer_sync(warps)
    for w in cutlass.range_constexpr(warps):
        key, index = better(key, index, scratch[w, 0], scratch[w, 1])
    return key, index


@cute.jit
def publish(pairs: cute.Tensor, key: Int32, index: Int32):
    """Consumer thread 0 writes this CTA's pair to its place in `pairs` i32 (CTAs * 2,) in global memory. Follow with `grid.barrier`."""
    bidx, _, _ = cute.arch.block_idx()
    if cta.thread() == 0:
        pairs[2 * bidx] = key
        pairs[2 * bidx + 1] = index


@cute.jit
def store_best(dst: cute.Tensor, pairs: cute.Tensor, ctas: cutlass.Constexpr):
    """The index of the best of `ctas` pairs, as `publish` left them, to `dst[0]` i32 in global memory: warp 0 of CTA 0 writes it.

    After the grid barrier; every consumer thread of every CTA may call it.
    """
    bidx, _, _ = cute.arch.block_idx()
    if (bidx == 0) & (cta.warp() == 0):
        key, index = nothing()
        for i in cutlass.range(cta.lane(), ctas, 32, unroll=1):
            key, index = better(key, index, pairs[2 * i], pairs[2 * i + 1])
        key, index = over_warp(key, index)
        if cta.lane() == 0:
            dst[0] = index
