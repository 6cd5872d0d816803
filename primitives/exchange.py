"""Exchanges between the CTAs of a cluster: push data into a peer's shared memory, and let the data's arrival signal.

Every exchange has one mbarrier per CTA with an arrival count of 1. Thread 0 of each CTA *arms* it with all the bytes that its peers
(and itself) will push, so a phase ends exactly when the last byte has landed; nobody sends a separate "ready". Each rank waits for
each exchange that writes into it: so no rank leaves, and no buffer is read, too early. A barrier serves one exchange per launch, or, armed
again and with its phases counted, those of a loop: `collectives` says when that is safe.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.arch import store_async_dsmem


@cute.jit
def init(mbar: cute.Pointer, nbytes: cutlass.Constexpr):
    """One thread, before the cluster's first rendezvous: one arrival, that of `arm`. `nbytes` only says what the barrier is for.

    Then `mbarrier_init_fence`, `arm`, and a barrier of the cluster before anybody pushes: a peer's barrier must exist by then.
    """
    cute.arch.mbarrier_init(mbar, 1)


@cute.jit
def arm(mbar: cute.Pointer, nbytes: cutlass.Constexpr):
    """One thread, once a phase, after the init fence: announce the `nbytes` (at most 2^20 - 1) that this CTA will receive.

    Exactly so many: with fewer the wait ends early or the barrier fails, with more it never ends. Pushes may land before it.
    A barrier is armed again by a thread that has waited for the phase before.
    """
    cute.arch.mbarrier_arrive_and_expect_tx(mbar, nbytes)


@cute.jit
def wait(mbar: cute.Pointer, phase: Int32 = 0):
    """All threads that read what was pushed: until every byte of the exchange has landed here, and is visible to this thread.

    `phase` is the parity of the barrier's phase: 0 for the first, and for one that serves a single exchange; there a second call returns
    at once. No consumer barrier is needed between it and the reads.
    """
    cute.arch.mbarrier_wait(mbar, phase)


def push_vector(dst: cute.Pointer, words: cute.Tensor, mbar: cute.Pointer, peer: Int32) -> None:
    """One thread: 16 bytes, four f32 in registers, to the 16-byte aligned address `dst` at `peer`; counts 16 on its `mbar`."""
    bits = cute.recast_tensor(words, Int32)
    store_async_dsmem(dst.align(16), (bits[0], bits[1], bits[2], bits[3]), mbar, peer)


def push4(dst: cute.Pointer, src: cute.Pointer, mbar: cute.Pointer, peer: Int32) -> None:
    """One thread: 16 bytes, four f32, from own shared memory to the same-named address at `peer`; counts 16 on its `mbar`.

    `st.async`: 240 cycles one way on an H100, where a remote arrive costs 875. All pointers are local addresses, `dst` and `src` 16-byte
    aligned. The values are read at once: `src` may be written again when the call returns. Not visible to `peer` before its `wait`.
    """
    words = cute.make_rmem_tensor(4, Float32)
    cute.autovec_copy(cute.make_tensor(src.align(16), cute.make_layout(4)), words)
    push_vector(dst, words, mbar, peer)


def push2(dst: cute.Pointer, a: Float32, b: Float32, mbar: cute.Pointer, peer: Int32) -> None:
    """One thread: two f32 from registers to the address `dst` at `peer`, 8-byte aligned; counts 8 on its `mbar`."""
    store_async_dsmem(dst.align(8), (a.bitcast(Int32), b.bitcast(Int32)), mbar, peer)


def push1(dst: cute.Pointer, value: Float32, mbar: cute.Pointer, peer: Int32) -> None:
    """One thread: one f32 from a register to the address `dst` at `peer`; counts 4 on its `mbar`."""
    store_async_dsmem(dst, value.bitcast(Int32), mbar, peer)
