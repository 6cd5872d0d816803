"""Every barrier matters: with any one of them left out, the result is wrong once somebody is late, and with all of them it is right.

Who is late loses 20 us at the start, after each consumer barrier and after each exchange (see `stress.stress`). Nothing hangs: the
broken kernels' waits give up.
"""

from __future__ import annotations

import cases
import pytest
from cases import ATTEND_DEEP, ATTEND_SHALLOW, DEEP, GRID_CASE, PUSHES, SHALLOW, SPLIT, SPREAD, Case
from harness import WARPS
from spoil import Late, spoils, spoils_apart, wrong
from stress import ALL, NONE, stress

NAMED = cases.by_name()
PRODUCT_DEEP, PRODUCT_SHALLOW = NAMED["gemv ragged, deep ring"], NAMED["gemv ragged, shallow ring"]
COLLECTIVES = tuple(NAMED[f"{kind}, 4 ranks"] for kind in ("scalar", "gather", "reduce", "scatter"))
BROADCAST = cases.BROADCASTS[2]

EACH_WARP = tuple((ALL, warp) for warp in range(WARPS))
PRODUCER = ((ALL, WARPS),)
ONE_CTA = ((1, ALL),)
ONE_CTAS_WARPS = ((1, ALL), *((1, warp) for warp in range(WARPS)))

# Kernel, the barrier to leave out, which of its calls (None: all), and who is late: at least one of these must spoil the result.
BROKEN: list[tuple[Case, str, int | None, tuple[Late, ...]]] = [
    (NAMED["fragment 1 warp a row, ragged"], "cta.consumer_sync", 0, EACH_WARP),  # in mean_square
    (NAMED["fragment 1 warp a row, ragged"], "cta.consumer_sync", 1, EACH_WARP),
    (NAMED["rope half"], "cta.consumer_sync", 0, EACH_WARP),
    (NAMED["rope half"], "cta.consumer_sync", 1, EACH_WARP),
    (NAMED["kv.append bf16"], "cta.consumer_sync", 0, EACH_WARP),
    (PRODUCT_DEEP, "cta.consumer_sync", 0, EACH_WARP),
    (PRODUCT_DEEP, "ring.wait", None, PRODUCER),
    (PRODUCT_SHALLOW, "ring.acquire", None, EACH_WARP),
    *((ATTEND_DEEP, "cta.consumer_sync", call, EACH_WARP) for call in range(4)),
    (ATTEND_DEEP, "ring.wait", None, PRODUCER),
    (ATTEND_SHALLOW, "ring.acquire", None, EACH_WARP),
    *((case, "cta.consumer_sync", call, EACH_WARP) for case in COLLECTIVES for call in range(2)),
    (SPLIT, "cta.consumer_sync", 1, EACH_WARP),  # between merge_lse and store_terms
    *((case, "exchange.wait", None, ONE_CTA) for case in (PUSHES, *COLLECTIVES, BROADCAST, SPLIT)),
    (SPREAD, "exchange.wait", 1, ONE_CTA),
    *((GRID_CASE, "cta.consumer_sync", call, ONE_CTAS_WARPS) for call in range(3)),  # the caller's, then two inside of the barrier
    (GRID_CASE, "grid.barrier", None, ONE_CTA),
]
# Collectives in loops: (kind, algorithm, consumer barriers that are needed, waits that are needed), by their number. The last barrier of
# a call that folds is the caller's; one that only lands needs none there, and a broadcast's last wait is about leaving.
IN_LOOPS = [
    ("reduce", "push", (0, 1), (0,)), ("reduce", "bulk", (0, 1), (0,)), ("reduce", "scatter_gather", (0, 1), (0, 1)),
    ("reduce", "doubling", (0, 1, 2, 3), (0, 1)), ("reduce", "global", (0, 1, 2, 3), ()), ("reduce_scatter", "push", (0, 1), (0,)),
    ("gather", "push", (0,), (0,)), ("gather", "bulk", (0,), (0,)), ("gather", "doubling", (0, 1), (0, 1)),
    ("broadcast", "push", (0,), (0, 1)), ("broadcast", "bulk", (0,), (0, 1)),
]  # fmt: skip
IN_A_LOOP: list[Case] = []
for _kind, _algorithm, _barriers, _waits in IN_LOOPS:
    _loop = NAMED[f"loop {_kind} {'sum ' * _kind.startswith('reduce')}f32 by {_algorithm}, 4 ranks"]
    IN_A_LOOP.append(_loop)
    BROKEN += [(_loop, "cta.consumer_sync", number, ONE_CTAS_WARPS) for number in _barriers]
    BROKEN += [(_loop, "exchange.wait", number, ((0, ALL), *ONE_CTA)) for number in _waits]
    BROKEN += [(_loop, "grid.meet", None, ONE_CTA)] * (_algorithm == "global")

WHOLE: dict[str, tuple[Case, tuple[Late, ...]]] = {}
for _case, _target, _call, _lates in BROKEN:
    _, _known = WHOLE.get(_case.name, (_case, ()))
    WHOLE[_case.name] = (_case, tuple(dict.fromkeys((*_known, *_lates))))


def title(value: object) -> str | None:
    if isinstance(value, Case):
        return value.name
    if isinstance(value, tuple):
        return ""
    return None


@pytest.mark.gpu
@pytest.mark.parametrize("name", WHOLE)
def test_whoever_is_late_the_result_is_right(name: str) -> None:
    case, lates = WHOLE[name]
    with stress():
        program = case.build()
    failures = [failure for late in ((NONE, NONE), *lates) if (failure := wrong(case, program, late))]
    assert not failures, "\n".join(failures)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "barrier", "call", "lates"), BROKEN, ids=title)
def test_without_the_barrier_the_result_is_wrong(case: Case, barrier: str, call: int | None, lates: tuple[Late, ...]) -> None:
    spoiled = spoils_apart if case in IN_A_LOOP and barrier == "exchange.wait" else spoils
    assert spoiled(case, barrier, call, lates), (
        f"{case.name} without call {call} of {barrier} is right whoever of {lates} is late: the barrier is not needed, or the delays "
        "do not reach the race"
    )


@pytest.mark.gpu
def test_the_ring_needs_an_arrival_of_every_warp() -> None:
    """Stages whose empty barriers count one warp less are refilled before the last warp has read them."""
    whole = cases.product("one arrival less", cases.Matrix(**{**vars(SHALLOW), "arrivals": WARPS - 1}))
    with stress():
        program = whole.build()
    assert any(wrong(whole, program, late) for late in EACH_WARP), f"a ring of {SHALLOW.stages} stages that waits for 7 of 8 warps is right"


@pytest.mark.compile
def test_leaving_out_what_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no call 5 of exchange.wait"), stress("exchange.wait", 5):
        PUSHES.build()


@pytest.mark.compile
@pytest.mark.parametrize(("target", "left"), [("", 1), ("exchange.wait", 0)])
def test_a_broken_kernel_waits_with_a_bound(target: str, left: int) -> None:
    with stress(target):
        ptx = PUSHES.build().ptx
    assert "mbarrier.try_wait" not in ptx
    assert ("mbarrier.test_wait" in ptx) == bool(left)
    assert "%clock64" in ptx
    assert DEEP.stages >= DEEP.first + DEEP.second, "the deep ring has a stage for every tile: nothing to acquire"
