"""Exchanges between the CTAs of a cluster, against float64: exchange, cluster_gather, cluster_reduce, multicast."""

from __future__ import annotations

import cases
import pytest
from cases import Case
from expect import no_local_memory, only_the_frames_cluster_barriers, ptx_has, right_and_repeatable

ST_ASYNC = "st.async.shared::cluster.mbarrier::complete_tx::bytes"
WAIT = "mbarrier.try_wait.parity.shared.b64"


@pytest.mark.compile
def test_pushes_are_asynchronous_stores_that_signal() -> None:
    ptx_has(cases.PUSHES.program, {ST_ASYNC + ".v4.b32": 1, ST_ASYNC + ".v2.b32": 1, ST_ASYNC + ".b32": 1, WAIT: 1})


@pytest.mark.compile
@pytest.mark.parametrize(
    ("kind", "pushes"),
    [("scalar", [".b32"]), ("gather", [".v4.b32"]), ("reduce", [".v4.b32"]), ("scatter", [".v4.b32", ".v2.b32"])],
)
def test_collectives_push_and_wait_and_never_stop_the_cluster(kind: str, pushes: list[str]) -> None:
    program = cases.by_name()[f"{kind}, 4 ranks"].program
    forms = {form: 1 if form in pushes else 0 for form in (".b32", ".v2.b32", ".v4.b32")}
    ptx_has(program, {WAIT: 1, **{ST_ASYNC + form: count for form, count in forms.items()}})
    only_the_frames_cluster_barriers(program)
    no_local_memory(program)


@pytest.mark.compile
def test_multicast_asks_for_a_part_and_one_rank_alone_for_an_ordinary_copy() -> None:
    bulk = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
    alone, *shared = cases.BROADCASTS
    ptx_has(alone.program, {bulk: 1, bulk + ".multicast::cluster": 0})
    for case in shared:
        ptx_has(case.program, {bulk: 0, bulk + ".multicast::cluster": 1})
        only_the_frames_cluster_barriers(case.program)


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.CLUSTER_CASES, ids=lambda case: case.name)
def test_against_float64(case: Case) -> None:
    right_and_repeatable(case)
