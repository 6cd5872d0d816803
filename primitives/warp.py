"""Reductions inside one warp: butterflies, so every lane ends with the result and the order of additions is fixed."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32


@cute.jit
def total(value: Float32, width: cutlass.Constexpr = 32) -> Float32:
    """The sum over each aligned group of `width` lanes (a power of two), on every lane of the group."""
    for i in cutlass.range_constexpr(width.bit_length() - 1):
        value = value + cute.arch.shuffle_sync_bfly(value, width >> (i + 1))
    return value


@cute.jit
def total_pair(a: Float32, b: Float32) -> Float32:
    """Two sums over the warp for little more than the price of one: lanes 0-15 get the sum of `a`, lanes 16-31 that of `b`.

    The first exchange hands each half-warp the other half's terms of the value it keeps; five shuffles instead of ten.
    """
    upper = cute.arch.lane_idx() >= Int32(16)
    keep = a
    send = b
    if upper:
        keep = b
        send = a
    return total(keep + cute.arch.shuffle_sync_bfly(send, 16), 16)
