"""The proof of a protocol's bytes: places hold what is in them, and rows start and end where the way that they take allows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from protocols import LONG, SCALAR, changed, everything, found, protocol, sets, sized

from cfdsl.compiler.collective.check_bytes import byte_faults, pushes
from cfdsl.compiler.collective.protocol import BULK, PUSH, ST_ASYNC, Protocol

PUSH4, BULK4, SCATTER = protocol("reduce", "push"), protocol("reduce", "bulk"), protocol("reduce_scatter", "push")
TWO_ROUNDS, DOUBLING, SWAPS = protocol("reduce", "scatter_gather"), protocol("reduce", "doubling"), protocol("gather", "doubling")
CAST, FROM_MEMORY = protocol("broadcast", "push"), protocol("gather", "multicast")
LONG4 = LONG[1]


def pushing(whole: Protocol, tx: tuple[int, ...] | None = None, **fields: object) -> Protocol:
    """The protocol with its pushes changed, and what its barriers wait for."""
    return replace(changed(whole, lambda act: act.do == PUSH, **fields), tx=whole.tx if tx is None else tx)


PLANTED: list[tuple[str, Protocol, str]] = [
    ("a row too few", sized(PUSH4, box=3 * 768), "box is smaller than what lands there: of rank 3: 2304 + 768 > 2304"),
    ("room without padding", sized(pushing(PUSH4, (48,), nbytes=12, apart=16), box=48), "of rank 3: 48 + 12 > 48"),
    ("no room for the acknowledgements", sized(CAST, ack=12), "ack is smaller than what lands there: of rank 3: 12 + 4 > 12"),
    ("no room for the root's row", sized(CAST, box=764), "box is smaller than what lands there: of rank 0: 0 + 768 > 764"),
    ("no room for what is multicast", sized(FROM_MEMORY, box=3056), "box is smaller than what lands there: of rank 3: 2304 + 768 > 3056"),
    ("no room for a partner's rows", sized(SWAPS, rows1=1520), "rows1 is smaller than what lands there: of rank 2: 0 + 1536 > 1520"),
    ("one float more than there is room", sized(SCALAR, box=12), "box is smaller than what lands there: of rank 3: 12 + 4 > 12"),
    ("rows in one place", pushing(PUSH4, apart=0), "rows of two ranks share bytes of box: rank 0 to 768, rank 1 from 0"),
    ("rows too close", pushing(PUSH4, apart=752), "rows of two ranks share bytes of box: rank 0 to 768, rank 1 from 752"),
    ("a short source", sized(PUSH4, src=764), "src is smaller than what is pushed of it: 0 x 0 + 768 = 768 > 764"),
    ("a source of one piece", sized(SCATTER, src=192), "src is smaller than what is pushed of it: 3 x 192 + 192 = 768 > 192"),
    ("a short middle", sized(TWO_ROUNDS, mid=176), "mid is smaller than what is pushed of it: 0 x 0 + 192 = 192 > 176"),
    ("a source of several places", sized(SWAPS, own=752), "own and rows0 is smaller than what is pushed of it: 0 x 0 + 1536 = 1536 > 1520"),
    ("half a vector by bulk copy", pushing(BULK4, (3040,), nbytes=760), "a push by bulk is not a multiple of 16 bytes: 760 % 16 = 8"),
    ("nothing by bulk copy", pushing(BULK4, (0,), nbytes=0), "a push by bulk is not a multiple of 16 bytes: 0 % 16 = 0"),
    ("half a vector by multicast", pushing(FROM_MEMORY, (3056,), nbytes=3064), "by multicast is not a multiple of 16 bytes: 3064 % 16 = 8"),
    ("half a word", pushing(PUSH4, (3064,), nbytes=766), "a push by st.async is not a multiple of 4 bytes: 766 % 4 = 2"),
    ("to words", sized(pushing(PUSH4, apart=772), box=3088), "landing rows of round 0 do not all start at multiples of 16 bytes: 772"),
    ("from words", sized(pushing(SCATTER, step=196), src=800), "sent rows of round 0 do not all start at multiples of 16 bytes: 196"),
    ("a second set off by a word", sized(PUSH4, box=3076), "rows of round 0 do not all start at multiples of 16 bytes: 3076 % 16 = 4"),
    ("no room for the own row that stays", sized(LONG4, box=3 * 16384), "smaller than its parts: 16384 + 16384 + 16384 + 16384 = 65536"),
    ("no room for both rows of a round", sized(DOUBLING, pairs=3056), "pairs is smaller than its parts: 768 + 768 + 768 + 768 = 3072"),
    ("more sets than the whole", sets(DOUBLING, "peer0", 3), "peer0 has more sets than pairs, which it is part of: 3 > 2"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "says"), [(b, s) for _, b, s in PLANTED], ids=[name for name, _, _ in PLANTED])
def test_planted_mistakes_are_found(broken: Protocol, says: str) -> None:
    assert re.search(re.escape(says), found(broken)), found(broken) or "nothing was found"


def test_the_planted_are_what_they_say() -> None:
    assert LONG4.ranks == 4
    for whole in (PUSH4, BULK4, SCATTER, TWO_ROUNDS, DOUBLING, SWAPS, CAST, FROM_MEMORY, SCALAR, LONG4):
        assert not list(byte_faults(whole))
    assert {act.by for act in pushes(PUSH4)} == {ST_ASYNC}
    assert {act.by for act in pushes(BULK4)} == {BULK}


@pytest.mark.parametrize(
    "whole", [*(protocol(kind, algorithm, ranks, op) for kind, algorithm, op, ranks in everything() if ranks > 1), *LONG, SCALAR]
)
def test_no_place_of_a_push_can_do_with_a_word_less(whole: Protocol) -> None:
    """Rows here are whole vectors, so that none has padding behind it."""
    names = {name for act in pushes(whole) for name in (act.lands, *act.places)}
    for place in whole.places:
        if place.name in names:
            assert f"{place.name} is smaller than" in found(sized(whole, **{place.name: place.nbytes - 4}))
