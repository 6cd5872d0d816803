"""The load stream: what the producer warp copies through the ring, in the order in which the consumers eat it.

No address depends on an activation, so the producer never waits for a phase of the computation, only for a free stage.
All lanes of the producer warp call these functions together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64

from primitives import ring as rings

EVICT_FIRST = 0x12F0000000000000  # L2 policy word: read once, do not keep
EVICT_LAST = 0x14F0000000000000


@dataclass(frozen=True)
class Rows:
    """Tiles of a row-major weight matrix [*, ld]: `rows` rows of `cols` elements.

    A CTA's rows come in blocks of `block_rows` adjacent rows, `block_stride` rows apart (one block per head; 0: a single run).
    `warps_per_row` consumer warps share a row; the other warps work on other rows of the tile.

    Rows longer than a ring stage come in `pieces` equal pieces of columns, one after the other: tile t then holds piece t % pieces of
    its rows, `rows` x (cols / pieces) elements.
    """

    cols: int
    ld: int
    rows: int
    warps_per_row: int
    block_rows: int = 0
    block_stride: int = 0
    warps: int = 8
    pieces: int = 1

    @property
    def row_groups(self) -> int:
        return self.warps // self.warps_per_row

    @property
    def tile_cols(self) -> int:
        """Columns of a tile: a whole row's, or a piece's."""
        return self.cols // self.pieces

    @property
    def chunks(self) -> int:
        """16-byte chunks of a row of a tile."""
        return self.tile_cols // 8

    @property
    def tile_chunks_per_lane(self) -> int:
        return -(-self.chunks // (32 * self.warps_per_row))

    @property
    def chunks_per_lane(self) -> int:
        """Of the whole row, all pieces of it."""
        return self.pieces * self.tile_chunks_per_lane

    @property
    def ragged(self) -> bool:
        return self.chunks % (32 * self.warps_per_row) != 0


@dataclass(frozen=True)
class Tokens:
    """Tiles of a KV cache: `tokens` tokens of `dim` elements, `stride` elements apart; keys, then values, in one stage."""

    tokens: int
    dim: int
    stride: int


def copy_bulk(dst: cute.Pointer, src: cute.Pointer, nbytes: Int32, mbar: cute.Pointer, policy: int | None) -> None:
    """One thread: `nbytes` (a multiple of 16) from global to own shared memory, counted on `mbar`.

    Written as PTX because the 1-D bulk copy atom drops its cache policy without a word (CuTe DSL 4.8.1).
    """
    args = [dst.toint(), src.toint(), Int32(nbytes), mbar.toint()]
    code = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
    if policy is None:
        cute.arch.inline_ptx(code + " [{$r0}], [{$r1}], {$r2}, [{$r3}];", read_only_args=args)
    else:
        cute.arch.inline_ptx(code + ".L2::cache_hint [{$r0}], [{$r1}], {$r2}, [{$r3}], {$r4};", read_only_args=[*args, Int64(policy)])


def paced(ring: rings.Ring, nbytes: int) -> rings.Ring:
    """The ring with a window of as many bytes in tiles of `nbytes`: bytes keep the memory busy, and a tile may not fill its stage."""
    if not ring.window:
        return ring
    window, early = (min(ring.stages, -(-tiles * ring.stage_bytes // nbytes)) for tiles in (ring.window, ring.early))
    return replace(ring, window=window, early=early)


@cute.jit
def rows(
    smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, weight: cute.Tensor, shape: cutlass.Constexpr, row0: Int32, col0: Int32,
    tiles: Int32, policy: cutlass.Constexpr = EVICT_FIRST,
) -> Int32:
    """Stream `tiles` tiles of `weight` from row `row0`, column `col0`; returns the number of the next tile.

    All lanes of the producer warp. `weight` is in global memory, of a 16-bit type, flat or (*, ld), and 16-byte aligned at every row and
    at `col0`. Tile `at + t` fills its stage with `rows` x `cols` elements, row-major without gaps, and counts rows x cols x 2 bytes on the
    stage's full barrier (of rows in pieces: tile_cols for cols). Returns when the last copy is issued, not when it has landed.

    Whole rows lie together and take one bulk copy a tile; parts of rows take one copy a row, spread over the lanes.
    """
    width = cutlass.const_expr(weight.element_type.width // 8)
    cols = cutlass.const_expr(shape.tile_cols)
    pace = cutlass.const_expr(paced(ring, shape.rows * cols * width))
    lane = cute.arch.lane_idx()
    for t in cutlass.range(tiles, unroll=1):
        nth = t // shape.pieces
        row = row0 + nth * shape.rows
        if cutlass.const_expr(shape.block_rows > 0):
            tiles_per_block = shape.block_rows // shape.rows
            row = row0 + (nth // tiles_per_block) * shape.block_stride + (nth % tiles_per_block) * shape.rows
        g = at + t
        rings.acquire(smem, ring, g)
        rings.pace(smem, pace, g)
        dst = rings.slot(smem, ring, g, weight.element_type)
        full = rings.full_barrier(smem, ring, g)
        src = weight.iterator + (Int64(row) * shape.ld + (col0 + t % shape.pieces * cols))
        if lane == 0:
            rings.announce(smem, ring, g, Int32(shape.rows * cols * width))
        if cutlass.const_expr(shape.rows == 1 or cols == shape.ld):
            if lane == 0:
                copy_bulk(dst, src, shape.rows * cols * width, full, policy)
        else:
            cute.arch.sync_warp()
            for r in cutlass.range(lane, shape.rows, 32, unroll=1):
                copy_bulk(dst + r * cols, src + Int64(r) * shape.ld, cols * width, full, policy)
    return at + tiles


@cute.jit
def tile_count(length: Int32, tokens: cutlass.Constexpr, rank: Int32, ranks: cutlass.Constexpr) -> Int32:
    """How many of the ceil(length / tokens) tiles rank `rank` has: tiles rank, rank + ranks, ... so that shares differ by one at most.

    Producer and consumers must call it with the same `length`, or one of them waits for ever.
    """
    return ((length + (tokens - 1)) // tokens - rank + (ranks - 1)) // ranks


@cute.jit
def tokens(
    smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32, keys: cute.Tensor, values: cute.Tensor, shape: cutlass.Constexpr,
    base: Int64, length: Int32, rank: Int32, ranks: cutlass.Constexpr,
) -> Int32:
    """Stream this rank's tiles of one head's keys and values, `base` elements into both tensors; returns the next tile's number.

    All lanes of the producer warp. Tile `t` of the rank holds keys (tokens, dim), then values (tokens, dim), of tokens
    (rank + t x ranks) x tokens and on, and counts 2 x dim x 2 bytes a token on its full barrier. Only tokens below `length` are read: the
    last tile announces fewer bytes, and consumers mask what it does not hold.
    """
    width = cutlass.const_expr(keys.element_type.width // 8)
    lane = cute.arch.lane_idx()
    tiles = tile_count(length, shape.tokens, rank, ranks)
    for t in cutlass.range(tiles, unroll=1):
        first = (rank + t * ranks) * shape.tokens
        count = cutlass.min(length - first, Int32(shape.tokens))
        g = at + t
        rings.acquire(smem, ring, g)
        rings.pace(smem, ring, g)
        k_dst = rings.slot(smem, ring, g, keys.element_type)
        v_dst = k_dst + shape.tokens * shape.dim
        full = rings.full_barrier(smem, ring, g)
        offset = base + Int64(first) * shape.stride
        if lane == 0:
            rings.announce(smem, ring, g, count * (2 * shape.dim * width))
        if cutlass.const_expr(shape.stride == shape.dim):
            if lane == 0:
                copy_bulk(k_dst, keys.iterator + offset, count * (shape.dim * width), full, None)
                copy_bulk(v_dst, values.iterator + offset, count * (shape.dim * width), full, None)
        else:
            cute.arch.sync_warp()
            for r in cutlass.range(lane, count, 32, unroll=1):
                step = offset + Int64(r) * shape.stride
                copy_bulk(k_dst + r * shape.dim, keys.iterator + step, shape.dim * width, full, None)
                copy_bulk(v_dst + r * shape.dim, values.iterator + step, shape.dim * width, full, None)
    return at + tiles
