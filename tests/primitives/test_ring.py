"""What goes through the ring, against float64: stream, gemv, attention."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
from cases import Case
from expect import instructions, no_local_memory, only_the_frames_cluster_barriers, ptx_has, right_and_repeatable

from primitives import attention, stream
from primitives import ring as rings

BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
HALF_A_GROUP = "attention 16 heads of 128, bhtd, bf16, 4 ranks, 2 stages, 2 batches"


@pytest.mark.compile
@pytest.mark.parametrize("name", ["gemv contiguous", "gemv column slice, many rows", "gemv blocks"])
def test_weights_are_streamed_by_bulk_copies_that_do_not_stay_in_the_l2(name: str) -> None:
    program = cases.by_name()[name].program
    ptx_has(program, {BULK + ".L2::cache_hint": 2, BULK: 0, "mbarrier.try_wait.parity.shared.b64": None})
    copies = [line for line in program.ptx.splitlines() if BULK in line]
    assert all(str(stream.EVICT_FIRST) in line for line in copies), copies


@pytest.mark.compile
@pytest.mark.parametrize("case", [*cases.PRODUCT_CASES[2:10], cases.ATTEND_DEEP, cases.by_name()[HALF_A_GROUP]], ids=lambda case: case.name)
def test_tiles_are_read_16_bytes_at_a_time_into_registers(case: Case) -> None:
    program = case.program
    ptx_has(program, {"ld.shared.v4.b32": None, "ld.shared.b16": 0, "ld.shared.v2.b16": 0})
    no_local_memory(program)
    only_the_frames_cluster_barriers(program)


@pytest.mark.compile
def test_attention_takes_two_bulk_copies_a_tile_and_fast_powers_of_two() -> None:
    program = cases.ATTEND_DEEP.program
    ptx_has(program, {"ex2.approx.ftz.f32": None})
    copies = {name: count for name, count in instructions(program).items() if name.startswith(BULK)}
    assert sum(copies.values()) == 2, f"keys and values of a tile: {copies}"


@pytest.mark.compile
def test_what_the_producer_polls_is_stored_and_loaded_relaxed() -> None:
    """A hint without any order: no fence and no release goes with it. It is written by thread 0 at the start, and at the barrier."""
    case = next(case for case in cases.PRODUCT_CASES if "early" in case.name)
    ptx_has(case.program, {"st.relaxed.cta.shared::cta.b32": 2, "ld.relaxed.cta.shared::cta.b32": 1, "ld.volatile.shared.b32": 0})


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.PRODUCT_CASES, ids=lambda case: case.name)
def test_products_against_float64(case: Case) -> None:
    right_and_repeatable(case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.ATTEND_CASES, ids=lambda case: case.name)
def test_attention_against_float64(case: Case) -> None:
    right_and_repeatable(case)


@pytest.mark.parametrize(("nbytes", "window"), [(16384, 3), (11008, 5), (14336, 4), (4096, 12), (128, 12)])
def test_a_window_is_of_bytes(nbytes: int, window: int) -> None:
    """3 x 16 KB: five tiles of 11,008 bytes, and never more than there are stages."""
    ring = rings.Ring(stages=12, stage_bytes=16384, warps=8, data=0, full=0, empty=0, window=3)
    assert stream.paced(ring, nbytes).window == window
    assert stream.paced(replace(ring, window=0), nbytes).window == 0


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("heads", range(1, 17))
def test_every_query_head_has_a_warp_and_no_warp_more_than_four(heads: int, dim: int) -> None:
    shape = attention.Attend(heads=heads, dim=dim, tokens=128)
    assert shape.head_groups * shape.heads_per_warp >= heads
    assert shape.heads_per_warp <= 4
    assert shape.token_groups * shape.head_groups <= shape.warps
    assert shape.token_groups >= 1
