"""Decode attention of one KV head over its tiles in the ring: an online softmax per warp, combined over the warps of a CTA.

A group of dim / 8 lanes holds one token, 8 dimensions a lane; a warp holds `32 * 8 / dim` tokens at a time and takes two or four such
batches per step: what a step costs is its chain of dependent sums and exponentials more than its products. Where many query heads share
a KV head, warps split the heads among `head_groups`, and the tokens among the remaining warps.
The running softmax is that of Milakov & Gimelshein 2018 (arXiv:1805.02867), merged over parts of the tokens as in Flash-Decoding.
Softmax runs in base 2: scores are scaled by log2(e) / sqrt(dim), and kept as (m, l, o) = (max, sum, unnormalised output).
"""

from __future__ import annotations

import math
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

    `ahead`: the next tokens are on their way to registers while the last ones are worked on; `8 * batches` registers more.
    `batches`: tokens that a lane group takes at a time, 2, or 4 where their scores fit on its lanes.
    """

    heads: int
    dim: int
    tokens: int
    warps: int = 8
    ahead: bool = True
    batches: int = 2

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
        """Scores of a step that one lane group sums together: its tokens x a power of two of heads. At most one a lane."""
        return self.batches * (1 if self.heads_per_warp == 1 else 2 if self.heads_per_warp == 2 else 4)

    @property
    def token_groups(self) -> int:
        return self.warps // self.head_groups

    @property
    def tokens_per_piece(self) -> int:
        """Tokens of one tile that one warp loads together: two batches."""
        return 2 * 32 // self.lanes

    @property
    def pieces(self) -> int:
        """Pieces of one tile that one warp takes."""
        return self.tokens // (self.token_groups * self.tokens_per_piece)

    @property
    def tiles_per_round(self) -> int:
        """Tiles after which a warp is at the start of a tile, of a step, and of the even registers."""
        pieces = self.batches // 2 * (2 if self.ahead else 1)
        return pieces // math.gcd(pieces, self.pieces)


@cute.jit
def _step(now: cute.Tensor, ok, q: cute.Tensor, running: cute.Tensor, o: cute.Tensor, scores: cute.Tensor, shape: cutlass.Constexpr):
    """Fold the lane groups' tokens `now` (8, batches, key or value) into the running softmax of each head.

    The scores of all heads and tokens are summed over the lanes of the group together, so each lane is left with one of them: the
    softmax of one (head, token) is that lane's work, `running` its (m, l), `ok` whether its token counts, and only the weights go back to
    all lanes. Heads are rescaled only where a maximum has moved.
    """
    hpw = cutlass.const_expr(shape.heads_per_warp)
    batches = cutlass.const_expr(shape.batches)
    n = cutlass.const_expr(shape.score_slots)
    stride = cutlass.const_expr(shape.lanes // n)
    base = cute.arch.lane_idx() // shape.lanes * shape.lanes
    for b in cutlass.range_constexpr(batches):
        for h in cutlass.range_constexpr(n // batches):
            acc = Float32(0.0)
            if cutlass.const_expr(h < hpw):
                for j in cutlass.range_constexpr(8):
                    acc += now[j, b, 0].to(Float32) * q[j, h]
            scores[h * batches + b] = acc
    score = warp.totals(scores, n, shape.lanes)
    if not ok:
        score = -Float32.inf
    top = cute.arch.fmax(running[0], _over_tokens(score, stride, batches))
    keep = cute.math.exp2(running[0] - top, fastmath=True)
    weight = cute.math.exp2(score - top, fastmath=True)
    running[0] = top
    running[1] = running[1] * keep + weight
    if cute.arch.vote_any_sync(keep < 1.0):
        for h in cutlass.range_constexpr(hpw):
            scale = cute.arch.shuffle_sync(keep, base + h * batches * stride)
            for j in cutlass.range_constexpr(8):
                o[j, h] = o[j, h] * scale
    for h in cutlass.range_constexpr(hpw):
        for b in cutlass.range_constexpr(batches):
            p = cute.arch.shuffle_sync(weight, base + (h * batches + b) * stride)
            for j in cutlass.range_constexpr(8):
                o[j, h] = o[j, h] + p * now[j, b, 1].to(Float32)


@cute.jit
def _over_tokens(score: Float32, stride: cutlass.Constexpr, batches: cutlass.Constexpr) -> Float32:
    """The highest of a head's scores in a step, on each lane that has one."""
    for i in cutlass.range_constexpr(batches.bit_length() - 1):
        score = cute.arch.fmax(score, cute.arch.shuffle_sync_bfly(score, stride << i))
    return score


@cute.jit
def _per_head(running: cute.Tensor, m: cute.Tensor, l: cute.Tensor, shape: cutlass.Constexpr):
    """From one (m, l) per lane, its head's and token's, to those of every head on every lane of the group."""
    stride = cutlass.const_expr(shape.lanes // shape.score_slots)
    base = cute.arch.lane_idx() // shape.lanes * shape.lanes
    for h in cutlass.range_constexpr(shape.heads_per_warp):
        m[h] = cute.arch.shuffle_sync(running[0], base + h * shape.batches * stride)
        l[h] = cute.arch.shuffle_sync(running[1], base + h * shape.batches * stride)
        for b in cutlass.range_constexpr(1, shape.batches):
            l[h] = l[h] + cute.arch.shuffle_sync(running[1], base + (h * shape.batches + b) * stride)


@cute.jit
def _first_token(piece: cutlass.Constexpr, shape: cutlass.Constexpr) -> Int32:
    """The first of this lane's two tokens of a piece, in the tile. Warps past the last token group re-read its tokens for nothing."""
    group = cta.warp() // shape.head_groups % shape.token_groups
    return (piece * shape.token_groups + group) * shape.tokens_per_piece + cta.lane() // shape.lanes


@cute.jit
def _fetch(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, piece: cutlass.Constexpr, left: Int32, shape: cutlass.Constexpr,
           into: cute.Tensor, batch: cutlass.Constexpr):
    """Take this lane's 8 dimensions of a piece's two tokens into the registers `into` (8, batches, key or value), from `batch` on.

    Waits for tile `at` before its first piece, releases its stage after the last one's loads. `left` tokens of the tile are valid.
    """
    if cutlass.const_expr(piece == 0):
        rings.wait(smem, ring, at)
    keys = rings.slot(smem, ring, at, into.element_type) + cta.lane() % shape.lanes * 8
    for b in cutlass.range_constexpr(2):
        token = cutlass.min(_first_token(piece, shape) + b * (32 // shape.lanes), left - 1)
        frag.load8(keys + token * shape.dim, into[(None, batch + b, 0)])
        frag.load8(keys + (shape.tokens + token) * shape.dim, into[(None, batch + b, 1)])
    if cutlass.const_expr(piece == shape.pieces - 1):
        rings.release(smem, ring, at)


@cute.jit
def _fetch_step(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, first: Int32, step: cutlass.Constexpr, tiles: Int32,
                length: Int32, rank: Int32, ranks: cutlass.Constexpr, shape: cutlass.Constexpr, into: cute.Tensor):
    """`_fetch` the pieces of step `step` of the round that starts with tile `first`; those of tiles past the last stay as they were."""
    for i in cutlass.range_constexpr(shape.batches // 2):
        piece = cutlass.const_expr(step * (shape.batches // 2) + i)
        tile = first + piece // shape.pieces
        if tile < tiles:
            left = length - (rank + tile * ranks) * shape.tokens
            _fetch(smem, ring, at + tile, piece % shape.pieces, left, shape, into, 2 * i)


@cute.jit
def _counts(first: Int32, step: cutlass.Constexpr, length: Int32, rank: Int32, ranks: cutlass.Constexpr, shape: cutlass.Constexpr):
    """Whether the token whose score this lane will have in a step is below `length`."""
    batch = cute.arch.lane_idx() % shape.lanes // (shape.lanes // shape.score_slots) % shape.batches
    spot = Int32(0)
    for i in cutlass.range_constexpr(shape.batches // 2):
        piece = cutlass.const_expr(step * (shape.batches // 2) + i)
        tile = first + piece // shape.pieces
        if batch // 2 == i:
            spot = (rank + tile * ranks) * shape.tokens + _first_token(piece % shape.pieces, shape)
    return spot + batch % 2 * (32 // shape.lanes) < length


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
    eight = cute.make_rmem_tensor(8, Float32)
    for h in cutlass.range_constexpr(hpw):
        head = cutlass.min(group * hpw + h, Int32(shape.heads - 1))
        frag.load8(q.iterator + (head * shape.dim + in_token * 8), eight)
        for j in cutlass.range_constexpr(8):
            qr[j, h] = eight[j] * scale
            o[j, h] = Float32(0.0)
    running = cute.make_rmem_tensor(2, Float32)
    running[0] = Float32(LOWEST)
    running[1] = Float32(0.0)
    scores = cute.make_rmem_tensor(shape.score_slots, Float32)
    even = cute.make_rmem_tensor((8, shape.batches, 2), dtype)
    odd = cute.make_rmem_tensor((8, shape.batches, 2), dtype)
    even.fill(0)  # what is not fetched is masked, but zero times NaN is NaN
    odd.fill(0)
    steps = cutlass.const_expr(shape.tiles_per_round * shape.pieces // (shape.batches // 2))
    if cutlass.const_expr(shape.ahead):
        _fetch_step(smem, ring, at, Int32(0), 0, tiles, length, rank, ranks, shape, even)
    for t in cutlass.range(0, tiles, shape.tiles_per_round, unroll=1):
        for n in cutlass.range_constexpr(steps):
            now, then = (even, odd) if n % 2 == 0 or not shape.ahead else (odd, even)
            if cutlass.const_expr(shape.ahead):
                _fetch_step(smem, ring, at, t, n + 1, tiles, length, rank, ranks, shape, then)
            else:
                _fetch_step(smem, ring, at, t, n, tiles, length, rank, ranks, shape, now)
            if t + n * (shape.batches // 2) // shape.pieces < tiles:
                _step(now, _counts(t, n, length, rank, ranks, shape), qr, running, o, scores, shape)
    _per_head(running, m, l, shape)
    mine = (rank == ranks - 1) & (part == 0) & (lane < shape.lanes)
    _fold_new(k_new, v_new, dtype, mine, qr, m, l, o, shape)
    _merge_lanes(m, l, o, shape)
    for h in cutlass.range_constexpr(hpw):
        head = group * hpw + h
        if (part < shape.token_groups) & (head < shape.heads) & (lane < shape.lanes):
            spot = part_o.iterator + ((part * shape.heads + head) * shape.dim + in_token * 8)
            cute.autovec_copy(o[(None, h)], cute.make_tensor(spot.align(16), cute.make_layout(8)))
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
