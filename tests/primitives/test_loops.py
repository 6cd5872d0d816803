"""Collectives in loops: every element of every call's result is right, whatever call it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import cases
import pytest
import soak
from cases import Case
from expect import no_local_memory, only_the_frames_cluster_barriers, ptx_has, right_and_repeatable

from cfdsl.compiler.collective.protocol import Act
from primitives import cta, exchange, grid, multicast, transfer

ST_ASYNC = "st.async.shared::cluster.mbarrier::complete_tx::bytes"
MULTICAST = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
COPY = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
WAIT = "mbarrier.try_wait.parity.shared.b64"
EACH_ALGORITHM = [case for case in cases.LOOPS if case.cluster == 4]


@pytest.mark.compile
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("reduce sum f32 by push", {WAIT: 1, ST_ASYNC + ".v4.b32": None, ST_ASYNC + ".b32": None, COPY: 0}),
        ("reduce sum f32 by bulk", {WAIT: 1, COPY: 1, ST_ASYNC + ".v4.b32": 1, "fence.proxy.async.shared::cta": 2}),
        ("reduce sum f32 by scatter_gather", {WAIT: 2, ST_ASYNC + ".v4.b32": None, COPY: 0}),
        ("reduce sum f32 by doubling", {WAIT: 2, ST_ASYNC + ".v4.b32": None, COPY: 0}),
        ("reduce sum f32 by global", {WAIT: 0, "red.release.gpu.global.add.s32": 1, "ld.acquire.gpu.global.b32": 1}),
        ("reduce_scatter sum f32 by push", {WAIT: 1, ST_ASYNC + ".v4.b32": None}),
        ("gather f32 by bulk", {WAIT: 1, COPY: 1}),
        ("gather f32 by multicast", {WAIT: 1, MULTICAST: 1, COPY: 0}),
        ("reduce sum f32 in a register by push", {WAIT: 1, ST_ASYNC + ".b32": 1, ST_ASYNC + ".v4.b32": 0}),
        ("reduce lse f32 by push", {WAIT: 1, "ex2.approx.ftz.f32": 4, "rcp.rn.f32": 1}),  # a weight for each rank
        ("reduce lse f32 by doubling", {WAIT: 2, "ex2.approx.ftz.f32": 4, "rcp.rn.f32": 1}),  # two for each round; divided in the last
        ("broadcast f32 by push", {WAIT: 3, ST_ASYNC + ".b32": None}),  # acknowledgements before a push and at the end, and the row
    ],
)
def test_instructions(name: str, wanted: dict[str, int | None]) -> None:
    program = cases.by_name()[f"loop {name}, 4 ranks"].program
    ptx_has(program, wanted)
    only_the_frames_cluster_barriers(program)
    no_local_memory(program)


@pytest.mark.compile
@pytest.mark.parametrize("case", [case for case in cases.LOOPS if case.constants[0].algorithm == "bulk"], ids=lambda case: case.name)
def test_bulk_copies_go_to_peers_only(case: Case) -> None:
    """One instruction, by a thread for each peer; the own row goes by stores, unless it stays."""
    made = case.constants[0]
    ptx_has(case.program, {COPY: int(case.cluster > 1), ST_ASYNC + ".v4.b32": 0 if made.stays else None, ST_ASYNC + ".v2.b32": 0})


Made = tuple[str, int, int]  # what is done, its bytes, and the bytes from one peer's row to the next in the source


def recorded(case: Case) -> list[Made]:
    """What a case's kernel does as it is traced: acts of a protocol, those inside of others left out."""
    acts: list[Made] = []
    inside = 0

    def recording(name: str, original: Any, sizes: Callable[..., tuple[int, int]]) -> Any:
        def patched(*args: Any) -> Any:
            nonlocal inside
            if not inside:
                acts.append((name, *sizes(*args)))
            inside += 1
            try:
                return original(*args)
            finally:
                inside -= 1

        return patched

    def none(*args: Any) -> tuple[int, int]:
        return 0, 0

    def rows(src: Any, step: int, dst: Any, nbytes: int, *args: Any) -> tuple[int, int]:
        return nbytes, 4 * step

    def multicasts(src: Any, dst: Any, n: int, *args: Any) -> tuple[int, int]:
        return n * src.element_type.width // 8, 0

    with contextlib.ExitStack() as stack:
        for module, attribute, name, sizes in (
            (cta, "consumer_sync", "sync", none), (transfer, "fence", "fence", none), (exchange, "wait", "wait", none),
            (exchange, "arm", "arm", lambda mbar, n: (n, 0)), (grid, "meet", "meet", none), (transfer, "push", "push", rows),
            (transfer, "push_to", "push", lambda *args: (args[2], 0)), (transfer, "bulk", "push", rows),
            (exchange, "push1", "push", lambda *args: (4, 0)), (multicast, "gather", "push", multicasts),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(module, attribute, recording(name, getattr(module, attribute), sizes)))
        case.build()
    return acts


@pytest.mark.compile
@pytest.mark.parametrize("case", cases.LOOPS, ids=lambda case: case.name)
def test_the_primitives_do_what_the_protocol_says(case: Case) -> None:
    """Act by act, with the same bytes: what was proved of the protocol holds for the code."""
    made = case.constants[0]
    protocol = made.protocol
    outside = ("read", "write")

    def listed(acts: tuple[Act, ...]) -> list[Made]:
        own = [a for a in acts if a.do not in outside and not a.caller]
        return [(a.do, protocol.tx[a.round] if a.do == "arm" else a.nbytes, a.step) for a in own]

    first = [("arm", nbytes, 0) for nbytes in protocol.tx for _ in range(protocol.sets)]
    at_once = made.scalar or made.algorithm == "multicast"
    callers = [] if at_once else [("sync", 0, 0)]  # the kernel's own, before it looks at the result
    assert recorded(case) == [*first, *listed(protocol.acts), *callers, *listed(protocol.ending)]


@pytest.mark.compile
@pytest.mark.parametrize("asked", soak.OTHERS, ids=lambda asked: " ".join(map(str, asked)))
def test_what_soaks_beside_the_measures_compiles(asked: tuple[Any, ...]) -> None:
    kind, algorithm, ranks, shape, op = asked
    only_the_frames_cluster_barriers(cases.looped(kind, algorithm, ranks, shape, op).build(pdl=True))


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases.LOOPS, ids=lambda case: case.name)
def test_every_call_is_right(case: Case) -> None:
    right_and_repeatable(case)


@pytest.mark.gpu
def test_a_million_exchanges() -> None:
    """In loops of random lengths, of all cluster sizes, under a CUDA graph with programmatic dependent launch; see soak.py."""
    print(soak.soak(1_000_000, random.randrange(2**32)))


def test_barriers_are_among_several_warps() -> None:
    """Of one warp alone no barrier could be missed."""
    for case in EACH_ALGORITHM:
        assert case.constants[0].warps > 1, case.name
