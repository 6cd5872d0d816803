"""ClusterReduce: P(op) -> R or S over the ranks of a cluster. Terms are combined in rank order, so all ranks get the same bits.

In each: *push* (the source synchronised among the consumers before), `exchange.wait` on the barrier that the pushes count on, then
*combine*. Boxes, where pushes land, and barriers serve one exchange per launch; several exchanges may share a barrier that is armed
with all their bytes. Push and combine have no barrier inside, and are called by `threads` consumer threads, from 0.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import cta, exchange, fold, transfer


@cute.jit
def push_scalar(value: Float32, box: cute.Tensor, mbar: cute.Pointer, rank: Int32, ranks: cutlass.Constexpr):
    """Push one f32, which every thread holds, to `box[rank]` of every rank. Bytes on each rank's `mbar`: ranks * 4."""
    if cta.thread() < ranks:
        exchange.push1(box.iterator + rank, value, mbar, cta.thread())


@cute.jit
def sum_scalar(box: cute.Tensor, ranks: cutlass.Constexpr) -> Float32:
    """After `exchange.wait`: the sum over the ranks of `box` f32 (ranks,), in every thread that calls it."""
    acc = box[0]
    for p in cutlass.range_constexpr(1, ranks):
        acc += box[p]
    return acc


@cute.jit
def push(
    src: cute.Tensor, box: cute.Tensor, n: cutlass.Constexpr, mbar: cute.Pointer, rank: Int32, ranks: cutlass.Constexpr,
    threads: cutlass.Constexpr,
):
    """All-reduce, the push: this rank's term `src` f32 (n,) to row `rank` of `box` f32 (ranks, n) on every rank.

    `n` is a multiple of 4. Bytes on each rank's `mbar`: ranks * n * 4; a rank sends (ranks - 1) * n * 4 to others. One round.
    """
    transfer.push(src.iterator, 0, box.iterator + rank * n, 4 * n, mbar, rank, ranks, threads)


@cute.jit
def sum_rows(box: cute.Tensor, dst: cute.Tensor, n: cutlass.Constexpr, ranks: cutlass.Constexpr, threads: cutlass.Constexpr):
    """All-reduce, the sum, after `exchange.wait`: `dst[i]` = sum over ranks of `box[:, i]`. Synchronise before reading `dst`."""
    fold.rows(box.iterator, n, ranks, dst.iterator, n, fold.SUM, threads)


@cute.jit
def scatter(
    src: cute.Tensor, box: cute.Tensor, blocks: cutlass.Constexpr, block: cutlass.Constexpr, mbar: cute.Pointer, rank: Int32,
    ranks: cutlass.Constexpr, threads: cutlass.Constexpr,
):
    """Reduce-scatter, the push: slice p of each of the `blocks` blocks of `src` f32 (blocks, ranks * block) goes to rank p.

    `box` f32 (ranks, blocks * block) receives one row from each rank. `block` is a multiple of 4. Bytes on each rank's `mbar`:
    ranks * blocks * block * 4; a rank sends (ranks - 1) / ranks of its term to others.
    """
    per_block = cutlass.const_expr(block // 4)
    per_peer = cutlass.const_expr(blocks * per_block)
    for i in cutlass.range(cta.thread(), per_peer * ranks, threads, unroll=1):
        peer = i // per_peer
        v = i % per_peer
        b = v // per_block
        d = (v % per_block) * 4
        exchange.push4(
            box.iterator + (rank * (blocks * block) + b * block + d), src.iterator + ((b * ranks + peer) * block + d), mbar, peer
        )


@cute.jit
def push_lse(stats: cute.Tensor, box: cute.Tensor, heads: cutlass.Constexpr, mbar: cute.Pointer, rank: Int32, ranks: cutlass.Constexpr,
             threads: cutlass.Constexpr):
    """The (max, sum) of each head's softmax, `stats` f32 (heads, 2), to row `rank` of `box` f32 (ranks, heads, 2) on every rank.

    Goes with `scatter` of the unnormalised outputs on the same barrier. Bytes on each rank's `mbar`: ranks * heads * 8.
    """
    for i in cutlass.range(cta.thread(), heads * ranks, threads, unroll=1):
        h = i % heads
        exchange.push2(box.iterator + (rank * heads + h) * 2, stats[h, 0], stats[h, 1], mbar, i // heads)


@cute.jit
def _merged(outs: cute.Tensor, stats: cute.Tensor, i: Int32, h: Int32, ranks: cutlass.Constexpr):
    """(m, l, o) of element `i`, in head `h`, from the terms of all ranks, in rank order."""
    top = stats[0, h, 0]
    for p in cutlass.range_constexpr(1, ranks):
        top = cute.arch.fmax(top, stats[p, h, 0])
    total = Float32(0.0)
    acc = Float32(0.0)
    for p in cutlass.range_constexpr(ranks):
        scale = cute.math.exp2(stats[p, h, 0] - top, fastmath=True)
        total += scale * stats[p, h, 1]
        acc += scale * outs[p, i]
    return top, total, acc


@cute.jit
def combine_lse(
    outs: cute.Tensor, stats: cute.Tensor, dst: cute.Tensor, heads: cutlass.Constexpr, block: cutlass.Constexpr,
    ranks: cutlass.Constexpr, threads: cutlass.Constexpr,
):
    """After `exchange.wait`: the attention output of this rank's slice, normalised: `dst` f32 (heads * block,).

    `outs` f32 (ranks, heads * block) as `scatter` filled it, `stats` f32 (ranks, heads, 2) as `push_lse` did. At least one rank had a
    token. Synchronise before reading `dst`.

    With M the maximum of the ranks' maxima m_p (base-2 logarithms), dst = sum_p 2^(m_p - M) o_p / sum_p 2^(m_p - M) l_p, in rank order.
    """
    for i in cutlass.range(cta.thread(), heads * block, threads, unroll=1):
        _, total, acc = _merged(outs, stats, i, i // block, ranks)
        dst[i] = acc / total


@cute.jit
def merge_lse(
    outs: cute.Tensor, stats: cute.Tensor, dst: cute.Tensor, dst_stats: cute.Tensor, heads: cutlass.Constexpr, block: cutlass.Constexpr,
    ranks: cutlass.Constexpr, threads: cutlass.Constexpr,
):
    """As `combine_lse`, but the result is again a term: `dst` f32 (heads * block,) unnormalised, `dst_stats` f32 (heads, 2) its (m, l).

    For clusters that share a head's tokens: their terms are combined later, see `attention.load_terms`.
    """
    for i in cutlass.range(cta.thread(), heads * block, threads, unroll=1):
        h = i // block
        top, total, acc = _merged(outs, stats, i, h, ranks)
        dst[i] = acc
        if i % block == 0:
            dst_stats[h, 0] = top
            dst_stats[h, 1] = total
