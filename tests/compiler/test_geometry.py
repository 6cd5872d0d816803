"""The arithmetic of tiles, shares, affine offsets and expressions, each number derived by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import (
    MAX_PIECES,
    RowTiles,
    Share,
    least_stage,
    product_registers,
    row_pieces,
    thread_registers,
    tile_rows,
    warps_per_row,
)

# ---- tiles


@pytest.mark.parametrize(
    ("cols", "itemsize", "stage_bytes", "divides", "rows"),
    [
        (4096, 2, 16384, 32, 2),  # 2 x 8192 B fill the stage exactly
        (4096, 2, 16383, 32, 1),  # one byte less
        (2048, 2, 16384, 32, 4),  # 4 x 4096 B
        (576, 2, 16384, 64, 8),  # 8 x 1152 = 9216 B; 16 would be 18432 B
        (576, 2, 16384, 12, 4),  # 8 does not divide 12
        (1024, 2, 16384, 3, 1),
        (8192, 2, 16384, 8, 1),
        (8200, 2, 16384, 8, 1),  # 16400 B: one, in pieces
        (8248, 2, 16384, 8, 0),  # 1031 chunks of 16 B, a prime: no equal pieces
        (64, 2, 16384, 4096, 128),  # 128 x 128 B
        (4096, 4, 16384, 32, 1),  # f32: 16384 B a row
    ],
)
def test_tile_rows(cols: int, itemsize: int, stage_bytes: int, divides: int, rows: int) -> None:
    assert tile_rows(cols, itemsize, stage_bytes, divides) == rows


@pytest.mark.parametrize(
    ("cols", "rows", "warps", "split"),
    [
        # 512 chunks. 8 warps: ceil(512 / 256) = 2 chunks x 2 rows x 16 + 12 = 76. 4: 4 chunks x 1 row x 16 + 12 = 76, twice the registers.
        (4096, 2, 8, 8),
        # 256 chunks. 8: 1 x 4 x 16 + 24 = 88. 4: 2 x 2 x 16 + 12 = 76. 2: 4 x 1 x 16 + 12 = 76, but twice the registers.
        (2048, 4, 8, 4),
        # 72 chunks. 8: 1 x 8 x 16 + 48 = 176. 4: 1 x 4 x 16 + 24 = 88. 2: 2 x 2 x 16 + 12 = 76. 1: 3 x 1 x 16 + 12 = 60.
        (576, 8, 8, 1),
        # 64 chunks, 16 rows. 1 warp: 2 chunks x 2 rows x 16 + 12 = 76; 2: 1 x 4 x 16 + 24 = 88.
        (512, 16, 8, 1),
        (4096, 1, 8, 8),  # one row: all warps share it
        (4096, 1, 4, 4),  # 4 chunks each
        (8192, 1, 8, 8),  # 1024 chunks / 256 = 4
        (14336, 1, 8, 8),  # 7 chunks: (56 + 56) * 11 / 8 + 8 = 162 registers of 168
        (16384, 1, 8, 0),  # 8 chunks: 184
        (128, 128, 8, 0),  # short rows: 16 to a warp are 8 + 128 + 24 registers in arrays: 228
        (128, 64, 8, 1),  # 8 to a warp: 118
        (18432, 1, 16, 16),  # 5 chunks
        (4096, 2, 1, 0),  # 16 chunks for one warp
    ],
)
def test_warps_per_row(cols: int, rows: int, warps: int, split: int) -> None:
    assert warps_per_row(cols, rows, warps) == split


@given(st.integers(1, 2000), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8, 16]))
def test_warps_per_row_is_always_possible_geometry(chunks: int, rows: int, warps: int) -> None:
    split = warps_per_row(chunks * 8, rows, warps)
    if split:
        assert warps % split == 0
        assert rows % (warps // split) == 0
        assert product_registers(-(-chunks // (32 * split))) <= 168


def test_the_registers_of_a_product() -> None:
    """11008 columns in 2 pieces over 8 warps: 3 chunks a piece, 6 of the vector (48 registers) and 3 in each of two tiles (24)."""
    assert product_registers(3, pieces=2) == (48 + 24) * 11 // 8 + 8 == 107
    assert warps_per_row(11008, 1, 8, 2, thread_registers(9, 1)) == 8
    assert warps_per_row(11008, 1, 8, 2, thread_registers(9, 2)) == 0  # two CTAs share an SM: 107 of 96


@pytest.mark.parametrize(
    ("warps", "ctas_per_sm", "registers"),
    [
        (9, 1, 168),  # 3 warps on the fullest of 4 partitions: 16384 / 3 / 32 = 170, in eights
        (9, 2, 96),  # 18 warps, 5 on one: 102
        (8, 1, 255),  # 256, and no thread can have more than 255
        (17, 1, 96),
    ],
)
def test_the_registers_of_a_thread(warps: int, ctas_per_sm: int, registers: int) -> None:
    assert thread_registers(warps, ctas_per_sm) == registers


@pytest.mark.parametrize(
    ("cols", "stage_bytes", "pieces"),
    [
        (8192, 16384, 1),
        (11008, 16384, 2),  # 2 x 11008 B
        (14336, 16384, 2),  # 2 x 14336 B
        (14336, 32768, 1),
        (24576, 16384, 3),
        (8200, 16384, 5),  # 1025 chunks of 16 B = 5 x 5 x 41
        (8248, 16384, 0),
        (4096, 512, 16),
        (4096, 384, 0),  # 32 pieces: more than there may be
    ],
)
def test_pieces_of_rows_longer_than_a_stage(cols: int, stage_bytes: int, pieces: int) -> None:
    assert row_pieces(cols, 2, stage_bytes) == pieces


@given(st.integers(1, 4000), st.integers(1, 300))
def test_pieces_are_equal_fit_and_are_as_few_as_can_be(chunks: int, lines: int) -> None:
    cols, stage = 8 * chunks, 128 * lines
    pieces = row_pieces(cols, 2, stage)
    possible = [n for n in range(1, MAX_PIECES + 1) if chunks % n == 0 and 2 * cols // n <= stage]
    assert pieces == (possible[0] if possible else 0)
    assert bool(pieces) == (least_stage(cols, 2) <= stage)
    assert tile_rows(cols, 2, stage, 8) == 0 if not pieces else tile_rows(cols, 2, stage, 8) >= 1


def test_rows_in_pieces_take_several_tiles() -> None:
    tiles = RowTiles(11008, 11008, 1, 8, 64, Affine(), Affine(), pieces=2)
    assert (tiles.run, tiles.tile_cols) == (32, 5504)


# ---- shares


def test_share_of_4096_rows_over_128_ctas() -> None:
    share = Share("rows4096", 4096, 2, 128)  # 2048 granules of 2 rows, 16 each
    assert (share.granules, share.even, share.most, share.symbol) == (2048, True, 32, "granule4096")
    assert share.bounds(0) == (0, 32)
    assert share.bounds(127) == (127 * 32, 4096)


def test_share_of_4096_rows_over_132_ctas() -> None:
    share = Share("rows4096", 4096, 2, 132)  # 2048 / 132 = 15.5: 15 or 16 granules
    assert (share.granules, share.even, share.most) == (2048, False, 32)
    assert share.bounds(0) == (0, 30)  # 2048 * 1 // 132 = 15
    assert share.bounds(1) == (30, 62)  # 2048 * 2 // 132 = 31
    assert share.bounds(131) == (4064, 4096)  # 2048 * 131 // 132 = 2032
    sizes = [last - first for first, last in map(share.bounds, range(132))]
    assert (sizes.count(32), sizes.count(30)) == (2048 - 15 * 132, 16 * 132 - 2048)


def test_share_with_fewer_granules_than_ctas_leaves_some_without() -> None:
    share = Share("rows64", 64, 8, 128)
    assert share.most == 8
    assert sum(first == last for first, last in map(share.bounds, range(128))) == 120


@given(st.integers(1, 600), st.sampled_from([1, 2, 4, 8]), st.integers(1, 264))
def test_shares_are_partitions(granules: int, granule: int, ctas: int) -> None:
    share = Share("rows", granules * granule, granule, ctas)
    bounds = [share.bounds(cta) for cta in range(ctas)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == share.rows
    assert all(before[1] == after[0] for before, after in zip(bounds, bounds[1:]))
    assert max(last - first for first, last in bounds) == share.most
    assert share.even == (len({last - first for first, last in bounds}) == 1)


# ---- offsets


def test_affine_sums_and_products() -> None:
    at = Affine.of(5, cluster=128, rank=32)
    assert at.at({"cluster": 31, "rank": 3}) == 31 * 128 + 3 * 32 + 5
    assert (at + Affine.of(rank=-32)).terms == (("cluster", 128),)  # a term of zero is no term
    assert at.times(4096).at({"cluster": 1, "rank": 1}) == 4096 * 165
    assert Affine.of(0, rank=0) == Affine()


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (Affine(), "0"),
        (Affine.of(7), "7"),
        (Affine.of(rank=1), "rank"),
        (Affine.of(3, rank=32, cluster=128), "cluster * 128 + rank * 32 + 3"),
    ],
)
def test_affine_text_is_source(offset: Affine, text: str) -> None:
    assert str(offset) == text
    assert eval(text, {"cluster": 2, "rank": 3}) == offset.at({"cluster": 2, "rank": 3})


# ---- expressions


def test_expression_text_and_buffers() -> None:
    total = Expr("total", "wo_terms", warps=8)
    tree = Expr("add", args=(Expr("silu", args=(total,)), Expr("mul", args=(Expr("smem", "rows", Affine.of(2)), Expr("leaf", "x")))))
    assert str(tree) == "(silu(total(wo_terms)) + (rows[i + 2] * x[i]))"
    assert tree.buffers() == ("wo_terms", "rows")
    assert [e.kind for e in tree.walk()] == ["add", "silu", "total", "mul", "smem", "leaf"]
