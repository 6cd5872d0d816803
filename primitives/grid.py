"""The whole grid: a barrier among resident CTAs, and vectors that travel through global memory (L2)."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32

from primitives import cta
from primitives.kv import BARRIER_TIMED_OUT

SPIN_LIMIT = 1 << 22  # polls; a second or two: a kernel that is not resident gives up and says so instead of hanging


@cute.jit
def barrier(sync: cute.Tensor, ctas: cutlass.Constexpr, warps: cutlass.Constexpr):
    """Every consumer thread of every CTA: what any wrote to global memory before, all see after. Needs all CTAs resident.

    `sync` is i32 global memory, zero before its first use: word 0 the counter, word 1 the status flags. CTA 0 adds 2^31 - (ctas - 1) and
    each other CTA 1, so the top bit flips exactly when the last has come, whatever was counted before: no reset, no overflow.
    One release add and acquire polls by one thread: 1.1 us over 132 CTAs of an H100.
    """
    cta.consumer_sync(warps)
    if cta.thread() == 0:
        bidx, _, _ = cute.arch.block_idx()
        step = Int32(1)
        if bidx == 0:
            step = Int32(((2**31 - (ctas - 1)) ^ 2**31) - 2**31)  # 2^31 - (ctas - 1) as a signed word
        cute.arch.fence_acq_rel_gpu()
        before = cute.arch.atomic_add(sync.iterator, step, sem="release", scope="gpu")
        waiting = Boolean(True)
        spins = Int32(0)
        while waiting & (spins < SPIN_LIMIT):
            now = cute.arch.load(sync.iterator, Int32, sem="acquire", scope="gpu")
            waiting = (now ^ before) >= 0
            spins += 1
        if waiting:
            cute.arch.atomic_or(sync.iterator + 1, Int32(BARRIER_TIMED_OUT), sem="relaxed", scope="gpu")
        cute.arch.fence_acq_rel_gpu()
    cta.consumer_sync(warps)


@cute.jit
def publish(
    dst: cute.Tensor, src: cute.Tensor, n: cutlass.Constexpr, block: cutlass.Constexpr, stride: cutlass.Constexpr, offset: Int32,
    threads: cutlass.Constexpr,
):
    """Write this CTA's `n` f32 to the global vector: `block` adjacent values, then `stride` on. Follow with `barrier`."""
    for i in cutlass.range(cta.thread(), n, threads, unroll=1):
        dst[offset + (i // block) * stride + i % block] = src[i]


@cute.jit
def add(dst: cute.Tensor, i: Int32, value: Float32):
    """Add to one f32 of a global vector. The order of additions over CTAs is not fixed, so neither are the last bits."""
    cute.arch.red(dst.iterator + i, value, op="add", dtype=Float32, sem="relaxed", scope="gpu")
