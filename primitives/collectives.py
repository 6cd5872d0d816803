"""The collectives of a cluster, for loops: each may be called any number of times in a launch, with nothing but calls in between.

A `channel.Channel` is one collective's place in the arena: barriers, landing places, result. All ranks of the cluster have the same
one, and make the same calls with i = 0, 1, 2, ...; every consumer thread of every rank calls. Rows in shared memory start at multiples of
16 bytes, and go on to the next one: what lies between may be read, and means nothing.

Before the first call: one thread has called `channel.init`, and the cluster has met once after that. A call starts with a consumer
barrier: what the consumers wrote to `src` before it is what is sent. After the call `channel.result` is where the result lies, until the
next call; if it was folded by this CTA and not landed there (`Channel.folds`), a consumer barrier comes before others read it. `src`
may be written again after a consumer barrier, but with bulk copies only after the next call: use two in turn. In a broadcast by bulk
copies only after the call after that, in which the root hears that the row has landed: use three. A channel whose numbers do not fit the
call is refused while the kernel is traced, see `declared`.

Why two sets of barriers and landing places are enough, if everybody sends to everybody: rank B pushes for call i+2 after it waited for
call i+1, to which this rank has contributed, after a consumer barrier, after all its threads had waited for call i, armed that barrier
again, and read what had landed. So no push is counted for a wrong phase, finds a barrier that is not armed, or overwrites what is still
read. A rank that has made its last call has waited for everything that is sent to it, so it may exit, but see `transfer.copy_to_peer`.
With reduce-scatter and gather in turn each is the other's second set, and one is enough. Where a rank's own row is not sent
(`Channel.stays`, for long ones), a call ends with a consumer barrier. In a broadcast the root hears from nobody, so
receivers acknowledge each row once they have read it, and the root waits for that before it overwrites the row.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import cta, declared, doubling, exchange, fold, multicast, transfer
from primitives.channel import barrier, finish_round, landing, phase, result


@cute.jit
def _all_to_all(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, src: cute.Pointer, step: cutlass.Constexpr, rank: Int32):
    """One round: the row at `src + p * step` words to rank p, into the landing place of row `rank`. Waits for everybody's rows."""
    mbar = barrier(smem, channel, 0, i)
    row = transfer.words(landing(smem, channel, i)) + rank * channel.words
    if cutlass.const_expr(channel.algorithm == "bulk"):
        transfer.fence()
        cta.consumer_sync(channel.warps)
        transfer.bulk(transfer.words(src), step, row, channel.nbytes, mbar, rank, channel.ranks, channel.threads, channel.stays)
    else:
        cta.consumer_sync(channel.warps)
        transfer.push(transfer.words(src), step, row, channel.nbytes, mbar, rank, channel.ranks, channel.threads, channel.stays)
    finish_round(smem, channel, 0, i)
    if cutlass.const_expr(channel.stays):
        cta.consumer_sync(channel.warps)


@cute.jit
def _fold(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32):
    """The rows that landed, in rank order, into the result."""
    fold.terms(
        landing(smem, channel, i), channel.stride, channel.ranks, result(smem, channel, i), channel.n, channel.op, channel.dim, True,
        channel.threads,
    )


@cute.jit
def cluster_reduce(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, src: cute.Pointer, rank: Int32):
    """All-reduce, P(op) -> R. Before: `src` is this rank's term. After: `result` is op over the ranks' terms on every rank, the same bits.

    Sums are in float32 and in rank order, rounded once to the type of the result ("doubling": as a tree, lower ranks first).

    "push", "bulk": every term to every rank. Buffers: `src` of `n` elements, two landing places with a row of each rank, the result of
    `out_n`. Barriers: 2. Bytes on each: `ranks * nbytes`, or with `stays` `(ranks - 1) * nbytes`.
    "scatter_gather": two rounds; piece p is reduced by rank p, and goes to everybody. Moves the least where terms are long. Buffers: `src`
    of `ranks` pieces of `n` elements, one landing place of as many, `mid` of one reduced piece (`out_n`), the result of `ranks`; pieces are
    multiples of 16 bytes. Barriers: 2, one a round. Bytes: `ranks` pieces of `n`, then of `out_n`; with `stays` one piece less on both.
    "doubling": log2(ranks) rounds with one partner each, as in the ClusterFusion paper: see `doubling`.

    Again: at once, with i + 1; the result stays until then. `src` may be written behind a consumer barrier after the call, with "bulk"
    behind one after the next call.
    """
    declared.check(channel, "cluster_reduce")
    if cutlass.const_expr(channel.algorithm == "doubling"):
        doubling.reduce(smem, channel, i, src, rank)
    elif cutlass.const_expr(channel.algorithm == "scatter_gather"):
        _all_to_all(smem, channel, i, src, channel.words, rank)
        mine = cute.recast_ptr((smem + channel.mid).align(16), dtype=channel.out_dtype)
        fold.terms(
            landing(smem, channel, i), channel.stride, channel.ranks, mine, channel.n, channel.op, channel.dim, True, channel.threads
        )
        cta.consumer_sync(channel.warps)
        piece = cutlass.const_expr(channel.out_n * channel.out_dtype.width // 8)
        place = transfer.words(result(smem, channel, i)) + rank * (piece // 4)
        mbar = barrier(smem, channel, 1, i)
        transfer.push(transfer.words(mine), 0, place, piece, mbar, rank, channel.ranks, channel.threads, channel.stays)
        finish_round(smem, channel, 1, i)
        if cutlass.const_expr(channel.stays):
            cta.consumer_sync(channel.warps)
    else:
        _all_to_all(smem, channel, i, src, 0, rank)
        _fold(smem, channel, i)


@cute.jit
def cluster_reduce_scalar(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, value: Float32, rank: Int32) -> Float32:
    """All-reduce of one f32, P(op) -> R: the shortest way. Before: every thread holds `value`, this rank's term. After: every thread of
    every rank holds op over the ranks' terms, the same bits; SUM, MAX or MIN, in rank order.

    "push", with "n" 1. Buffers: two landing places of a word from each rank, adjacent; none for source or result. Barriers: 2. Bytes on
    each: `ranks * 4`. Again: at once, with i + 1; the result is a register and stays.
    """
    declared.check(channel, "cluster_reduce_scalar")
    cta.consumer_sync(channel.warps)
    box = transfer.words(landing(smem, channel, i))
    mbar = barrier(smem, channel, 0, i)
    if cta.thread() < channel.ranks:
        exchange.push1(box + rank, value, mbar, cta.thread())
    exchange.wait(mbar, phase(channel, i))
    got = cute.make_rmem_tensor(channel.ranks, Float32)
    cute.autovec_copy(cute.make_tensor(box.align(min(16, 4 * channel.ranks)), cute.make_layout(channel.ranks)), got)
    if cta.thread() == 0:  # while the words are on their way
        exchange.arm(mbar, channel.tx[0])
    acc = got[0]
    for p in cutlass.range_constexpr(1, channel.ranks):
        acc = fold.two(channel.op, acc, got[p])
    return acc


@cute.jit
def cluster_reduce_scatter(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, src: cute.Pointer, rank: Int32):
    """Reduce-scatter, P(op) -> S. Before: `src` is this rank's term, as `ranks` pieces `channel.stride` apart. After: `result` is piece
    `rank` of op over the ranks' terms, in float32 and in rank order, rounded once.

    "push" or "bulk": piece p of every term to rank p. Buffers: `src` of `ranks` pieces of `n` elements, two landing places of as many, the
    result of `out_n`. Barriers: 2. Bytes on each: `ranks * nbytes`, of which each rank sends `nbytes` to itself; with `stays` it does not,
    and they are `(ranks - 1) * nbytes`. Again: as `cluster_reduce`.
    """
    declared.check(channel, "cluster_reduce_scatter")
    _all_to_all(smem, channel, i, src, channel.words, rank)
    _fold(smem, channel, i)


@cute.jit
def cluster_gather(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, src: cute.Pointer, rank: Int32):
    """All-gather, S -> R. Before: `src` is this rank's row of `n` elements. After: `result` is every rank's row, `channel.stride` apart.

    "push", "bulk": Buffers: `src`, and two landing places with a row of each rank, which are the result in turn. Barriers: 2. Bytes on
    each: `ranks * nbytes`, or with `stays` `(ranks - 1) * nbytes`. "doubling": see `doubling`. For what lies in device memory:
    `multicast_gather`. Again: as `cluster_reduce`.
    """
    declared.check(channel, "cluster_gather")
    if cutlass.const_expr(channel.algorithm == "doubling"):
        doubling.gather(smem, channel, i, src, rank)
    else:
        _all_to_all(smem, channel, i, src, 0, rank)


@cute.jit
def multicast_gather(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, src: cute.Tensor, rank: Int32):
    """All-gather or broadcast of device memory. Before: `src` is the same there on all ranks, and complete. After: `result` is `src` on
    every rank. Each asks for a part, see `multicast.gather`.

    As a gather: `src` is the ranks' rows, which are multiples of 16 bytes. As a broadcast: what all are to have, of at least 16 bytes
    for each rank, so that everybody hears from everybody. Buffers: two landing places of `n` elements, which are the result in turn.
    Barriers: 2. Bytes on each: those of `src`. Again: at once, with i + 1; `src` may be written once all ranks' calls have returned.
    """
    declared.check(channel, "multicast_gather")
    n = cutlass.const_expr(cute.size(src))
    if cutlass.const_expr(n != channel.n):
        raise ValueError(f"{n} elements are multicast, but the Channel is for {channel.n}")
    whole = cute.make_tensor(landing(smem, channel, i), cute.make_layout(n))
    cta.consumer_sync(channel.warps)
    multicast.gather(src, whole, n, barrier(smem, channel, 0, i), rank, channel.ranks)
    finish_round(smem, channel, 0, i)


@cute.jit
def cluster_broadcast(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, src: cute.Pointer, rank: Int32):
    """Broadcast, one -> R. Before: `src` of rank 0 is `n` elements. After: `result` is that on every rank, rank 0 included.

    "push" or "bulk". Buffers: `src`, two landing places of a row, which are the result in turn, and `ack` with two times a word of each
    rank. Barriers: 4. Bytes: `nbytes` on each rank's first two. On the others rank 0 gets 4 from each rank for each call, sent in that
    rank's next call, once it no longer reads the result: rank 0 waits for those of call i - 2 before it pushes, but not before the
    caller writes `src`. Again: at once, with i + 1; `src` may be written behind a consumer barrier after the call, but with "bulk" what a
    call copies from only after two more calls have returned. After the last call, `broadcast_end`.
    """
    declared.check(channel, "cluster_broadcast")
    acks = cutlass.const_expr(len(channel.tx) - 1)
    if (rank == 0) & (i >= channel.sets):
        finish_round(smem, channel, acks, i - channel.sets)
    if cutlass.const_expr(channel.algorithm == "bulk"):
        transfer.fence()
    cta.consumer_sync(channel.warps)
    if (cta.thread() == 0) & (i >= 1):
        acknowledge(smem, channel, i - 1, rank)
    if rank == 0:
        mbar = barrier(smem, channel, 0, i)
        row = transfer.words(landing(smem, channel, i))
        if cutlass.const_expr(channel.algorithm == "bulk"):
            transfer.bulk(transfer.words(src), 0, row, channel.nbytes, mbar, rank, channel.ranks, channel.threads)
        else:
            transfer.push(transfer.words(src), 0, row, channel.nbytes, mbar, rank, channel.ranks, channel.threads)
    finish_round(smem, channel, 0, i)


@cute.jit
def acknowledge(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, rank: Int32):
    """One thread, after a consumer barrier behind all reads of call `i`: tell rank 0 that its row may be overwritten."""
    place = cute.recast_ptr(smem + channel.ack, dtype=Float32) + ((i & (channel.sets - 1)) * channel.ranks + rank)
    exchange.push1(place, Float32(0.0), barrier(smem, channel, len(channel.tx) - 1, i), Int32(0))


@cute.jit
def broadcast_end(smem: cute.Pointer, channel: cutlass.Constexpr, calls: Int32, rank: Int32):
    """All consumer threads, after `calls` broadcasts: rank 0 waits for the last acknowledgements on their way to it, then may exit."""
    if (rank == 0) & (calls >= 2):
        finish_round(smem, channel, len(channel.tx) - 1, calls - 2)
