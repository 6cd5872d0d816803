"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of vectors in shared memory, in place."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import cta


@cute.jit
def angles(cos: cute.Tensor, sin: cute.Tensor, position: Int32, half: cutlass.Constexpr) -> tuple[Float32, Float32]:
    """This thread's cosine and sine: entry `thread % half` of row `position` of the f32 tables [positions, half].

    `position` must be a row of the tables (see `kv.clamp`). Call it early: the two loads then hide behind whatever comes before `rotate`.
    """
    i = position * half + cta.thread() % half
    return cos[i], sin[i]


@cute.jit
def rotate(
    x: cute.Tensor, heads: cutlass.Constexpr, dim: cutlass.Constexpr, half: cutlass.Constexpr, interleaved: cutlass.Constexpr,
    cos: Float32, sin: Float32, threads: cutlass.Constexpr,
):
    """Rotate the first `2 * half` dimensions of `heads` vectors `x` f32 (heads * dim,) in shared memory, by the angles of `angles`.

    `threads` consumer threads, at least `half`. The other dimensions stay as they are. A second call would rotate again.

    Pairs are (i, i + half), or (2i, 2i + 1) where `interleaved`. Each thread keeps to one angle: thread t has pair t % half of heads
    t // half, t // half + threads // half, ... Call `cta.consumer_sync` before and after.
    """
    pair = cta.thread() % half
    lo, hi = pair, pair + half
    if cutlass.const_expr(interleaved):
        lo, hi = 2 * pair, 2 * pair + 1
    per_round = cutlass.const_expr(threads // half)
    for h in cutlass.range(cta.thread() // half, heads, per_round, unroll=1):
        if cta.thread() < per_round * half:
            a = x[h * dim + lo]
            b = x[h * dim + hi]
            x[h * dim + lo] = a * cos - b * sin
            x[h * dim + hi] = b * cos + a * sin
