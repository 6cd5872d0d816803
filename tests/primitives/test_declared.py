"""What is wrong with a Channel that was written by hand is said while the kernel is traced; what is right is let through."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import cases
import loop_kernels
import pytest

from cfdsl.compiler.collective.designs import ALGORITHMS, design, refusals
from cfdsl.compiler.collective.request import KINDS, Collective
from primitives import collectives, declared, offchip, transfer

PUSH = cases.by_name()["loop reduce sum f32 by push, 4 ranks"]  # 203 f32: rows of 812 bytes, 816 apart
LONG = cases.by_name()["loop reduce sum f32 of 403 by push, 4 ranks"]
TWO_ROUNDS = cases.by_name()["loop reduce sum f32 by scatter_gather, 4 ranks"]
DOUBLING = cases.by_name()["loop gather f32 by doubling, 4 ranks"]
CAST = cases.by_name()["loop broadcast f32 by push, 4 ranks"]
SCALAR = cases.by_name()["loop reduce sum f32 in a register by push, 4 ranks"]


def call_of(made: Any) -> str:
    if made.algorithm == "multicast":
        return "multicast_gather"
    return "cluster_reduce_scalar" if made.scalar else f"cluster_{made.request.kind}"


@pytest.mark.parametrize("shape", [(16, 4), (16, 64), (64, 512)], ids=str)
@pytest.mark.parametrize("op", ["sum", "lse"])
@pytest.mark.parametrize("ranks", declared.RANKS)
def test_every_design_has_a_channel_that_is_right(ranks: int, op: str, shape: tuple[int, int]) -> None:
    """By other arithmetic than the design's own: bytes from what the functions send."""
    for kind in KINDS:
        for algorithm in ALGORITHMS:
            request = Collective(kind, op, shape, "f32", ranks)
            if algorithm == "global" or list(refusals(request, algorithm)):
                continue
            made = design(request, algorithm)
            declared.check(loop_kernels.constant(made), call_of(made))


def test_channels_of_one_word_are_right_too() -> None:
    for case in cases.LOOPS:
        made, how = case.constants
        if not made.offchip:
            declared.check(how, call_of(made))


WRONG = [
    (PUSH, {"tx": (3240,)}, "the Channel of cluster_reduce has tx=(3240,), but (3248,) bytes arrive"),
    (PUSH, {"stays": True}, "tx=(3248,), but (2436,) bytes arrive"),
    (LONG, {"stays": False}, "tx=(4836,), but (6448,) bytes arrive"),
    (TWO_ROUNDS, {"tx": TWO_ROUNDS.constants[1].tx[:1]}, "tx=(4032,), but (4032, 4032) bytes arrive"),
    (DOUBLING, {"tx": (816, 816)}, "tx=(816, 816), but (816, 1632) bytes arrive"),
    (CAST, {"tx": (812, 4)}, "the Channel of cluster_broadcast has tx=(812, 4), but (812, 16) bytes arrive"),
    (SCALAR, {"ranks": 2}, "the Channel of cluster_reduce_scalar has tx=(16,), but (8,) bytes arrive"),
    (PUSH, {"sets": 1}, "sets=1, but a loop needs 2 in turn"),
    (PUSH, {"set_bytes": 3248}, "set_bytes=3248, but 3264 bytes land there"),
    (PUSH, {"box": 24}, "box=24, which must be a multiple of 16"),
    (PUSH, {"algorithm": "bulk"}, 'rows of 812 bytes, but bulk copies move multiples of 16: use "push"'),
    (PUSH, {"algorithm": "pushh"}, "algorithm='pushh', which must be one of push, bulk, scatter_gather, doubling"),
    (CAST, {"algorithm": "doubling"}, "algorithm='doubling', which must be one of push, bulk"),
    (PUSH, {"ranks": 3}, "ranks=3, which must be one of 1, 2, 4, 8, 16"),
    (PUSH, {"tx": (4,), "sets": 1}, "tx=(4,), but (3248,) bytes arrive; and sets=1, but a loop needs 2 in turn"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "fields", "says"), WRONG, ids=[says for _, _, says in WRONG])
def test_a_wrong_channel_says_what_is_wrong(case: Any, fields: dict[str, Any], says: str) -> None:
    made, how = case.constants
    with pytest.raises(ValueError, match=re.escape(says)):
        declared.check(replace(how, **fields), call_of(made))


TRACED = {call_of(case.constants[0]): case for case in cases.LOOPS if not case.constants[0].offchip}


@pytest.mark.compile
@pytest.mark.parametrize("call", declared.ALGORITHMS)
def test_every_collective_looks_at_its_channel(call: str) -> None:
    made, how = TRACED[call].constants
    broken = replace(TRACED[call], constants=(made, replace(how, tx=(4096, *how.tx))))
    with pytest.raises(ValueError, match=f"the Channel of {call} has tx="):
        broken.build()


@pytest.mark.compile
def test_a_multicast_is_of_what_the_channel_says() -> None:
    made, how = TRACED["multicast_gather"].constants
    half = replace(how, n=how.n // 2, tx=(how.tx[0] // 2,))
    with pytest.raises(ValueError, match=f"{how.n} elements are multicast, but the Channel is for {how.n // 2}"):
        replace(TRACED["multicast_gather"], constants=(made, half)).build()


def test_a_bulk_copy_of_less_than_a_vector_is_refused() -> None:
    """Right at the start, before anything is traced, so that none is needed here."""
    with pytest.raises(ValueError, match="a row of 812 bytes is no multiple of 16, which bulk copies move: use push"):
        transfer.bulk.__wrapped__(None, 0, None, 812, None, None, 4, 32)


DOCUMENTED = [
    *(getattr(collectives, name) for name in declared.ALGORITHMS), offchip.grid_reduce, offchip.grid_gather, offchip.grid_broadcast,
]  # fmt: skip


@pytest.mark.parametrize("function", DOCUMENTED, ids=lambda function: function.__name__)
def test_docstrings_say_who_holds_what_and_what_it_takes(function: Any) -> None:
    for word in ("Before: ", "After: ", "Buffers: ", "Barriers: ", "Bytes", "Again: "):
        assert word in function.__doc__, f"{function.__name__} does not say {word}"
