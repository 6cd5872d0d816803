"""The source of a collective's kernel has every barrier that its protocol was proved with, and a repeat's last result is the one taken."""

from __future__ import annotations

import re

import pytest
from protocols import everything

from cfdsl.compiler.collective.design import Design
from cfdsl.compiler.collective.designs import design
from cfdsl.compiler.collective.lower import plan_of
from cfdsl.compiler.collective.request import Collective
from cfdsl.compiler.emit.collective import emit_collective

SAID = {
    "channel.init": "barriers", "cute.arch.sync_threads": "the CTA meets", "cute.arch.cluster_arrive_relaxed": "arrive",
    "cute.arch.cluster_wait": "all have arrived", "cute.arch.griddepcontrol_launch_dependents": "the next may start",
    "cute.arch.griddepcontrol_wait": "the kernel before is done", "staging.load": "read", "staging.load_terms": "read",
    "staging.part": "read", "cta.consumer_sync": "warps meet", "staging.store": "write", "collectives.broadcast_end": "end",
}  # fmt: skip


def source_of(made: Design) -> str:
    return emit_collective(plan_of(made), made)


def spine(made: Design) -> list[str]:
    """What the kernel does, line by line, as far as it is about who waits for whom."""
    source = source_of(made)
    found = []
    for line in source[source.index("@cute.kernel") : source.index("kernel.set_name_prefix")].splitlines():
        text = line.strip()
        call = re.match(r"(?:\w+ = )?((?:\w+\.)+\w+)\(", text)
        name = call[1] if call else ""
        if name in SAID:
            found.append(SAID[name])
        elif name.startswith(("collectives.", "offchip.grid_")):
            found.append("exchange")
        elif text == "value = x[bid]" or text == "y[bid] = total":
            found.append("read" if text.startswith("value") else "write")
    return found


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(("kind", "algorithm", "op", "ranks"), list(everything()))
def test_who_waits_for_whom(kind: str, algorithm: str, op: str, ranks: int, timed: bool) -> None:
    request = Collective(kind, op, (16, 64), "f32", ranks, repeat=3, timed=timed)
    made = design(request, algorithm)
    cluster = not made.offchip or timed  # off chip, only so that all clocks start together
    wanted = ["barriers", "the CTA meets"] * (not made.offchip) + ["arrive"] * cluster + ["the next may start", "the kernel before is done"]
    wanted += ["read", *["all have arrived"] * cluster, *["warps meet"] * timed, "exchange", *["end"] * bool(made.protocol.ending)]
    wanted += ["warps meet", "write", *["arrive", "all have arrived"] * made.protocol.closes]
    assert spine(made) == wanted


def test_a_float_of_each_rank() -> None:
    made = design(Collective("reduce", "sum", (1,), "f32", 4, repeat=3), "push")
    start = ["barriers", "the CTA meets", "arrive", "the next may start", "the kernel before is done", "read", "all have arrived"]
    assert spine(made) == [*start, "exchange", "warps meet", "write"]
    assert "y[bid] = total" in source_of(made)
    two = design(Collective("reduce", "sum", (2,), "f32", 4), "push")
    assert "staging.load(x, bid * 2, src" in source_of(two)  # no register of a thread holds two


def test_the_last_of_all_results_is_taken() -> None:
    made = design(Collective("reduce", "sum", (16, 64), "f32", 4, repeat=3), "push")
    source = source_of(made)
    assert "REPEAT = 3" in source
    assert "for i in cutlass.range(REPEAT, unroll=1):" in source
    assert "channel.result(smem, CHANNEL, Int32(REPEAT - 1))" in source
