"""The whole grid: a barrier among resident CTAs, and vectors that travel through global memory (L2)."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32

from primitives import cta
from primitives.kv import BARRIER_TIMED_OUT

SPIN_LIMIT = 1 << 22  # polls; a second or two: a kernel that is not resident gives up and says so instead of hanging


@cute.jit
def phase(sync: cute.Tensor) -> Int32:
    """The word that the first `barrier` of this launch starts from. Any thread, after the predecessor has finished.

    Others may have arrived already: only the top bit matters, and that cannot flip before this CTA arrives too.
    """
    return cute.arch.load(sync.iterator, Int32, sem="relaxed", scope="gpu")


@cute.jit
def barrier(sync: cute.Tensor, before: Int32, ctas: cutlass.Constexpr, warps: cutlass.Constexpr) -> Int32:
    """Every consumer thread of every CTA: what any wrote to global memory before, all see after. Needs all CTAs resident.

    `sync` is i32 global memory, zero before its first use: word 0 the counter, word 1 the status flags. `before` is what `phase` or the
    last `barrier` returned. See `meet`.
    """
    bidx, _, _ = cute.arch.block_idx()
    return meet(sync.iterator, sync.iterator + 1, before, ctas, bidx == 0, warps)


@cute.jit
def meet(
    word: cute.Pointer, status: cute.Pointer, before: Int32, members: cutlass.Constexpr, first: Boolean, warps: cutlass.Constexpr
) -> Int32:
    """Every consumer thread of `members` CTAs, one of which is the `first`: what any wrote to global memory before, all see after.

    `word` is the members' counter in global memory, zero before its first use. The first adds 2^31 - (members - 1) and each other CTA 1,
    so the top bit flips exactly when the last has come, whatever was counted before: no reset, no overflow. The top-bit trick is that of
    CUDA's cooperative groups (grid.sync). `before` is the word at the start of the launch, or what the last `meet` returned: knowing it,
    arriving is one release add without an answer, and one thread polls with acquire loads. A CTA that polls SPIN_LIMIT times gives up and
    sets BARRIER_TIMED_OUT in `status`; then `word` must be zeroed before it is used again. All members must be resident, as those of a
    cluster are. Two consumer barriers inside.
    """
    cta.consumer_sync(warps)
    if cta.thread() == 0:
        step = Int32(1)
        if first:
            step = Int32(((2**31 - (members - 1)) ^ 2**31) - 2**31)  # 2^31 - (members - 1) as a signed word
        cute.arch.red(word, step, op="add", dtype=Int32, sem="release", scope="gpu")
        waiting = Boolean(True)
        spins = Int32(0)
        while waiting & (spins < SPIN_LIMIT):
            now = cute.arch.load(word, Int32, sem="acquire", scope="gpu")
            waiting = (now ^ before) >= 0
            spins += 1
        if waiting:
            cute.arch.atomic_or(status, Int32(BARRIER_TIMED_OUT), sem="relaxed", scope="gpu")
    cta.consumer_sync(warps)
    return before ^ Int32(-(2**31))


@cute.jit
def fetch(src: cute.Tensor, offset: Int32, n: cutlass.Constexpr, threads: cutlass.Constexpr) -> cute.Tensor:
    """Start reading `n` f32 of a global vector from `offset`: element r * threads + thread in register r. Follow with `keep`.

    Nothing waits for the values here, so several fetches are on their way together.
    """
    got = cute.make_rmem_tensor(-(-n // threads), Float32)
    got.fill(0.0)
    for r in cutlass.range_constexpr(-(-n // threads)):
        i = cta.thread() + r * threads
        if cutlass.const_expr((r + 1) * threads <= n):
            got[r] = src[offset + i]
        elif i < n:
            got[r] = src[offset + i]
    return got


@cute.jit
def keep(dst: cute.Tensor, got: cute.Tensor, n: cutlass.Constexpr, threads: cutlass.Constexpr):
    """Write what `fetch` read to a shared-memory vector f32 (n,). Synchronise before others read it."""
    for r in cutlass.range_constexpr(-(-n // threads)):
        i = cta.thread() + r * threads
        if cutlass.const_expr((r + 1) * threads <= n):
            dst[i] = got[r]
        elif i < n:
            dst[i] = got[r]


@cute.jit
def publish(
    dst: cute.Tensor, src: cute.Tensor, n: cutlass.Constexpr, block: cutlass.Constexpr, stride: cutlass.Constexpr, offset: Int32,
    threads: cutlass.Constexpr,
):
    """Write this CTA's `src` f32 (n,) to the global vector `dst`: `block` adjacent values from `offset`, the next ones `stride` further on.

    `threads` consumer threads; `src` synchronised before. Follow with `barrier`: others may read after it.
    """
    for i in cutlass.range(cta.thread(), n, threads, unroll=1):
        dst[offset + (i // block) * stride + i % block] = src[i]


@cute.jit
def add(dst: cute.Tensor, i: Int32, value: Float32):
    """One thread: add to one f32 of a global vector that was zeroed before. Others may read it after `barrier`.

    The order of additions over CTAs is not fixed, so neither are the last bits.
    """
    cute.arch.red(dst.iterator + i, value, op="add", dtype=Float32, sem="relaxed", scope="gpu")
