"""The ring: a fixed number of shared-memory stages between one producer warp and the consumer warps.

`full[s]` has an arrival count of 1: the producer arms it with a tile's bytes and the bulk copies complete it. `empty[s]` has one arrival
per consumer warp. Tiles are numbered from 0 through the whole kernel; tile `at` lives in stage `at % stages` in round `at // stages`,
and a barrier's phase is the round's parity, so both sides find their place from the tile number alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from primitives import cta


@dataclass(frozen=True)
class Ring:
    """Geometry: number of stages, bytes of one, consumer warps, and the arena offsets of data, full and empty barriers.

    window    tiles in flight at most; 0: no limit but the stages
    early     tiles in flight at most while the CTA has not passed grid barrier number `phase`: see `behind`
    passed    arena offset of the word that says how many grid barriers this CTA has passed; 0: there is none
    """

    stages: int
    stage_bytes: int
    warps: int
    data: int
    full: int
    empty: int
    window: int = 0
    early: int = 0
    passed: int = 0
    phase: int = 0

    def behind(self, phase: int) -> Ring:
        """The ring for tiles that are needed behind grid barrier number `phase`, counted from 1.

        A CTA that is ahead of others asks for such tiles more slowly: the barrier waits for the others, and they need the memory more.
        """
        return replace(self, phase=phase)


@cute.jit
def init(smem: cute.Pointer, ring: cutlass.Constexpr):
    """Thread 0, once, before the init fence and the barrier after which others wait: both arrays of `stages` mbarriers, `passed`."""
    full = cta.barriers(smem, ring.full)
    empty = cta.barriers(smem, ring.empty)
    for s in cutlass.range_constexpr(ring.stages):
        cute.arch.mbarrier_init(full + s, 1)
        cute.arch.mbarrier_init(empty + s, ring.warps)
    if cutlass.const_expr(ring.passed > 0):
        passed(smem, ring, 0)


@cute.jit
def passed(smem: cute.Pointer, ring: cutlass.Constexpr, barriers: cutlass.Constexpr):
    """The consumers have passed so many grid barriers: thread 0 says so, and the producer will see it some time later.

    Relaxed, as its reading in `pace` is: only the number of tiles in flight follows from it, and any number that the producer may see is
    right. What a stage holds, and when it is free, its own two barriers say.
    """
    if cta.thread() == 0:
        cute.arch.store(cta.view(smem, ring.passed, Int32, 1).iterator, Int32(barriers), sem="relaxed", scope="cta")


def full_barrier(smem: cute.Pointer, ring: Ring, at: Int32) -> cute.Pointer:
    """The mbarrier on which the bytes of tile `at` are counted."""
    return cta.barriers(smem, ring.full) + at % ring.stages


def slot(smem: cute.Pointer, ring: Ring, at: Int32, dtype: type) -> cute.Pointer:
    """Where tile `at` lies, typed, 128-byte aligned."""
    return cute.recast_ptr((smem + (ring.data + (at % ring.stages) * ring.stage_bytes)).align(128), dtype=dtype)


@cute.jit
def pace(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32):
    """Producer, before it loads tile `at`: until tile `at - window` has landed, so that at most `window` tiles are in flight.

    Of tiles that are needed behind a grid barrier to come, at most `early`: a hint, read without any order.

    More in flight than the memory needs to stay busy only lengthens its queue, and every small load, barrier and exchange waits in it.
    The ring still fills to its last stage while consumers wait. No limit if `window` is 0.
    """
    if cutlass.const_expr(0 < ring.window < ring.stages):
        window = Int32(ring.window)
        if cutlass.const_expr(ring.phase > 0):
            if cute.arch.load(cta.view(smem, ring.passed, Int32, 1).iterator, Int32, sem="relaxed", scope="cta") < ring.phase:
                window = Int32(ring.early)
        before = at - window
        if before >= 0:
            cute.arch.mbarrier_wait(full_barrier(smem, ring, before), (before // ring.stages) & 1)


@cute.jit
def acquire(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32):
    """Producer, all lanes: until every consumer warp has released the tile that was in this stage a round ago.

    Returns at once in the first round. Tiles are acquired in order, each once.
    """
    empty = cta.barriers(smem, ring.empty) + at % ring.stages
    cute.arch.mbarrier_wait(empty, ((at // ring.stages) & 1) ^ 1)


@cute.jit
def announce(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, nbytes: Int32):
    """Producer, one thread, once a tile, before its copies: the tile is complete once `nbytes` (at most 2^20 - 1) have landed."""
    cute.arch.mbarrier_arrive_and_expect_tx(full_barrier(smem, ring, at), nbytes)


@cute.jit
def wait(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32):
    """Consumer, every thread that reads: until tile `at` has landed; its bytes are then visible to the caller."""
    cute.arch.mbarrier_wait(full_barrier(smem, ring, at), (at // ring.stages) & 1)


@cute.jit
def release(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32):
    """Consumer warp, all lanes, once each lane holds what it needs of tile `at` in registers: one arrival."""
    cute.arch.sync_warp()
    if cute.arch.lane_idx() == 0:
        cute.arch.mbarrier_arrive(cta.barriers(smem, ring.empty) + at % ring.stages)
