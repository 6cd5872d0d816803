"""Collectives in loops: every element of every call's result is right, whatever call it was."""

from __future__ import annotations

import cases
import pytest
from cases import Case
from expect import no_local_memory, only_the_frames_cluster_barriers, ptx_has, right_and_repeatable

ST_ASYNC = "st.async.shared::cluster.mbarrier::complete_tx::bytes"
COPY = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
WAIT = "mbarrier.try_wait.parity.shared.b64"


@pytest.mark.compile
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("reduce sum f32 by push", {WAIT: 1, ST_ASYNC + ".v4.b32": None, ST_ASYNC + ".b32": None, COPY: 0}),
        ("reduce sum f32 by bulk", {WAIT: 1, COPY: 1, ST_ASYNC + ".v4.b32": 0, "fence.proxy.async.shared::cta": 2}),  # 1: the harness's
        ("reduce sum f32 by scatter_gather", {WAIT: 2, ST_ASYNC + ".v4.b32": None, COPY: 0}),
        ("reduce sum f32 by doubling", {WAIT: 2, ST_ASYNC + ".v4.b32": None, COPY: 0}),
        ("reduce sum f32 by global", {WAIT: 0, "red.release.gpu.global.add.s32": 1, "ld.acquire.gpu.global.b32": 1}),
        ("reduce_scatter sum f32 by push", {WAIT: 1, ST_ASYNC + ".v4.b32": None}),
        ("gather f32 by bulk", {WAIT: 1, COPY: 1}),
        ("broadcast f32 by push", {WAIT: 3, ST_ASYNC + ".b32": None}),  # acknowledgements before a push and at the end, and the row
    ],
)
def test_instructions(name: str, wanted: dict[str, int | None]) -> None:
    program = cases.by_name()[f"loop {name}, 4 ranks"].program
    ptx_has(program, wanted)
    only_the_frames_cluster_barriers(program)
    no_local_memory(program)


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.LOOPS, ids=lambda case: case.name)
def test_every_call_is_right(case: Case) -> None:
    right_and_repeatable(case)
