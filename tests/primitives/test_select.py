"""The index of the greatest value, against PyTorch."""

from __future__ import annotations

import cases
import pytest
from case import Case
from expect import no_local_memory, only_the_frames_cluster_barriers, ptx_has, right_and_repeatable


@pytest.mark.compile
def test_pairs_are_compared_in_registers() -> None:
    program = cases.by_name()["argmax of 1000 to a CTA"].program
    ptx_has(program, {"shfl.sync.bfly.b32": 20, "red.release.gpu.global.add.s32": 1})
    no_local_memory(program)
    only_the_frames_cluster_barriers(program)


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.SELECT_CASES, ids=lambda case: case.name)
def test_argmax_against_torch(case: Case) -> None:
    right_and_repeatable(case)
