"""How matrices and caches are cut into tiles: the arithmetic shared by the planner, its checks and the cost model."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.compiler.affine import Affine

HEADS_PER_WARP = 4  # query heads of one KV head that a warp keeps in registers; mirrors `primitives.attention.Attend`
MAX_FRAGMENT_CHUNKS = 7  # 8 f32 registers each


@dataclass(frozen=True)
class RowTiles:
    """Tiles of one weight matrix as one CTA walks them; mirrors `primitives.stream.Rows`.

    `row0` is the first row (in elements of rows), `col0` the first column. `tiles` is the most any CTA has; `share` names the mesh-wide
    row partition where CTAs may have one granule more or less than each other (None: all have `tiles`).
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

    @property
    def shape_key(self) -> tuple[int, ...]:
        return (self.cols, self.ld, self.rows, self.warps_per_row, self.block_rows, self.block_stride)


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


def tile_rows(cols: int, itemsize: int, stage_bytes: int, divides: int) -> int:
    """The largest power of two of rows that fits a stage and divides `divides`; 0 if not even one row fits."""
    rows = 1
    if cols * itemsize > stage_bytes:
        return 0
    while rows * 2 * cols * itemsize <= stage_bytes and divides % (rows * 2) == 0:
        rows *= 2
    return rows


def warps_per_row(cols: int, rows: int, warps: int) -> int:
    """How many warps share a row: the split with the least work per warp.

    A warp's work on a tile is its multiply-adds (chunks x rows x 16 instructions) plus a reduction (12 per pair of rows). Ties go to the
    split that keeps the smaller fragment in registers.
    """
    best: tuple[int, int, int] | None = None
    for wpr in (8, 4, 2, 1):
        groups = warps // wpr
        if wpr > warps or rows % groups:
            continue
        chunks = -(-(cols // 8) // (32 * wpr))
        per_warp = rows // groups
        cost = per_warp * chunks * 16 + -(-per_warp // 2) * 12
        if chunks <= MAX_FRAGMENT_CHUNKS and (best is None or (cost, chunks) < best[:2]):
            best = (cost, chunks, wpr)
    return best[2] if best else 0


def head_groups(group: int) -> int:
    """Groups of warps that take different query heads of one KV head, of which there are `group`."""
    return -(-group // HEADS_PER_WARP)


def tile_tokens(group: int, dim: int, itemsize: int, stage_bytes: int, warps: int) -> int:
    """Tokens of a KV tile: the most that fit a stage, in whole steps of every warp; 0 if none do."""
    unit = token_groups(group, warps) * 2 * 32 * 8 // dim
    return stage_bytes // (2 * dim * itemsize) // unit * unit


def token_groups(group: int, warps: int) -> int:
    """Groups of warps that take different tokens: as many as there are, over the groups of at most 4 query heads; 0: too few warps."""
    return warps // head_groups(group)
