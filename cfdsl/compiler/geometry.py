"""How matrices and caches are cut into tiles: the arithmetic shared by the planner, its checks and the cost model."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.compiler.affine import Affine

CHUNK = 8  # elements that a thread has of a fragment at a time
COPY_BYTES = 16  # bulk copies and st.async pushes of 4 words move multiples of this, from and to multiples of it
BARRIER_BYTES = 8  # of an mbarrier
WARP_SPLITS = (16, 8, 4, 2, 1)  # warps that may share a row
MAX_PIECES = 16  # of a row that is longer than a stage
MAX_TURNS = 4  # in which a vector that is too long for the registers is multiplied
REGISTERS_PER_SM = 65536
MOST_REGISTERS = 255  # that a thread can have
HEADS_PER_WARP = 4  # query heads of one KV head that a warp keeps in registers; mirrors `primitives.attention.Attend`


@dataclass(frozen=True)
class RowTiles:
    """Tiles of one weight matrix as one CTA walks them; mirrors `primitives.stream.Rows`.

    `row0` is the first row (in elements of rows), `col0` the first column. `tiles` is the most any CTA has; `share` names the mesh-wide
    row partition where CTAs may have one granule more or less than each other (None: all have `tiles`). Rows longer than a stage come in
    `pieces` pieces of columns: each tile has one piece of its rows. A vector that is too long for the registers is multiplied in turns (see
    `column_turns`), each with tiles of its own.
    """

    cols: int
    ld: int
    rows: int
    warps_per_row: int
    tiles: int
    row0: Affine
    col0: Affine
    block_rows: int = 0
    block_stride: int = 0
    share: str | None = None
    pieces: int = 1

    @property
    def tile_cols(self) -> int:
        """Columns of one tile."""
        return self.cols // self.pieces

    @property
    def run(self) -> int:
        """Rows in all tiles."""
        return self.tiles // self.pieces * self.rows


@dataclass(frozen=True)
class Share:
    """A balanced partition of `rows` output rows over all CTAs, in granules of `granule` rows."""

    name: str
    rows: int
    granule: int
    ctas: int

    @property
    def symbol(self) -> str:
        """The coordinate that counts granules before this CTA's first."""
        return f"granule{self.rows}"

    @property
    def granules(self) -> int:
        return self.rows // self.granule

    @property
    def even(self) -> bool:
        return self.granules % self.ctas == 0

    @property
    def most(self) -> int:
        """Rows of the busiest CTA."""
        return -(-self.granules // self.ctas) * self.granule

    def bounds(self, cta: int) -> tuple[int, int]:
        """Rows [first, last) of one CTA."""
        return self.granules * cta // self.ctas * self.granule, self.granules * (cta + 1) // self.ctas * self.granule


def row_pieces(cols: int, itemsize: int, stage_bytes: int) -> int:
    """The least number of equal pieces of a row that fit a stage, of a multiple of 16 bytes each; 0 if up to MAX_PIECES none do."""
    return next((n for n in _cuts(cols, itemsize) if cols // n * itemsize <= stage_bytes), 0)


def least_stage(cols: int, itemsize: int) -> int:
    """Bytes of the smallest stage that a piece of a row fits, in multiples of 128."""
    return -(-cols // _cuts(cols, itemsize)[-1] * itemsize // 128) * 128


def _cuts(cols: int, itemsize: int) -> list[int]:
    """Into how many equal pieces a row may be cut."""
    return [n for n in range(1, MAX_PIECES + 1) if cols % n == 0 and (n == 1 or cols // n * itemsize % 16 == 0)]


def tile_rows(cols: int, itemsize: int, stage_bytes: int, divides: int) -> int:
    """The largest power of two of rows that fits a stage and divides `divides`; 1 if a row comes in pieces, 0 if none can."""
    rows = 1
    if cols * itemsize > stage_bytes:
        return 1 if row_pieces(cols, itemsize, stage_bytes) else 0
    while rows * 2 * cols * itemsize <= stage_bytes and divides % (rows * 2) == 0:
        rows *= 2
    return rows


def warps_per_row(cols: int, rows: int, warps: int, pieces: int = 1, registers: int = 168) -> int:
    """How many warps share a row: the split with the least work per warp; 0 if none fits a thread's registers.

    A warp's work on a tile is its multiply-adds (chunks x rows x 16 instructions) plus a reduction (12 per pair of rows). Ties go to the
    split that keeps the smaller fragment in registers.
    """
    best: tuple[int, int, int] | None = None
    for wpr in WARP_SPLITS:
        groups = warps // wpr
        if wpr > warps or rows % groups:
            continue
        chunks = _lane_chunks(cols, pieces, wpr)
        per_warp = rows // groups
        cost = per_warp * chunks * 16 + -(-per_warp // 2) * 12
        fits = product_registers(chunks, pieces, per_warp) <= registers
        if fits and (best is None or (cost, chunks) < best[:2]):
            best = (cost, chunks, wpr)
    return best[2] if best else 0


def _lane_chunks(cols: int, pieces: int, wpr: int) -> int:
    """The most chunks of a piece of a row that a lane has, if `wpr` warps share the row."""
    return -(-(cols // pieces // CHUNK) // (32 * wpr))


def product_registers(chunks: int, pieces: int = 1, rows: int = 1) -> int:
    """Registers of a thread in a product's loop, about: with fewer it spills. `chunks` and `rows` are a warp's, of a tile.

    The vector in f32, the 16-bit weights of two tiles, and the sums of a batch of rows (see `primitives.gemv`); what comes to it grows
    with these. It tells which of 130 products spill (rows of 24 to 11008, 4, 8 and 16 warps, one and two CTAs to an SM; ptxas of CUDA 13,
    sm_90a): 24 in these arrays fit 56 registers and 40 do not, 64 fit 96 and 72 do not, 112 fit 168 and 128 do not, 160 fit 255.
    """
    sums = max(2, 8 // (rows * pieces)) * rows
    held = 8 * chunks * pieces + 2 * 4 * chunks * rows + max(0, sums - 8)
    return -(-held * 11 // 8) + 8


def column_turns(cols: int, itemsize: int, stage_bytes: int, warps: int, ctas_per_sm: int) -> int:
    """In how many turns a vector of `cols` elements is multiplied, each with an equal run of a matrix's columns: the least with which its
    share of a turn fits a thread's registers; 0 if none up to MAX_TURNS does.

    More than one only where a CTA has an SM to itself: where it has not, that would give each thread more registers.
    """
    registers = thread_registers(warps + 1, ctas_per_sm)
    turns = possible_turns(cols, itemsize, stage_bytes, ctas_per_sm)
    return next((n for n in turns if turn_registers(cols // n, itemsize, stage_bytes, warps) <= registers), 0)


def possible_turns(cols: int, itemsize: int, stage_bytes: int, ctas_per_sm: int) -> list[int]:
    """In how many turns rows can be multiplied, whatever registers that takes: each part cut into pieces, as the whole row can be."""
    most = MAX_TURNS if ctas_per_sm == 1 and row_pieces(cols, itemsize, stage_bytes) else 1
    even = [n for n in range(1, most + 1) if n == 1 or cols % (n * CHUNK) == 0]
    return [n for n in even if row_pieces(cols // n, itemsize, stage_bytes)]


def turn_registers(cols: int, itemsize: int, stage_bytes: int, warps: int) -> int:
    """Registers of a thread, about, for a turn of `cols` columns; see `product_registers`."""
    pieces = row_pieces(cols, itemsize, stage_bytes)
    return product_registers(_lane_chunks(cols, pieces, min(warps, WARP_SPLITS[0])), pieces)


def thread_registers(warps: int, ctas_per_sm: int) -> int:
    """Registers that a thread of a CTA of so many warps can have if `ctas_per_sm` of them share an SM.

    An SM has four partitions with a quarter of the registers each, and a warp lives in one: what counts is the fullest partition.
    """
    each = REGISTERS_PER_SM // 4 // -(-ctas_per_sm * warps // 4) // 32 // 8 * 8
    return min(each, MOST_REGISTERS)


def head_groups(group: int) -> int:
    """Groups of warps that take different query heads of one KV head, of which there are `group`."""
    return -(-group // HEADS_PER_WARP)


def tile_tokens(group: int, dim: int, itemsize: int, stage_bytes: int, warps: int) -> int:
    """Tokens of a KV tile: the most that fit a stage, in whole steps of every warp; 0 if none do."""
    unit = token_groups(group, warps) * 2 * 32 * 8 // dim
    return stage_bytes // (2 * dim * itemsize) // unit * unit


def least_kv_stage(group: int, dim: int, itemsize: int, warps: int) -> int:
    """Bytes of the smallest stage that holds a tile of tokens: keys and values of one step of every warp."""
    return token_groups(group, warps) * 2 * 32 * 8 * 2 * itemsize


def token_groups(group: int, warps: int) -> int:
    """Groups of warps that take different tokens: as many as there are, over the groups of at most 4 query heads; 0: too few warps."""
    return warps // head_groups(group)
