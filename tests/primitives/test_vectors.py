"""Primitives of one CTA without a ring, against float64: warp, pointwise, frag, rmsnorm, rope, kv."""

from __future__ import annotations

import cases
import pytest
from cases import Case
from expect import no_local_memory, ptx_has, right_and_repeatable

RAGGED = "fragment 8 warps a row, ragged"


@pytest.mark.compile
def test_warp_sums_are_butterflies() -> None:
    program = cases.by_name()["warp"].program
    # widths 2 to 32 one by one; then n sums at once: n - 1 exchanges while values are handed over, log2(width / n) after
    ptx_has(program, {"shfl.sync.bfly.b32": 15 + (1 + 2) + (3 + 2) + (7 + 1) + (7 + 2) + 31})
    no_local_memory(program)


@pytest.mark.compile
def test_activations_use_the_fast_instructions() -> None:
    ptx_has(cases.by_name()["activations"].program, {"ex2.approx.ftz.f32": None, "tanh.approx.f32": None})


@pytest.mark.compile
@pytest.mark.parametrize("name", [RAGGED, "fragment 4 warps a row"])
def test_fragments_move_16_bytes_at_a_time_and_stay_in_registers(name: str) -> None:
    program = cases.by_name()[name].program
    ptx_has(program, {"ld.global.v4.b32": None, "ld.shared.v4.b32": None, "st.global.v4.b32": None, "st.shared.v4.b32": None})
    no_local_memory(program)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["fold 1 of 36 bf16 to f32", "fold 3 of 37 f32 to bf16"])
def test_terms_are_folded_in_whole_vectors_in_registers(name: str) -> None:
    program = cases.by_name()[name].program
    stores = {"st.shared.v4.b32": None} if name.endswith("f32") else {"st.shared.v2.b32": None}
    ptx_has(program, {"ld.global.v4.b32": None, **stores})
    no_local_memory(program)


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.VECTOR_CASES, ids=lambda case: case.name)
def test_against_float64(case: Case) -> None:
    right_and_repeatable(case)
