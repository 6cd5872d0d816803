"""ClusterGather: S(dim) -> R over the ranks of a cluster, in one round of pushes."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from primitives import cta, exchange


@cute.jit
def push(
    src: cute.Tensor, dst: cute.Tensor, n: cutlass.Constexpr, block: cutlass.Constexpr, mbar: cute.Pointer, rank: Int32,
    ranks: cutlass.Constexpr, threads: cutlass.Constexpr,
):
    """Push this rank's slice of a value to every rank, itself included. `threads` consumer threads, from 0; no barrier inside.

    Before: `src` f32 (n,), `n` = blocks x `block`, is this rank's slice in own shared memory, synchronised. After `exchange.wait`: `dst`
    f32 (n * ranks,) is the whole value on every rank, with block b of rank r at (b * ranks + r) * block. `block` is a multiple of 4.
    Bytes on each rank's `mbar`: ranks * n * 4. Several values may share `mbar`. Both buffers and the barrier serve this call alone.
    """
    vectors = cutlass.const_expr(n // 4)
    per_block = cutlass.const_expr(block // 4)
    for i in cutlass.range(cta.thread(), vectors * ranks, threads, unroll=1):
        peer = i // vectors
        v = i % vectors
        place = ((v // per_block) * ranks + rank) * block + (v % per_block) * 4
        exchange.push4(dst.iterator + place, src.iterator + v * 4, mbar, peer)
