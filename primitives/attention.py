"""Decode attention of one KV head over its tiles in the ring: an online softmax per warp, combined over the warps of a CTA.

A group of dim / 8 lanes holds one token, 8 dimensions a lane; a warp holds `32 * 8 / dim` tokens at a time and takes two such batches per
step. Where many query heads share a KV head, warps split the heads among `head_groups`, and the tokens among the remaining warps.
The running softmax is that of Milakov & Gimelshein 2018 (arXiv:1805.02867), merged over parts of the tokens as in Flash-Decoding.
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
    """`heads` query heads per KV head, head size `dim`, tiles of `tokens` tokens, `warps` consumer warps.

    `ahead`: the next tokens are on their way to registers while the last ones are worked on; 16 registers more.
    """

    heads: int
    dim: int
    tokens: int
    warps: int = 8
    ahead: bool = True

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
    def score_slots(self) -> int:
        """Scores of a step that one lane group sums together: two tokens x a power of two of heads."""
        return 2 if self.heads_per_warp == 1 else 4 if self.heads_per_warp == 2 else 8

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
def _step(now: cute.Tensor, ok0, ok1, q: cute.Tensor, running: cute.Tensor, o: cute.Tensor, scores: cute.Tensor, shape: cutlass.Constexpr):
    """Fold two tokens per lane group, `now` (8, token, key or value), into the running softmax of each head.

    The scores of all heads and both tokens are summed over the lanes of the group together, so each lane is left with one of them: the
    softmax of one (head, token) is that lane's work, `running` its (m, l), and only the weights go back to all lanes. Heads are rescaled
    only where a maximum has moved.
    """
    hpw = cutlass.const_expr(shape.heads_per_warp)
    n = cutlass.const_expr(shape.score_slots)
    stride = cutlass.const_expr(shape.lanes // n)
    base = cute.arch.lane_idx() // shape.lanes * shape.lanes
    for b in cutlass.range_constexpr(2):
        for h in cutlass.range_constexpr(n // 2):
            acc = Float32(0.0)
            if cutlass.const_expr(h < hpw):
                for j in cutlass.range_constexpr(8):
                    acc += now[j, b, 0].to(Float32) * q[j, h]
            scores[h * 2 + b] = acc
    score = warp.totals(scores, n, shape.lanes)
    ok = ok0
    if (cute.arch.lane_idx() // stride) % 2 == 1:
        ok = ok1
    if not ok:
        score = -Float32.inf
    top = cute.arch.fmax(score, cute.arch.shuffle_sync_bfly(score, stride))  # of the head's two tokens
    top = cute.arch.fmax(running[0], top)
    keep = cute.math.exp2(running[0] - top, fastmath=True)
    weight = cute.math.exp2(score - top, fastmath=True)
    running[0] = top
    running[1] = running[1] * keep + weight
    if cute.arch.vote_any_sync(keep < 1.0):
        for h in cutlass.range_constexpr(hpw):
            scale = cute.arch.shuffle_sync(keep, base + 2 * h * stride)
            for j in cutlass.range_constexpr(8):
                o[j, h] = o[j, h] * scale
    for h in cutlass.range_constexpr(hpw):
        p0 = cute.arch.shuffle_sync(weight, base + 2 * h * stride)
        p1 = cute.arch.shuffle_sync(weight, base + (2 * h + 1) * stride)
        for j in cutlass.range_constexpr(8):
            o[j, h] = o[j, h] + p0 * now[j, 0, 1].to(Float32) + p1 * now[j, 1, 1].to(Float32)


@cute.jit
def _per_head(running: cute.Tensor, m: cute.Tensor, l: cute.Tensor, shape: cutlass.Constexpr):
    """From one (m, l) per lane, its head's and token's, to those of every head on every lane of the group."""
    stride = cutlass.const_expr(shape.lanes // shape.score_slots)
    base = cute.arch.lane_idx() // shape.lanes * shape.lanes
    for h in cutlass.range_constexpr(shape.heads_per_warp):
        m[h] = cute.arch.shuffle_sync(running[0], base + 2 * h * stride)
        first = cute.arch.shuffle_sync(running[1], base + 2 * h * stride)
        l[h] = first + cute.arch.shuffle_sync(running[1], base + (2 * h + 1) * stride)


@cute.jit
def _first_token(step: cutlass.Constexpr, shape: cutlass.Constexpr) -> Int32:
    """The first of this lane's two tokens of a step, in the tile. Warps past the last token group re-read its tokens for nothing."""
    group = cta.warp() // shape.head_groups % shape.token_groups
    return (step * shape.token_groups + group) * shape.tokens_per_step + cta.lane() // shape.lanes


@cute.jit
def _fetch(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, step: cutlass.Constexpr, left: Int32, shape: cutlass.Constexpr,
           into: cute.Tensor):
    """Take this lane's 8 dimensions of two tokens, keys and values, into registers (8, token, key or value).

    Waits for tile `at` before its first step, releases its stage after the last one's loads. `left` tokens of the tile are valid.
    """
    if cutlass.const_expr(step == 0):
        rings.wait(smem, ring, at)
    keys = rings.slot(smem, ring, at, into.element_type) + cta.lane() % shape.lanes * 8
    for b in cutlass.range_constexpr(2):
        token = cutlass.min(_first_token(step, shape) + b * (32 // shape.lanes), left - 1)
        frag.load8(keys + token * shape.dim, into[(None, b, 0)])
        frag.load8(keys + (shape.tokens + token) * shape.dim, into[(None, b, 1)])
    if cutlass.const_expr(step == shape.steps - 1):
        rings.release(smem, ring, at)


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
    All consumer threads call it; the ring's barriers are the only ones inside. `scale` is log2(e) x the softmax scale. A rank without any
    token leaves (0; LOWEST, 0). Returns the number of the next tile. Tokens at or past `length` never reach the result, whatever the
    stage holds there.
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
    running = cute.make_rmem_tensor(2, Float32)
    running[0] = Float32(LOWEST)
    running[1] = Float32(0.0)
    scores = cute.make_rmem_tensor(shape.score_slots, Float32)
    even = cute.make_rmem_tensor((8, 2, 2), dtype)
    odd = cute.make_rmem_tensor((8, 2, 2), dtype)
    odd.fill(0)  # with one tile, a round's second half works on these: masked, but zero times NaN is NaN
    # tiles per round, so that rounds start with the even registers
    at_once = cutlass.const_expr(2 if shape.ahead and shape.steps % 2 == 1 else 1)
    if cutlass.const_expr(shape.ahead):
        if tiles > 0:
            _fetch(smem, ring, at, 0, length - rank * shape.tokens, shape, even)
    for t in cutlass.range(0, tiles, at_once, unroll=1):
        for n in cutlass.range_constexpr(at_once * shape.steps):
            now, then = (even, odd) if n % 2 == 0 or not shape.ahead else (odd, even)
            tile = t + n // shape.steps
            left = length - (rank + tile * ranks) * shape.tokens  # zero or less in a tile past the last: all of it is masked
            if cutlass.const_expr(shape.ahead):
                following = t + (n + 1) // shape.steps
                if following < tiles:
                    rest = length - (rank + following * ranks) * shape.tokens
                    _fetch(smem, ring, at + following, (n + 1) % shape.steps, rest, shape, then)
            else:
                _fetch(smem, ring, at + tile, n, left, shape, now)
            first = _first_token(n % shape.steps, shape)
            _step(now, first < left, first + 32 // shape.lanes < left, qr, running, o, scores, shape)
    _per_head(running, m, l, shape)
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

    `threads` consumer threads, from 0. `part_o`, `part_ml` as `decode` left them; warps are combined in order, so the bits repeat.

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


@cute.jit
def store_terms(
    outs: cute.Tensor, stats: cute.Tensor, src: cute.Tensor, src_stats: cute.Tensor, heads: cutlass.Constexpr, block: cutlass.Constexpr,
    dim: cutlass.Constexpr, all_heads: cutlass.Constexpr, split: Int32, head0: Int32, rank: Int32, threads: cutlass.Constexpr,
):
    """Write this rank's slice of `heads` softmax terms, from head `head0`, to global memory; rank 0 writes the statistics.

    `outs` f32 (splits, all_heads, dim) and `stats` f32 (splits, all_heads, 2), flattened; the slice is dimensions
    [rank * block, (rank + 1) * block) of each head. Follow with `grid.barrier`, then `load_terms`.
    """
    for i in cutlass.range(cta.thread(), heads * block, threads, unroll=1):
        outs[((split * all_heads + head0) + i // block) * dim + rank * block + i % block] = src[i]
    if (rank == 0) & (cta.thread() < heads):
        at = (split * all_heads + head0 + cta.thread()) * 2
        stats[at] = src_stats[cta.thread(), 0]
        stats[at + 1] = src_stats[cta.thread(), 1]


@cute.jit
def load_terms(
    outs: cute.Tensor, stats: cute.Tensor, splits: cutlass.Constexpr, heads: cutlass.Constexpr, dim: cutlass.Constexpr,
    shape: cutlass.Constexpr,
) -> cute.TensorSSA:
    """The fragment of all heads' attention outputs, `heads * dim` f32: the terms of `splits` clusters combined in order, normalised.

    `outs` and `stats` as `store_terms` left them, after a grid barrier.
    """
    raw = cute.make_rmem_tensor((8, splits), Float32)
    out = cute.make_rmem_tensor((8, shape.chunks_per_lane), Float32)
    out.fill(0.0)
    for i in cutlass.range_constexpr(shape.chunks_per_lane):
        c = frag.chunk(shape, i)
        if c < shape.chunks:
            h = (frag.start(shape, i) + c * 8) // dim
            top = Float32(LOWEST)
            for s in cutlass.range_constexpr(splits):
                frag.load8(outs.iterator + (s * heads * dim + frag.start(shape, i) + c * 8), raw[(None, s)])
                top = cute.arch.fmax(top, stats[(s * heads + h) * 2])
            total = Float32(0.0)
            for s in cutlass.range_constexpr(splits):
                keep = cute.math.exp2(stats[(s * heads + h) * 2] - top, fastmath=True)
                total += keep * stats[(s * heads + h) * 2 + 1]
                for j in cutlass.range_constexpr(8):
                    out[j, i] = out[j, i] + keep * raw[j, s]
            inverse = 1.0 / total
            for j in cutlass.range_constexpr(8):
                out[j, i] = out[j, i] * inverse
    return out.load()
