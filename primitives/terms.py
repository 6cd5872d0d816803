"""Softmax terms of clusters that split a head's tokens: they travel through global memory, and whoever reads combines them in order.

A term of P(lse) is (o; m, l): the unnormalised output, the maximum of the scores (base 2) and the sum of their exponentials. Workspaces are
f32: outputs (splits, heads, dim), statistics (splits, heads, 2), flattened.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.arch import store_async_dsmem

from primitives import attention, cta, frag


@cute.jit
def store(
    outs: cute.Tensor, stats: cute.Tensor, src: cute.Tensor, src_stats: cute.Tensor, heads: cutlass.Constexpr, block: cutlass.Constexpr,
    dim: cutlass.Constexpr, all_heads: cutlass.Constexpr, split: Int32, head0: Int32, rank: Int32, threads: cutlass.Constexpr,
):
    """Write this rank's slice of `heads` softmax terms, from head `head0`, to global memory; rank 0 writes the statistics.

    `outs` f32 (splits, all_heads, dim) and `stats` f32 (splits, all_heads, 2), flattened; the slice is dimensions
    [rank * block, (rank + 1) * block) of each head. Follow with `grid.barrier`, then `load` or `push`.
    """
    for i in cutlass.range(cta.thread(), heads * block, threads, unroll=1):
        outs[((split * all_heads + head0) + i // block) * dim + rank * block + i % block] = src[i]
    if (rank == 0) & (cta.thread() < heads):
        at = (split * all_heads + head0 + cta.thread()) * 2
        stats[at] = src_stats[cta.thread(), 0]
        stats[at + 1] = src_stats[cta.thread(), 1]


@cute.jit
def load(
    outs: cute.Tensor, stats: cute.Tensor, splits: cutlass.Constexpr, heads: cutlass.Constexpr, dim: cutlass.Constexpr,
    shape: cutlass.Constexpr,
) -> cute.TensorSSA:
    """The fragment of all heads' attention outputs, `heads * dim` f32: the terms of `splits` clusters combined in order, normalised.

    `outs` and `stats` as `store` left them, after a grid barrier.
    """
    raw = cute.make_rmem_tensor((8, splits), Float32)
    out = cute.make_rmem_tensor((8, shape.chunks_per_lane), Float32)
    out.fill(0.0)
    for i in cutlass.range_constexpr(shape.chunks_per_lane):
        c = frag.chunk(shape, i)
        if c < shape.chunks:
            h = (frag.start(shape, i) + c * 8) // dim
            top = Float32(attention.LOWEST)
            for s in cutlass.range_constexpr(splits):
                frag.load8(outs.iterator + (s * heads * dim + frag.start(shape, i) + c * 8), raw[(None, s)])
                top = cute.arch.fmax(top, stats[(s * heads + h) * 2])
            total = Float32(0.0)
            for s in cutlass.range_constexpr(splits):
                keep = cute.math.exp2(stats[(s * heads + h) * 2] - top, fastmath=True)
                total += keep * stats[(s * heads + h) * 2 + 1]
                for j in cutlass.range_constexpr(8):
                    out[j, i] = out[j, i] + keep * raw[j, s]
            inverse = 1.0 / total
            for j in cutlass.range_constexpr(8):
                out[j, i] = out[j, i] * inverse
    return out.load()


@cute.jit
def push(
    outs: cute.Tensor, stats: cute.Tensor, splits: cutlass.Constexpr, heads: cutlass.Constexpr, dim: cutlass.Constexpr,
    dst: cute.Tensor, mbar: cute.Pointer, rank: Int32, ranks: cutlass.Constexpr, threads: cutlass.Constexpr,
):
    """Combine 1 / ranks of all heads' outputs, normalised, and push it to every rank: each rank reads 1 / ranks of the terms.

    Before: `outs` and `stats` as `store` left them, after a grid barrier. After `exchange.wait`: `dst` f32 (heads * dim,) in shared memory
    is the whole vector on every rank. Bytes on each rank's `mbar`: heads * dim * 4. `threads` consumer threads, from 0; no barrier inside.
    heads * dim is a multiple of 4 * ranks. Terms are combined in the order of the splits, by one rank: all ranks get the same bits.
    """
    mine = cutlass.const_expr(heads * dim // ranks)
    rounds = cutlass.const_expr(-(-mine // (4 * threads)))
    together = cutlass.const_expr(max(1, min(rounds, 16 // splits)))  # values on their way at once: 4 registers for each of up to 16 terms
    raw = cute.make_rmem_tensor((4, splits, together), Float32)
    ml = cute.make_rmem_tensor((2, splits, together), Float32)
    for first in cutlass.range_constexpr(0, rounds, together):
        for r in cutlass.range_constexpr(together):
            i = cutlass.min(((first + r) * threads + cta.thread()) * 4, Int32(mine - 4)) + rank * mine
            for s in cutlass.range_constexpr(splits):
                term = (outs.iterator + (s * heads * dim + i)).align(16)
                cute.autovec_copy(cute.make_tensor(term, cute.make_layout(4)), raw[(None, s, r)])
                pair = (stats.iterator + (s * heads + i // dim) * 2).align(8)
                cute.autovec_copy(cute.make_tensor(pair, cute.make_layout(2)), ml[(None, s, r)])
        for r in cutlass.range_constexpr(together):
            at = ((first + r) * threads + cta.thread()) * 4
            if at < mine:
                _combine_and_push(raw[(None, None, r)], ml[(None, None, r)], splits, dst.iterator + (rank * mine + at), mbar, ranks)


@cute.jit
def _combine_and_push(
    raw: cute.Tensor, ml: cute.Tensor, splits: cutlass.Constexpr, dst: cute.Pointer, mbar: cute.Pointer, ranks: cutlass.Constexpr,
):
    """One thread: four values from their terms `raw` (4, splits) and `ml` (2, splits), to `dst` on every rank."""
    top = ml[0, 0]
    for s in cutlass.range_constexpr(1, splits):
        top = cute.arch.fmax(top, ml[0, s])
    total = Float32(0.0)
    acc = cute.make_rmem_tensor(4, Float32)
    acc.fill(0.0)
    for s in cutlass.range_constexpr(splits):
        keep = cute.math.exp2(ml[0, s] - top, fastmath=True)
        total += keep * ml[1, s]
        for j in cutlass.range_constexpr(4):
            acc[j] = acc[j] + keep * raw[j, s]
    inverse = 1.0 / total
    for j in cutlass.range_constexpr(4):
        acc[j] = acc[j] * inverse
    bits = cute.recast_tensor(acc, Int32)
    for peer in cutlass.range_constexpr(ranks):
        store_async_dsmem(dst.align(16), (bits[0], bits[1], bits[2], bits[3]), mbar, Int32(peer))
