"""The proof of the collectives' protocols: what is right passes, and every kind of mistake is found."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from protocols import LONG, SCALAR, changed, everything, found, nth, protocol, sets, without

from cfdsl.compiler.collective.check import check, faults
from cfdsl.compiler.collective.designs import design, place_all
from cfdsl.compiler.collective.protocol import ARM, FENCE, MEET, PUSH, ROOT, SYNC, WAIT, WRITE, Act, Protocol, protocol_text
from cfdsl.compiler.collective.request import Collective
from cfdsl.errors import PlanError


@pytest.mark.parametrize("whole", LONG, ids=lambda whole: f"{whole.ranks} ranks, {whole.acts[2].nbytes} B")
def test_long_rows_stay_at_home(whole: Protocol) -> None:
    push = next(act for act in whole.acts if act.do == PUSH)
    assert push.to == "others"
    assert whole.tx[0] == (whole.ranks - 1) * push.nbytes
    check(whole)
    every_act_is_needed(whole)


@pytest.mark.parametrize(("kind", "algorithm", "op", "ranks"), list(everything()))
def test_every_protocol_holds(kind: str, algorithm: str, op: str, ranks: int) -> None:
    check(protocol(kind, algorithm, ranks, op))


PUSH4, BULK4 = protocol("reduce", "push"), protocol("reduce", "bulk")
TWO_ROUNDS, DOUBLING = protocol("reduce", "scatter_gather"), protocol("reduce", "doubling")
CAST, OFFCHIP = protocol("broadcast", "push"), protocol("reduce", "global")
GATHERS = [protocol("gather", algorithm) for algorithm in ("push", "bulk", "doubling", "multicast")]
EARLY = Act(WRITE, ("src",))

PLANTED: list[tuple[str, Protocol, str]] = [
    ("one barrier used for every call", replace(PUSH4, sets=1), "a push to round 0 may be counted for the phase before"),
    ("one landing place used for every call", sets(PUSH4, "box", 1), "box is overwritten by a peer while it may still be read"),
    *((f"one landing place, gather {n}", sets(whole, "box", 1), "box is overwritten by a peer") for n, whole in enumerate(GATHERS[:2])),
    ("one landing place, broadcast", sets(CAST, "box", 1), "box is overwritten by a peer while it may still be read"),
    ("one landing place, doubling", sets(DOUBLING, "peer0", 1), "peer0 is overwritten by a peer while it may still be read"),
    ("one barrier, doubling", replace(DOUBLING, sets=1), "may be counted for the phase before"),
    ("no proxy fence", without(BULK4, lambda a: a.do == FENCE), "src is copied without a proxy fence between its writes and the barrier"),
    ("too few bytes", replace(PUSH4, tx=(PUSH4.tx[0] - 16,)), "round 0 is armed with 3056 bytes, but 3072 arrive"),
    ("too many bytes", replace(PUSH4, tx=(PUSH4.tx[0] + 4,)), "a wait never ends"),
    ("wrong bytes in the second round", replace(TWO_ROUNDS, tx=(TWO_ROUNDS.tx[0], 4)), "round 1 is armed with 4 bytes, but 768 arrive"),
    ("waits for bytes that nobody sends", replace(PUSH4, tx=(2**20,)), "a wait never ends"),
    ("nobody arms again", without(PUSH4, lambda a: a.do == ARM), "may land before its barrier is armed"),
    ("arms twice", replace(PUSH4, acts=(*PUSH4.acts, Act(ARM))), "round 0 is not armed exactly once: rank 0, set 0, phase 1: 2 times"),
    ("leaves without the last wait", replace(CAST, ending=()), "a rank may leave while a peer still writes to it"),
    ("leaves while its copies are read", replace(BULK4, closes=False), "a rank may leave while its own bulk copies are still read"),
    ("pushes before the cluster has met", replace(PUSH4, meets=False), "a push before the cluster has met"),
    ("no barrier before the push", without(PUSH4, nth(SYNC, 0)), "src is pushed without a barrier after it was written"),
    ("no barrier before reading", without(PUSH4, nth(SYNC, 1)), "out is read without a barrier after it was written"),
    ("no barrier between the rounds", without(TWO_ROUNDS, nth(SYNC, 1)), "mid is pushed without a barrier after it was written"),
    ("no barrier in a round of doubling", without(DOUBLING, nth(SYNC, 1)), "own0 is pushed without a barrier after it was written"),
    ("reads without waiting", without(PUSH4, lambda a: a.do == WAIT), "box is read before it has landed"),
    ("does not wait for acknowledgements", without(CAST, lambda a: a.round == 1 and a.do != PUSH), "box is overwritten by a peer"),
    ("acknowledges too early", changed(CAST, lambda a: a.do == PUSH and a.to == "root", lag=0), "box is overwritten by a peer"),
    ("no acknowledgement", without(CAST, lambda a: a.to == "root"), "a wait never ends"),
    ("bulk copies from one source that changes", replace(BULK4, acts=(EARLY, *BULK4.acts)), "src is overwritten while a bulk copy"),
    ("one place in device memory", sets(OFFCHIP, "rows", 1), "rows is overwritten while it may still be read"),
    ("no meeting in device memory", without(OFFCHIP, lambda a: a.do == MEET), "rows is read without a barrier after it was written"),
    ("buffers overlap", replace(PUSH4, places=tuple(replace(p, offset=16) for p in PUSH4.places)), "overlap"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "says"), [(b, s) for _, b, s in PLANTED], ids=[name for name, _, _ in PLANTED])
def test_planted_mistakes_are_found(broken: Protocol, says: str) -> None:
    assert re.search(re.escape(says), found(broken)), found(broken) or "nothing was found"
    with pytest.raises(Exception, match="the plan is wrong"):
        check(broken)


@pytest.mark.parametrize(("kind", "enough"), [("reduce", 2), ("reduce_scatter", 2), ("gather", 2), ("broadcast", 3)])
@pytest.mark.parametrize("size", [64, 4096], ids=["short", "long"])
def test_bulk_copies_from_sources_in_turn(kind: str, enough: int, size: int) -> None:
    """Callers write a source before the call. In a broadcast the root hears that a row has landed only in the call but one."""
    whole = design(Collective(kind, "sum", (size,), "f32", 4), "bulk").protocol
    rewritten = replace(whole, before=(), acts=(EARLY, *whole.acts))
    in_turn, _ = place_all(sets(rewritten, "src", enough))
    check(in_turn)
    assert "src is overwritten while a bulk copy still reads it" in found(sets(rewritten, "src", enough - 1))


@pytest.mark.parametrize(("kind", "algorithm"), [(k, a) for k, a, op, ranks in everything() if op == "sum" and ranks == 4])
def test_every_barrier_and_wait_is_needed(kind: str, algorithm: str) -> None:
    """Without any single consumer barrier of its own, wait, arm, fence or meeting, the proof fails. The caller's last barrier aside."""
    every_act_is_needed(protocol(kind, algorithm))


def test_one_float_needs_every_act_too() -> None:
    check(SCALAR)
    every_act_is_needed(SCALAR)


def every_act_is_needed(whole: Protocol) -> None:
    for n, act in enumerate(whole.acts):
        if act.do not in (SYNC, WAIT, ARM, FENCE, MEET) or act.caller:
            continue
        broken = replace(whole, acts=(*whole.acts[:n], *whole.acts[n + 1 :]))
        assert faults(broken), f"without act {n}, {whole.acts[n].text}:\n{protocol_text(whole)}"


def test_errors_are_plan_errors_with_the_sum() -> None:
    (error,) = faults(replace(PUSH4, tx=(PUSH4.tx[0] - 16,)))
    assert isinstance(error, PlanError)
    assert "768 + 768 + 768 + 768 = 3072" in str(error)


def test_the_text_says_who_does_what() -> None:
    text = protocol_text(CAST)
    assert "cluster of 4; 4 barriers in 2 sets, armed with 768, 16 B" in text
    assert "rank 0: st.async 768 B of src to each, into box, on round 0" in text
    assert "st.async 4 B of a register to root, into ack, on round 1 of call i - 1" in text
    assert "st.async 4 B of a register to each, into box, on round 0" in protocol_text(SCALAR)
    assert "multicast 3072 B of device memory to each, into box, on round 0" in protocol_text(GATHERS[3])


@pytest.mark.parametrize("kind", ["reduce", "reduce_scatter", "gather", "broadcast"])
def test_through_device_memory_every_rank_writes_its_row_but_of_a_broadcast_the_root_alone(kind: str) -> None:
    acts = protocol(kind, "global").acts
    wrote = [act.only for act in acts if act.do == WRITE and act.places == ("rows",)]
    assert wrote == [ROOT if kind == "broadcast" else ""]
