"""Harness kernels with a ring: one producer warp, WARPS consumer warps."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
import harness
from cutlass import Float32, Int32, Int64
from harness import THREADS, WARPS

from primitives import attention, cluster_reduce, cta, frag, gemv, stream
from primitives import ring as rings

BLOCK = THREADS + 32


def ring_of(stages: int, stage_bytes: int, early: int = 0) -> rings.Ring:
    """A ring at the start of the arena, its barriers behind the data; with a limit on `early` tiles, a word between them."""
    data = stages * stage_bytes
    full = data + 8 * (early > 0)
    return rings.Ring(
        stages=stages, stage_bytes=stage_bytes, warps=WARPS, data=0, full=full, empty=full + 8 * stages,
        window=early + 1 if early else 0, early=early, passed=data if early else 0,
    )  # fmt: skip


def after(ring: rings.Ring) -> int:
    """The first byte behind a ring, on 128."""
    return -(-(ring.empty + 8 * ring.stages) // 128) * 128


def places(start: int, *floats: int) -> tuple[int, ...]:
    """Byte offsets from `start` of vectors of so many f32, on 16 bytes, and the end of the last."""
    offsets = [start]
    for n in floats:
        offsets.append(offsets[-1] + -(-4 * n // 16) * 16)
    return tuple(offsets)


@cute.kernel
def product(
    late: cute.Tensor, x: cute.Tensor, weight: cute.Tensor, where: cute.Tensor, out: cute.Tensor, ring: cutlass.Constexpr,
    made: cutlass.Constexpr, shape: cutlass.Constexpr, first: cutlass.Constexpr, second: cutlass.Constexpr,
):
    """out = rows of weight[:, col0 : col0 + cols] @ x (cols,), in two streams of `first` and `second` runs of rows through one ring.

    where: the first row of each stream, then col0. out is ((first + second) * rows,). `made`: the ring whose arrival counts the
    barriers get, `ring` itself unless the kernel is to be broken. With early tiles the second stream stands behind a grid barrier, which
    the consumers say they have passed when they are through with the first.
    """
    part_bytes = cutlass.const_expr(4 * shape.warps_per_row * shape.rows * (first + second))
    nbytes = cutlass.const_expr(after(ring) + part_bytes)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, BLOCK)
    if cta.thread() == 0:
        rings.init(smem, made)
    harness.meet(late)
    terms0 = cta.view(smem, after(ring), Float32, (shape.warps_per_row, shape.rows * first))
    terms1 = cta.view(
        smem, after(ring) + 4 * shape.warps_per_row * shape.rows * first, Float32, (shape.warps_per_row, shape.rows * second)
    )
    if cta.warp() == WARPS:
        at = Int32(0)
        at = stream.rows(smem, ring, at, weight, shape, where[0], where[2], Int32(first * shape.pieces))
        later = cutlass.const_expr(ring.behind(1) if ring.early else ring)
        at = stream.rows(smem, later, at, weight, shape, where[1], where[2], Int32(second * shape.pieces))
    else:
        at = Int32(0)
        vector = frag.hold(frag.load(x, shape))
        at = gemv.rows(smem, ring, at, vector, weight.element_type, shape, Int32(first * shape.pieces), terms0)
        if cutlass.const_expr(ring.early > 0):
            rings.passed(smem, ring, 1)
        at = gemv.rows(smem, ring, at, vector, weight.element_type, shape, Int32(second * shape.pieces), terms1)
        cta.consumer_sync(WARPS)
        for i in cutlass.range(cta.thread(), shape.rows * first, THREADS, unroll=1):
            out[i] = gemv.total(terms0, i, shape.warps_per_row)
        for i in cutlass.range(cta.thread(), shape.rows * second, THREADS, unroll=1):
            out[shape.rows * first + i] = gemv.total(terms1, i, shape.warps_per_row)
    harness.leave()


@cute.kernel
def attend(
    late: cute.Tensor, q: cute.Tensor, k_new: cute.Tensor, v_new: cute.Tensor, keys: cute.Tensor, values: cute.Tensor,
    where: cute.Tensor, out: cute.Tensor, out_stats: cute.Tensor, final: cute.Tensor, ring: cutlass.Constexpr,
    tokens: cutlass.Constexpr, shape: cutlass.Constexpr, scale: cutlass.Constexpr, ranks: cutlass.Constexpr,
):
    """One KV head's attention by `ranks` CTAs: out (ranks, heads * dim), out_stats (ranks, heads, 2), unnormalised terms of P(lse).

    where: the tokens in the cache, the element at which the head begins. final (ranks, heads * dim): each rank's own, normalised.
    """
    size = cutlass.const_expr(shape.heads * shape.dim)
    groups = cutlass.const_expr(shape.token_groups)
    at_q, at_k, at_v, at_o, at_ml, at_sum, at_stats, at_final, nbytes = cutlass.const_expr(
        places(after(ring), size, shape.dim, shape.dim, groups * size, 2 * groups * shape.heads, size, 2 * shape.heads, size)
    )
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, BLOCK)
    if cta.thread() == 0:
        rings.init(smem, ring)
    harness.meet(late)
    rank, _, _ = cute.arch.block_idx()
    length = where[0]
    if cta.warp() == WARPS:
        stream.tokens(smem, ring, Int32(0), keys, values, tokens, Int64(where[1]), length, rank, ranks)
    else:
        query = cta.view(smem, at_q, Float32, size)
        k = cta.view(smem, at_k, Float32, shape.dim)
        v = cta.view(smem, at_v, Float32, shape.dim)
        part_o = cta.view(smem, at_o, Float32, (groups, shape.heads, shape.dim))
        part_ml = cta.view(smem, at_ml, Float32, (groups, shape.heads, 2))
        o = cta.view(smem, at_sum, Float32, size)
        flat_stats = cta.view(smem, at_stats, Float32, (shape.heads, 2))
        stats = cta.view(smem, at_stats, Float32, (1, shape.heads, 2))
        normal = cta.view(smem, at_final, Float32, size)
        for i in cutlass.range(cta.thread(), size, THREADS, unroll=1):
            query[i] = q[i]
        for i in cutlass.range(cta.thread(), shape.dim, THREADS, unroll=1):
            k[i] = k_new[i]
            v[i] = v_new[i]
        cta.consumer_sync(WARPS)
        tiles = stream.tile_count(length, tokens.tokens, rank, ranks)
        attention.decode(
            smem, ring, Int32(0), query, k, v, shape, keys.element_type, scale, length, tiles, rank, ranks, part_o, part_ml
        )
        cta.consumer_sync(WARPS)
        attention.combine_warps(part_o, part_ml, shape, o, flat_stats, 0, THREADS)
        cta.consumer_sync(WARPS)
        cluster_reduce.combine_lse(cta.row(o), stats, normal, shape.heads, shape.dim, 1, THREADS)
        cta.consumer_sync(WARPS)
        for i in cutlass.range(THREADS - 1 - cta.thread(), size, THREADS, unroll=1):
            out[rank, i] = o[i]
            final[rank, i] = normal[i]
        for i in cutlass.range(cta.thread(), 2 * shape.heads, THREADS, unroll=1):
            out_stats[rank, i // 2, i % 2] = stats[0, i // 2, i % 2]
    harness.leave()
