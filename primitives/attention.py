"""Decode attention of one KV head over its tiles in the ring: an online softmax per warp, combined over the warps of a CTA.

A group of dim / 8 lanes holds one token, 8 dimensions a lane; a warp holds `32 * 8 / dim` tokens at a time and takes two such batches per
step. Where many query heads share a KV head, warps split the heads among `head_groups`, and the tokens among the remaining warps.
Softmax runs in base 2: scores are scaled by log2(e) / sqrt(dim), and kept as (m, l, o) = (max, sum, unnormalised output).
"""

from __future__ import annotations

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import cta, frag, warp
from primitives import ring as rings

LOWEST = -1e30  # below any score; finite, so that differences of two of them are not NaN


@dataclass(frozen=True)
class Attend:
    """`heads` query heads per KV head, head size `dim`, tiles of `tokens` tokens, `warps` consumer warps."""

    heads: int
    dim: int
    tokens: int
    warps: int = 8

    @property
    def lanes(self) -> int:
        """Lanes that share one token."""
        return self.dim // 8

    @property
    def head_groups(self) -> int:
        """Groups of at most 4 query heads, each with its own warps: more would not fit in registers."""
        return -(-self.heads // 4)

    @property
    def heads_per_warp(self) -> int:
        return -(-self.heads // self.head_groups)

    @property
    def token_groups(self) -> int:
        return self.warps // self.head_groups

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one warp takes at a time: two batches."""
        return 2 * 32 // self.lanes

    @property
    def steps(self) -> int:
        """Steps of one warp through one tile."""
        return self.tokens // (self.token_groups * self.tokens_per_step)


@cute.jit
def _scores(k: cute.Tensor, q: cute.Tensor, shape: cutlass.Constexpr) -> Float32:
    acc = Float32(0.0)
    for j in cutlass.range_constexpr(8):
        acc += k[j].to(Float32) * q[j]
    return warp.total(acc, shape.lanes)


@cute.jit
def _step(k: cute.Tensor, v: cute.Tensor, ok0, ok1, q: cute.Tensor, m: cute.Tensor, l: cute.Tensor, o: cute.Tensor,
          shape: cutlass.Constexpr):
    """Fold two batches of tokens into the running softmax of each head."""
    for h in cutlass.range_constexpr(shape.heads_per_warp):
        s0 = _scores(k[(None, 0)], q[(None, h)], shape)
        s1 = _scores(k[(None, 1)], q[(None, h)], shape)
        if not ok0:
            s0 = -Float32.inf
        if not ok1:
            s1 = -Float32.inf
        top = cute.arch.fmax(m[h], cute.arch.fmax(s0, s1))
        keep = cute.math.exp2(m[h] - top, fastmath=True)
        p0 = cute.math.exp2(s0 - top, fastmath=True)
        p1 = cute.math.exp2(s1 - top, fastmath=True)
        m[h] = top
        l[h] = l[h] * keep + p0 + p1
        for j in cutlass.range_constexpr(8):
            o[j, h] = o[j, h] * keep + p0 * v[j, 0].to(Float32) + p1 * v[j, 1].to(Float32)


@cute.jit
def _fold_new(k_new: cute.Tensor, v_new: cute.Tensor, dtype: cutlass.Constexpr, mine, q: cute.Tensor, m: cute.Tensor, l: cute.Tensor,
              o: cute.Tensor, shape: cutlass.Constexpr):
    """Fold the token that is being appended, from shared memory, rounded as the cache will hold it."""
    d0 = (cta.lane() % shape.lanes) * 8
    for h in cutlass.range_constexpr(shape.heads_per_warp):
        s = Float32(0.0)
        for j in cutlass.range_constexpr(8):
            s += k_new[d0 + j].to(dtype).to(Float32) * q[j, h]
        s = warp.total(s, shape.lanes)
        if mine:
            top = cute.arch.fmax(m[h], s)
            keep = cute.math.exp2(m[h] - top, fastmath=True)
            p = cute.math.exp2(s - top, fastmath=True)
            m[h] = top
            l[h] = l[h] * keep + p
            for j in cutlass.range_constexpr(8):
                o[j, h] = o[j, h] * keep + p * v_new[d0 + j].to(dtype).to(Float32)


@cute.jit
def _merge_lanes(m: cute.Tensor, l: cute.Tensor, o: cute.Tensor, shape: cutlass.Constexpr):
    """Merge the batches that a warp's lane groups held side by side; every lane ends with the warp's (m, l, o)."""
    for i in cutlass.range_constexpr((32 // shape.lanes).bit_length() - 1):
        step = 16 >> i
        for h in cutlass.range_constexpr(shape.heads_per_warp):
            other = cute.arch.shuffle_sync_bfly(m[h], step)
            top = cute.arch.fmax(m[h], other)
            keep = cute.math.exp2(m[h] - top, fastmath=True)
            m[h] = top
            mine = l[h] * keep
            l[h] = mine + cute.arch.shuffle_sync_bfly(mine, step)
            for j in cutlass.range_constexpr(8):
                term = o[j, h] * keep
                o[j, h] = term + cute.arch.shuffle_sync_bfly(term, step)


@cute.jit
def decode(
    smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, q: cute.Tensor, k_new: cute.Tensor, v_new: cute.Tensor,
    shape: cutlass.Constexpr, dtype: cutlass.Constexpr, scale: cutlass.Constexpr, length: Int32, tiles: Int32, rank: Int32,
    ranks: cutlass.Constexpr, part_o: cute.Tensor, part_ml: cute.Tensor,
) -> Int32:
    """Attend to this rank's `tiles` tiles (token tiles rank, rank + ranks, ... below `length`) and, on the last rank, to the new token.

    Before: `q` f32 (heads * dim,), `k_new`, `v_new` f32 (dim,) in shared memory, rotated and synchronised. After a consumer barrier:
    `part_o` f32 (token_groups, heads, dim) and `part_ml` f32 (token_groups, heads, 2) hold each warp's (o; m, l): see `combine_warps`.
    Returns the number of the next tile. Tokens at or past `length` never reach the result, whatever the stage holds there.
    """
    w = cta.warp()
    lane = cta.lane()
    group = w % shape.head_groups
    part = w // shape.head_groups
    in_token = lane % shape.lanes
    hpw = cutlass.const_expr(shape.heads_per_warp)
    qr = cute.make_rmem_tensor((8, hpw), Float32)
    o = cute.make_rmem_tensor((8, hpw), Float32)
    m = cute.make_rmem_tensor(hpw, Float32)
    l = cute.make_rmem_tensor(hpw, Float32)
    for h in cutlass.range_constexpr(hpw):
        head = cutlass.min(group * hpw + h, Int32(shape.heads - 1))
        for j in cutlass.range_constexpr(8):
            qr[j, h] = q[head * shape.dim + in_token * 8 + j] * scale
            o[j, h] = Float32(0.0)
        m[h] = Float32(LOWEST)
        l[h] = Float32(0.0)
    k = cute.make_rmem_tensor((8, 2), dtype)
    v = cute.make_rmem_tensor((8, 2), dtype)
    batch = cutlass.const_expr(32 // shape.lanes)
    for t in cutlass.range(tiles, unroll=1):
        rings.wait(smem, ring, at + t)
        keys = rings.slot(smem, ring, at + t, dtype)
        values = keys + shape.tokens * shape.dim
        valid = length - (rank + t * ranks) * shape.tokens
        for u in cutlass.range_constexpr(shape.steps):
            # warps past the last token group re-read its tokens; their result is dropped below
            first = (u * shape.token_groups + part % shape.token_groups) * shape.tokens_per_step + lane // shape.lanes
            for b in cutlass.range_constexpr(2):
                token = cutlass.min(first + b * batch, valid - 1)
                frag.load8(keys + token * shape.dim + in_token * 8, k[(None, b)])
                frag.load8(values + token * shape.dim + in_token * 8, v[(None, b)])
            if cutlass.const_expr(u == shape.steps - 1):
                rings.release(smem, ring, at + t)
            _step(k, v, first < valid, first + batch < valid, qr, m, l, o, shape)
    mine = (rank == ranks - 1) & (part == 0) & (lane < shape.lanes)
    _fold_new(k_new, v_new, dtype, mine, qr, m, l, o, shape)
    _merge_lanes(m, l, o, shape)
    for h in cutlass.range_constexpr(hpw):
        head = group * hpw + h
        if (part < shape.token_groups) & (head < shape.heads) & (lane < shape.lanes):
            for j in cutlass.range_constexpr(8):
                part_o[part, head, in_token * 8 + j] = o[j, h]
            if lane == 0:
                part_ml[part, head, 0] = m[h]
                part_ml[part, head, 1] = l[h]
    return at + tiles


@cute.jit
def combine_warps(
    part_o: cute.Tensor, part_ml: cute.Tensor, shape: cutlass.Constexpr, o: cute.Tensor, stats: cute.Tensor, head0: cutlass.Constexpr,
    threads: cutlass.Constexpr,
):
    """After a consumer barrier: the CTA's (o; m, l) of each head, into `o` f32 (heads * dim,), `stats` f32 (heads, 2) from head `head0`.

    `o` stays unnormalised: it is this rank's term of P(lse). Synchronise before reading.
    """
    for i in cutlass.range(cta.thread(), shape.heads * shape.dim, threads, unroll=1):
        h = i // shape.dim
        d = i % shape.dim
        top = part_ml[0, h, 0]
        for w in cutlass.range_constexpr(1, shape.token_groups):
            top = cute.arch.fmax(top, part_ml[w, h, 0])
        total = Float32(0.0)
        acc = Float32(0.0)
        for w in cutlass.range_constexpr(shape.token_groups):
            keep = cute.math.exp2(part_ml[w, h, 0] - top, fastmath=True)
            total += keep * part_ml[w, h, 1]
            acc += keep * part_o[w, h, d]
        o[head0 * shape.dim + i] = acc
        if d == 0:
            stats[head0 + h, 0] = top
            stats[head0 + h, 1] = total
