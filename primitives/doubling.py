"""Recursive doubling: log2(ranks) rounds, each with one partner, as in the ClusterFusion paper (arXiv:2508.18850), for comparison.

In round r, rank k and rank k ^ 2^r swap what they have. Rounds have barriers and landing places of their own. A rank pushes for call i+2
to its partner of a round after that partner's push of call i+1 in that round has come, so after the partner has finished call i: with
two sets, loops are safe as `collectives` says.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from primitives import cta, fold, transfer
from primitives.channel import barrier, finish_round, landing, result


@cute.jit
def reduce(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, src: cute.Pointer, rank: Int32):
    """All-reduce; see `collectives.cluster_reduce`. Terms travel in float32: `channel.dtype` is f32 whatever `src` and result are.

    A round's landing place has two rows: its own of the rank with bit r clear, then that of the one with bit r set, so both ranks
    combine the same two in the same order and all ranks end with the same bits. Bytes on each round's barrier: `nbytes`.
    """
    rounds = cutlass.const_expr(channel.ranks.bit_length() - 1)
    cta.consumer_sync(channel.warps)
    out = result(smem, channel, i)
    if cutlass.const_expr(rounds == 0):
        fold.terms(src, 0, 1, out, channel.n, channel.op, channel.dim, True, channel.threads)
    else:
        base = landing(smem, channel, i)
        fold.rows(src, 0, 1, base + (rank & 1) * channel.stride, channel.n, fold.SUM, channel.threads)
        for r in cutlass.range_constexpr(rounds):
            pair = base + r * 2 * channel.stride
            mine = transfer.words(pair + (rank >> r & 1) * channel.stride)
            cta.consumer_sync(channel.warps)
            transfer.push_to(mine, mine, channel.nbytes, barrier(smem, channel, r, i), rank ^ (1 << r), channel.threads)
            finish_round(smem, channel, r, i)
            if cutlass.const_expr(r == rounds - 1):
                fold.terms(pair, channel.stride, 2, out, channel.n, channel.op, channel.dim, True, channel.threads)
            else:
                then = base + (2 * (r + 1) + (rank >> (r + 1) & 1)) * channel.stride
                fold.terms(pair, channel.stride, 2, then, channel.n, channel.op, channel.dim, False, channel.threads)


@cute.jit
def gather(smem: cute.Pointer, channel: cutlass.Constexpr, i: Int32, src: cute.Pointer, rank: Int32):
    """All-gather; see `collectives.cluster_gather`. Round r moves the 2^r rows that a rank has by then, padding included.

    Bytes on round r's barrier: 2^r rows of `channel.stride` elements.
    """
    rounds = cutlass.const_expr(channel.ranks.bit_length() - 1)
    base = transfer.words(landing(smem, channel, i))
    cta.consumer_sync(channel.warps)
    transfer.copy(transfer.words(src), base + rank * channel.words, 4 * channel.words, channel.threads)
    cta.consumer_sync(channel.warps)
    for r in cutlass.range_constexpr(rounds):
        mine = base + (rank >> r << r) * channel.words
        nbytes = cutlass.const_expr(4 * channel.words << r)
        transfer.push_to(mine, mine, nbytes, barrier(smem, channel, r, i), rank ^ (1 << r), channel.threads)
        finish_round(smem, channel, r, i)
