"""The order of a protocol's acts: what may change places has a reason, anything else is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from protocols import LONG, SCALAR, everything, found, protocol

from cfdsl.compiler.collective.check import faults
from cfdsl.compiler.collective.protocol import ARM, FENCE, PUSH, READ, SYNC, WAIT, WRITE, Act, Protocol

Pair = tuple[Act, Act]

FOUR = [(kind, algorithm, op) for kind, algorithm, op, ranks in everything() if ranks == 4]
EVERY = [
    *(pytest.param(protocol(kind, algorithm, op=op), id=f"{kind} {op} by {algorithm}") for kind, algorithm, op in FOUR),
    *(pytest.param(whole, id=f"long rows {number}") for number, whole in enumerate(LONG) if whole.ranks == 4),
    pytest.param(SCALAR, id="one float"),
]
ARMED = [param for param in EVERY if any(act.do == ARM for act in param.values[0].acts)]


# ---- arming ------------------------------------------------------------------------------------------------------------------------


def swapped(whole: Protocol) -> Protocol:
    """Every round: armed, then waited for."""
    acts = list(whole.acts)
    for at in [n for n, act in enumerate(acts) if act.do == ARM]:
        before = max(n for n in range(at) if acts[n].do == WAIT and acts[n].round == acts[at].round)
        acts[before], acts[at] = acts[at], acts[before]
    return replace(whole, acts=tuple(acts))


def armed_first(whole: Protocol) -> Protocol:
    """All barriers are armed before anything else is done in a call."""
    arms = [act for act in whole.acts if act.do == ARM]
    return replace(whole, acts=(*arms, *(act for act in whole.acts if act.do != ARM)))


@pytest.mark.parametrize("early", [swapped, armed_first])
@pytest.mark.parametrize("whole", ARMED)
def test_no_barrier_is_armed_before_its_phase_was_waited_for(whole: Protocol, early: Callable[[Protocol], Protocol]) -> None:
    for round in range(len(whole.tx)):
        assert f"round {round} is armed again before its phase was waited for" in found(early(whole))


def test_the_last_phases_are_waited_for_before_they_are_armed() -> None:
    cast = protocol("broadcast", "push")
    assert "round 1 is armed again before its phase was waited for" in found(replace(cast, ending=cast.ending[::-1]))


# ---- any two acts that follow each other -------------------------------------------------------------------------------------------


def does(pair: Pair, one: str, *others: str) -> bool:
    """Whether one of the two does `one`, and the other one of `others`."""
    first, second = (act.do for act in pair)
    return (first == one and second in others) or (second == one and first in others)


def apart(pair: Pair) -> bool:
    """Whether they have no place in common."""
    first, second = ({*act.places, act.lands} - {""} for act in pair)
    return not first & second


def rounds(pair: Pair) -> int:
    """How many rounds they are about."""
    return len({act.round for act in pair})


# Why two acts may change places.
REASONS: list[tuple[str, Callable[[Pair], bool]]] = [
    ("arming comes after its wait and before a barrier ahead of the next push; when in between does not matter",
     lambda pair: does(pair, ARM, READ, WRITE, FENCE, SYNC, PUSH)),
    ("reading and writing different places: what follows from data is the code's own order",
     lambda pair: does(pair, READ, WRITE) and apart(pair)),
    ("a write is no matter of a push that reads elsewhere", lambda pair: does(pair, PUSH, WRITE) and apart(pair)),
    ("two pushes, to different places and counted on different barriers",
     lambda pair: does(pair, PUSH, PUSH) and apart(pair) and rounds(pair) == 2),
    ("a wait is for what peers send, to other places than one's own", lambda pair: does(pair, WAIT, WRITE)),
    ("what has landed, and was not written here, may be read on either side of the caller's barrier",
     lambda pair: does(pair, READ, SYNC) and any(act.caller for act in pair) and not any("out" in act.places for act in pair)),
]  # fmt: skip


def swaps(whole: Protocol) -> Iterator[tuple[Pair, Protocol]]:
    """The protocol with each two acts that follow each other the other way round."""
    for part in ("acts", "ending"):
        acts = getattr(whole, part)
        for n, (first, second) in enumerate(zip(acts, acts[1:])):
            if first != second:
                yield (first, second), replace(whole, **{part: (*acts[:n], second, first, *acts[n + 2 :])})


@pytest.mark.parametrize("whole", EVERY)
def test_acts_in_another_order_are_found_or_there_is_a_reason(whole: Protocol) -> None:
    for (first, second), other in swaps(whole):
        reason = any(holds((first, second)) for _, holds in REASONS)
        assert reason or faults(other), f"'{second.text}' before '{first.text}' is not found"


@pytest.mark.parametrize(("why", "holds"), REASONS, ids=[why for why, _ in REASONS])
def test_each_reason_is_one(why: str, holds: Callable[[Pair], bool]) -> None:
    """It excuses something, and nothing that the proof refuses: but for a barrier right after which the next push comes."""
    excused = [(pair, other) for param in EVERY for pair, other in swaps(param.values[0]) if holds(pair)]
    assert excused
    for pair, other in excused:
        assert not faults(other) or does(pair, ARM, SYNC), f"{why}: but '{pair[1].text}' before '{pair[0].text}' is refused"
