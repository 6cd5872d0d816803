"""Rows of shared memory to the ranks of a cluster: as asynchronous stores, or as bulk copies.

A row is `nbytes` long, a multiple of 4, and starts at a multiple of 16; what it means does not matter here. Pointers are to f32 words.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.arch import map_dsmem_ptr

from primitives import cta, exchange


def words(pointer: cute.Pointer) -> cute.Pointer:
    """The same address, as one of f32 words, on a 16-byte boundary."""
    return cute.recast_ptr(pointer.align(16), dtype=Float32)


@cute.jit
def push(
    src: cute.Pointer, step: cutlass.Constexpr, dst: cute.Pointer, nbytes: cutlass.Constexpr, mbar: cute.Pointer, rank: Int32,
    ranks: cutlass.Constexpr, threads: cutlass.Constexpr, stays: cutlass.Constexpr = False,
):
    """A row to every rank, itself included, by `st.async`: peer p gets the row at `src + p * step` words, at the address `dst`.

    `threads` consumer threads, from 0; the rows synchronised before. With `step` 0 all get the same row. Bytes on each rank's `mbar`:
    `nbytes` from each rank that calls it. The rows may be written again after the next consumer barrier: values are read at once.

    `stays`: the own row is stored at once and not sent, which leaves the network to the others' rows. It is not counted on `mbar`, and a
    consumer barrier comes before other threads read it. There is room for `nbytes` rounded up to 16.

    16 bytes to a store, and the up to three words that are left over 4 bytes each. Each rank starts with the peer after it, so that not
    all of them talk to one at the same time.
    """
    vectors = cutlass.const_expr(nbytes // 16)
    left = cutlass.const_expr(nbytes % 16 // 4)
    peers = cutlass.const_expr(ranks - 1 if stays else ranks)
    if cutlass.const_expr(vectors >= threads and step == 0):  # long: a thread reads its vector once and sends it to all
        held = cute.make_rmem_tensor(4, Float32)
        for v in cutlass.range(cta.thread(), vectors, threads, unroll=2):
            cute.autovec_copy(cute.make_tensor((src + v * 4).align(16), cute.make_layout(4)), held)
            for p in cutlass.range_constexpr(peers):
                exchange.push_vector(dst + v * 4, held, mbar, (rank + 1 + p) & (ranks - 1))
    elif cutlass.const_expr(vectors > 0):
        for i in cutlass.range(cta.thread(), vectors * peers, threads, unroll=2):
            peer = (i // vectors + rank + 1) & (ranks - 1)
            v = i % vectors
            exchange.push4(dst + v * 4, src + (peer * step + v * 4), mbar, peer)
    if cutlass.const_expr(left > 0):
        for i in cutlass.range(cta.thread(), left * peers, threads, unroll=1):
            peer = (i // left + rank + 1) & (ranks - 1)
            word = vectors * 4 + i % left
            exchange.push1(dst + word, (src + (peer * step + word)).load(), mbar, peer)
    if cutlass.const_expr(stays):
        copy(src + rank * step, dst, nbytes, threads)


@cute.jit
def push_to(src: cute.Pointer, dst: cute.Pointer, nbytes: cutlass.Constexpr, mbar: cute.Pointer, peer: Int32, threads: cutlass.Constexpr):
    """A row to one rank, by `st.async`; otherwise as `push`. Bytes on the `mbar` of `peer`: `nbytes`."""
    vectors = cutlass.const_expr(nbytes // 16)
    left = cutlass.const_expr(nbytes % 16 // 4)
    if cutlass.const_expr(vectors > 0):
        for v in cutlass.range(cta.thread(), vectors, threads, unroll=2):
            exchange.push4(dst + v * 4, src + v * 4, mbar, peer)
    if cutlass.const_expr(left > 0):
        if cta.thread() < left:
            word = vectors * 4 + cta.thread()
            exchange.push1(dst + word, (src + word).load(), mbar, peer)


def fence() -> None:
    """Each thread that wrote what a bulk copy is to read: after its writes, before the barrier ahead of the copy.

    Copies go another way into shared memory (the async proxy) than stores; without this they may read what was there before.
    """
    cute.arch.fence_proxy("async.shared", space="cta")


def copy_to_peer(dst: cute.Pointer, src: cute.Pointer, nbytes: int, mbar: cute.Pointer, peer: Int32) -> None:
    """One thread: `nbytes` (a multiple of 16, not 0) from own shared memory to the address `dst` at `peer`; counts them on its `mbar`.

    All pointers are local. Written as PTX because the copy atom maps the data's address to the peer and not the barrier's (CuTe 4.8.1).
    `src` is being read until the bytes have landed, which only `peer` sees: this CTA may neither write it again nor exit before it
    knows that `peer` has waited.
    """
    code = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [{$r0}], [{$r1}], {$r2}, [{$r3}];"
    there, count = map_dsmem_ptr(dst, peer).toint(), map_dsmem_ptr(mbar, peer).toint()
    cute.arch.inline_ptx(code, read_only_args=[there, src.toint(), Int32(nbytes), count])


@cute.jit
def bulk(
    src: cute.Pointer, step: cutlass.Constexpr, dst: cute.Pointer, nbytes: cutlass.Constexpr, mbar: cute.Pointer, rank: Int32,
    ranks: cutlass.Constexpr, threads: cutlass.Constexpr, stays: cutlass.Constexpr = False,
):
    """As `push`, by one bulk copy to each peer; `nbytes` is a multiple of 16. Consumer threads call it, one for each peer issues.

    Before: every thread that wrote the rows has called `fence`, then the consumer barrier. About the end of it see `copy_to_peer`. The
    own row, unless it `stays`, goes by `st.async`: the hardware copies from a CTA to itself too, but memcheck takes that for a mistake.
    Rows do not share a vector of 16 bytes, so neither way needs a fence for the other.
    """
    if cutlass.const_expr(nbytes % 16 != 0):
        raise ValueError(f"a row of {nbytes} bytes is no multiple of 16, which bulk copies move: use push")
    if cta.thread() < ranks - 1:
        peer = (cta.thread() + rank + 1) & (ranks - 1)
        copy_to_peer(dst, src + peer * step, nbytes, mbar, peer)
    if cutlass.const_expr(stays):
        copy(src + rank * step, dst, nbytes, threads)
    else:
        push_to(src + rank * step, dst, nbytes, mbar, rank, threads)


@cute.jit
def copy(src: cute.Pointer, dst: cute.Pointer, nbytes: cutlass.Constexpr, threads: cutlass.Constexpr):
    """A row from one place to another, in own shared memory or device memory: `threads` consumer threads, 16 bytes at a time.

    `nbytes` is rounded up to 16: both places have room for that. Synchronise before reading `dst`.
    """
    held = cute.make_rmem_tensor(4, Float32)
    for v in cutlass.range(cta.thread(), -(-nbytes // 16), threads, unroll=4):
        cute.autovec_copy(cute.make_tensor((src + v * 4).align(16), cute.make_layout(4)), held)
        cute.autovec_copy(held, cute.make_tensor((dst + v * 4).align(16), cute.make_layout(4)))
