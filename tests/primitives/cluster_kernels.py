"""Harness kernels of clusters, and of the whole grid."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
import harness
from cutlass import Float32, Int32
from harness import THREADS, WARPS
from ring_kernels import places

from primitives import cluster_gather, cluster_reduce, cta, exchange, frag, grid, multicast, stream, terms

PUSHED = 7  # f32 that one push4, one push2 and one push1 carry


@cute.kernel
def pushes(late: cute.Tensor, x: cute.Tensor, out: cute.Tensor, ranks: cutlass.Constexpr):
    """Each rank pushes its 7 values of x (CTAs, 7) to the next rank, by push4, push2 and push1; out (CTAs, 7) is what it received."""
    nbytes = cutlass.const_expr(128)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    rank = cute.arch.block_idx_in_cluster()
    block, _, _ = cute.arch.block_idx()
    mbar = cta.barriers(smem, 96)
    if cta.thread() == 0:
        exchange.init(mbar, 4 * PUSHED)
        exchange.arm(mbar, 4 * PUSHED)
    harness.meet(late)
    mine = cta.view(smem, 0, Float32, 8)
    box = cta.view(smem, 32, Float32, 8)
    if cta.thread() == 0:
        for i in cutlass.range_constexpr(4):
            mine[i] = x[block, i]
        peer = (rank + 1) % ranks
        exchange.push4(box.iterator, mine.iterator, mbar, peer)
        exchange.push2(box.iterator + 4, x[block, 4], x[block, 5], mbar, peer)
        exchange.push1(box.iterator + 6, x[block, 6], mbar, peer)
    exchange.wait(mbar)
    if cta.thread() < PUSHED:
        out[block, cta.thread()] = box[cta.thread()]
    harness.leave()


# Sizes of the collectives' values on one rank: not powers of two where they need not be.
GATHER, GATHER_BLOCK = 24, 12  # two blocks: of two heads, say
REDUCE = 20
BLOCKS, BLOCK = 3, 8  # reduce-scatter: three heads, 8 elements of each for every rank
KINDS = ("scalar", "gather", "reduce", "scatter")  # scatter: outputs and stats of P(lse), combined


def sizes(ranks: int) -> dict[str, tuple[int, int]]:
    """(f32 in, f32 out) of each collective on one rank; scatter's input is the outputs, then the stats."""
    return {
        "scalar": (1, 1),
        "gather": (GATHER, GATHER * ranks),
        "reduce": (REDUCE, REDUCE),
        "scatter": (BLOCKS * BLOCK * ranks + 2 * BLOCKS, BLOCKS * BLOCK),
    }


@cute.kernel
def collective(late: cute.Tensor, x: cute.Tensor, out: cute.Tensor, kind: cutlass.Constexpr, ranks: cutlass.Constexpr):
    """One collective of a cluster: x (CTAs, in) -> out (CTAs, out), see `sizes`. Every consumer barrier that a caller owes is here."""
    n_in, n_out = cutlass.const_expr(sizes(ranks)[kind])
    box_size = cutlass.const_expr({"scalar": ranks, "gather": n_out, "reduce": REDUCE * ranks, "scatter": BLOCKS * BLOCK * ranks}[kind])
    at_src, at_box, at_stats, at_dst, nbytes = cutlass.const_expr(
        places(16, n_in, box_size, 2 * BLOCKS * ranks, n_out)
    )
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    rank = cute.arch.block_idx_in_cluster()
    block, _, _ = cute.arch.block_idx()
    mbar = cta.barriers(smem, 0)
    received = cutlass.const_expr(4 * box_size + (8 * BLOCKS * ranks if kind == "scatter" else 0))
    if cta.thread() == 0:
        exchange.init(mbar, received)
        exchange.arm(mbar, received)
    harness.meet(late)
    src = cta.view(smem, at_src, Float32, n_in)
    box = cta.view(smem, at_box, Float32, box_size)
    dst = cta.view(smem, at_dst, Float32, n_out)
    for i in cutlass.range(THREADS - 1 - cta.thread(), n_in, THREADS, unroll=1):  # by the last warps: the first ones push
        src[i] = x[block, i]
    cta.consumer_sync(WARPS)
    if cutlass.const_expr(kind == "scalar"):
        cluster_reduce.push_scalar(src[0], box, mbar, rank, ranks)
        exchange.wait(mbar)
        total = cluster_reduce.sum_scalar(box, ranks)
        if cta.thread() == 0:
            dst[0] = total
    elif cutlass.const_expr(kind == "gather"):
        cluster_gather.push(src, box, GATHER, GATHER_BLOCK, mbar, rank, ranks, THREADS)
        exchange.wait(mbar)
        for i in cutlass.range(cta.thread(), n_out, THREADS, unroll=1):
            dst[i] = box[i]
    elif cutlass.const_expr(kind == "reduce"):
        rows = cta.view(smem, at_box, Float32, (ranks, REDUCE))
        cluster_reduce.push(src, rows, REDUCE, mbar, rank, ranks, THREADS)
        exchange.wait(mbar)
        cluster_reduce.sum_rows(rows, dst, REDUCE, ranks, THREADS)
    else:
        rows = cta.view(smem, at_box, Float32, (ranks, BLOCKS * BLOCK))
        sent = cute.make_tensor(src.iterator + BLOCKS * BLOCK * ranks, cute.make_layout((BLOCKS, 2), stride=(2, 1)))
        stats = cta.view(smem, at_stats, Float32, (ranks, BLOCKS, 2))
        cluster_reduce.scatter(src, rows, BLOCKS, BLOCK, mbar, rank, ranks, THREADS)
        cluster_reduce.push_lse(sent, stats, BLOCKS, mbar, rank, ranks, THREADS)
        exchange.wait(mbar)
        cluster_reduce.combine_lse(rows, stats, dst, BLOCKS, BLOCK, ranks, THREADS)
    cta.consumer_sync(WARPS)
    for i in cutlass.range(THREADS - 1 - cta.thread(), n_out, THREADS, unroll=1):
        out[block, i] = dst[i]
    harness.leave()


@cute.kernel
def broadcast(late: cute.Tensor, x: cute.Tensor, out: cute.Tensor, n: cutlass.Constexpr, ranks: cutlass.Constexpr):
    """out (CTAs, n) = x (n,) on every rank, by `multicast.gather`."""
    nbytes = cutlass.const_expr(128 + -(-4 * n // 128) * 128)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    rank = cute.arch.block_idx_in_cluster()
    block, _, _ = cute.arch.block_idx()
    mbar = cta.barriers(smem, 0)
    received = cutlass.const_expr(n * x.element_type.width // 8)
    if cta.thread() == 0:
        exchange.init(mbar, received)
        exchange.arm(mbar, received)
    harness.meet(late)
    whole = cta.view(smem, 128, x.element_type, n)
    multicast.gather(x, whole, n, mbar, rank, ranks)
    exchange.wait(mbar)
    for i in cutlass.range(THREADS - 1 - cta.thread(), n, THREADS, unroll=1):
        out[block, i] = whole[i]
    harness.leave()


PUBLISHED, RUN = 8, 4  # f32 of one CTA, in runs of 4 with as much between them as all CTAs' runs take


@cute.kernel
def grid_exchange(
    late: cute.Tensor, x: cute.Tensor, sync: cute.Tensor, ws: cute.Tensor, acc: cute.Tensor, out: cute.Tensor, sums: cute.Tensor,
    ctas: cutlass.Constexpr, counted: cutlass.Constexpr,
):
    """Each CTA publishes x[cta] (8,) to ws (2, ctas * 4), adds it to acc (8,), and after the barrier reads both whole.

    out (ctas, 2 * ctas * 4) and sums (ctas, 8): what each CTA saw. `counted`: CTAs that the barrier expects.
    """
    nbytes = cutlass.const_expr(128)
    total = cutlass.const_expr(PUBLISHED * ctas)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    harness.meet(late)
    block, _, _ = cute.arch.block_idx()
    mine = cta.view(smem, 0, Float32, PUBLISHED)
    t = THREADS - 1 - cta.thread()
    if t < PUBLISHED:
        mine[t] = x[block, t]
    cta.consumer_sync(WARPS)
    grid.publish(ws, mine, PUBLISHED, RUN, RUN * ctas, Int32(block * RUN), THREADS)
    if t < PUBLISHED:  # by the last warp
        grid.add(acc, t, mine[t])
    grid.barrier(sync, grid.phase(sync), counted, WARPS)
    for i in cutlass.range(t, total, THREADS, unroll=1):
        out[block, i] = cute.arch.load(ws.iterator + i, Float32, sem="relaxed", scope="gpu")
    if cta.thread() < PUBLISHED:
        sums[block, cta.thread()] = cute.arch.load(acc.iterator + cta.thread(), Float32, sem="relaxed", scope="gpu")
    harness.leave()


SPLIT_HEADS, SPLIT_DIM, SPLIT_GROUPS = 3, 64, 2  # heads of one cluster, their size, and how many such groups of heads there are


@cute.kernel
def split_softmax(
    late: cute.Tensor, x: cute.Tensor, sync: cute.Tensor, ws_o: cute.Tensor, ws_ml: cute.Tensor, out: cute.Tensor,
    ranks: cutlass.Constexpr, splits: cutlass.Constexpr, pushed: cutlass.Constexpr,
):
    """Softmax terms of SPLIT_GROUPS x `splits` clusters: merged over ranks, stored, loaded after a grid barrier and combined.

    `pushed`: each rank combines a part of them and pushes it to its peers, to where its input lay.

    x (CTAs, heads * dim + 2 * heads): each rank's outputs, then (m, l). out (CTAs, groups * heads * dim): what each CTA made of all.
    """
    heads, dim = cutlass.const_expr((SPLIT_HEADS, SPLIT_DIM))
    n = cutlass.const_expr(heads * dim)
    block = cutlass.const_expr(dim // ranks)
    shape = cutlass.const_expr(stream.Rows(cols=SPLIT_GROUPS * n, ld=SPLIT_GROUPS * n, rows=8, warps_per_row=8))
    at_src, at_box, at_stats, at_dst, at_merged, nbytes = cutlass.const_expr(
        places(16, SPLIT_GROUPS * n, heads * block * ranks, 2 * heads * ranks, heads * block, 2 * heads)
    )
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    rank = cute.arch.block_idx_in_cluster()
    cta_index, _, _ = cute.arch.block_idx()
    cluster = cta_index // ranks
    mbar = cta.barriers(smem, 0)
    received = cutlass.const_expr(4 * heads * block * ranks + 8 * heads * ranks)
    if cta.thread() == 0:
        exchange.init(mbar, received)
        exchange.arm(mbar, received)
        exchange.init(mbar + 1, SPLIT_GROUPS * n * 4)
        exchange.arm(mbar + 1, SPLIT_GROUPS * n * 4)
    harness.meet(late)
    src = cta.view(smem, at_src, Float32, n + 2 * heads)
    sent = cute.make_tensor(src.iterator + n, cute.make_layout((heads, 2), stride=(2, 1)))
    rows = cta.view(smem, at_box, Float32, (ranks, heads * block))
    stats = cta.view(smem, at_stats, Float32, (ranks, heads, 2))
    dst = cta.view(smem, at_dst, Float32, heads * block)
    merged = cta.view(smem, at_merged, Float32, (heads, 2))
    for i in cutlass.range(cta.thread(), n + 2 * heads, THREADS, unroll=1):
        src[i] = x[cta_index, i]
    cta.consumer_sync(WARPS)
    cluster_reduce.scatter(src, rows, heads, block, mbar, rank, ranks, THREADS)
    cluster_reduce.push_lse(sent, stats, heads, mbar, rank, ranks, THREADS)
    exchange.wait(mbar)
    cluster_reduce.merge_lse(rows, stats, dst, merged, heads, block, ranks, THREADS)
    cta.consumer_sync(WARPS)
    terms.store(
        ws_o, ws_ml, dst, merged, heads, block, dim, SPLIT_GROUPS * heads, cluster % splits, cluster // splits * heads, rank, THREADS
    )
    grid.barrier(sync, grid.phase(sync), SPLIT_GROUPS * splits * ranks, WARPS)
    if cutlass.const_expr(pushed):
        whole = cta.view(smem, at_src, Float32, SPLIT_GROUPS * n)
        terms.push(ws_o, ws_ml, splits, SPLIT_GROUPS * heads, dim, whole, mbar + 1, rank, ranks, THREADS)
        exchange.wait(mbar + 1)
        frag.store(out, frag.load(whole, shape), shape, cta_index * SPLIT_GROUPS * n)
    else:
        value = terms.load(ws_o, ws_ml, splits, SPLIT_GROUPS * heads, dim, shape)
        frag.store(out, value, shape, cta_index * SPLIT_GROUPS * n)
    harness.leave()
