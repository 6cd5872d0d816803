"""Reductions inside one warp: butterflies, so every lane ends with the result and the order of additions is fixed."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32


@cute.jit
def total(value: Float32, width: cutlass.Constexpr = 32) -> Float32:
    """The sum over each aligned group of `width` lanes (a power of two), on every lane of the group.

    All 32 lanes call it. The same bits on every lane: in each round two lanes add the same two numbers.
    """
    for i in cutlass.range_constexpr(width.bit_length() - 1):
        value = value + cute.arch.shuffle_sync_bfly(value, width >> (i + 1))
    return value


@cute.jit
def totals(values: cute.Tensor, n: cutlass.Constexpr, width: cutlass.Constexpr = 32) -> Float32:
    """`n` sums over each aligned group of `width` lanes at once: every lane returns the sum of `values[index(lane, n, width)]`.

    `n` and `width` are powers of two, n <= width <= 32. Each of the first log2(n) exchanges halves the values a lane still keeps, handing
    the partner the terms of the other half; what is left is an ordinary butterfly. 9 shuffles for 8 sums over a warp, where 8 butterflies
    take 40. `values` f32 (n,) in registers is overwritten.
    """
    lane = cute.arch.lane_idx()
    kept = n
    for i in cutlass.range_constexpr(n.bit_length() - 1):
        half = kept // 2
        step = (width // 2) >> i
        upper = (lane & step) != 0
        for v in cutlass.range_constexpr(half):
            keep = values[v]
            send = values[v + half]
            if upper:
                keep = values[v + half]
                send = values[v]
            values[v] = keep + cute.arch.shuffle_sync_bfly(send, step)
        kept = half
    return total(values[0], width // n)


def index(lane: Int32, n: int, width: int = 32) -> Int32:
    """Which of `n` sums `totals` leaves on a lane: the upper log2(n) bits of its place in the group."""
    return lane % width // (width // n)
