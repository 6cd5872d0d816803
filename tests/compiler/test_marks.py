"""Marks of a traced kernel: behind every step and every run of the load stream, and nowhere in a kernel that is not traced."""

from __future__ import annotations

import re

import pytest
from plans import block, norm, plan_graph

import cfdsl as cf
from cfdsl.compiler.emit import emit, marks
from cfdsl.compiler.emit.marks import CONSUMER, END, PRODUCER, START
from cfdsl.compiler.plan import TRACE_ARG, KernelPlan
from cfdsl.errors import DuplicateName

PAIRS = {
    "rows": (block(), block(trace=True)),
    "split_k, atomic": (block(qkv="split_k", out="atomic"), block(qkv="split_k", out="atomic", trace=True)),
    "no pdl": (block(pdl=False), block(pdl=False, trace=True)),
    "splits": tuple(block("llama-3.1-8b", 16, 4, "grid", splits=2, stages=3, trace=trace) for trace in (False, True)),
    "multicast": (block(multicast=True), block(multicast=True, trace=True)),
    "no ring": (norm(), norm(trace=True)),
}  # fmt: skip


@pytest.fixture(params=PAIRS.values(), ids=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> tuple[KernelPlan, KernelPlan]:
    """The same plan, not traced and traced."""
    made: tuple[KernelPlan, KernelPlan] = request.param
    return made


def body(source: str) -> list[str]:
    """The lines of the kernel's body."""
    lines = source.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    smem = "))
    return lines[start : next(i for i, line in enumerate(lines) if line.startswith("kernel.set_name_prefix"))]


def numbers(source: str) -> list[int]:
    return [int(number) for number in re.findall(r"trace\.\w+\(ws_trace, MARKS, (\d+), ", source)]


def test_without_its_marks_a_traced_kernel_is_the_same(pair: tuple[KernelPlan, KernelPlan]) -> None:
    plain, traced = (emit(plan) for plan in pair)
    assert [line for line in body(traced) if "trace." not in line] == body(plain)
    assert "trace" not in plain
    assert "MARKS" not in plain
    assert marks(pair[0]) == ()
    assert pair[1].args[:-1] == pair[0].args


def test_every_mark_has_its_number_and_its_place(pair: tuple[KernelPlan, KernelPlan]) -> None:
    plan = pair[1]
    source, found = emit(plan), marks(plan)
    assert sorted(numbers(source)) == list(range(len(found)))
    assert f"\nMARKS = {len(found)}\n" in source
    assert (plan.args[-1].name, plan.args[-1].shape) == (TRACE_ARG, (plan.mesh.ctas, len(found), 4))
    anchors = {int(n) for n in re.findall(r"trace\.anchor\(ws_trace, MARKS, (\d+), ", source)}
    for lane in (CONSUMER, PRODUCER)[: 2 if plan.ring else 1]:
        own = [n for n, mark in enumerate(found) if mark.lane == lane]
        assert (found[own[0]].label, found[own[-1]].label) == (START, END)
        assert anchors & set(own) == {own[0], own[-1]}
        assert [n for n in numbers(source) if n in own] == own  # a lane passes its marks in their order


def test_marks_name_every_step_and_every_stream(pair: tuple[KernelPlan, KernelPlan]) -> None:
    plan = pair[1]
    found = marks(plan)
    consumer = [mark for mark in found if mark.lane == CONSUMER]
    for step in plan.steps:
        assert any(step.text in mark.text and mark.label == step.op for mark in consumer)
        assert step.src is None or any(f":{step.src.line}: {step.src.code}" in mark.line for mark in consumer)
    assert [mark.label for mark in found if mark.lane == PRODUCER and mark.label.startswith("stream")] == [
        f"stream {stream.name}" for stream in plan.streams
    ]
    waits = [mark.lane for mark in found if mark.label == "griddepcontrol_wait"]
    assert waits.count(CONSUMER) == plan.config.pdl


def test_a_mark_stands_behind_what_it_names() -> None:
    found, source = marks(block(trace=True)), emit(block(trace=True)).splitlines()
    attend = next(n for n, mark in enumerate(found) if mark.label == "decode")
    line = next(i for i, text in enumerate(source) if f"MARKS, {attend}, 0)" in text)
    assert any("attention.decode(" in text for text in source[line - 3 : line])
    qkv = next(mark for mark in found if mark.label == "gemv")
    assert [source.code[0] for source in qkv.sources] == ["q", "k", "v"]  # one call for three lines of the spec


def test_the_name_of_the_marks_memory_is_taken_only_in_a_traced_kernel() -> None:
    @cf.fusion
    def named(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("ws_trace", (batch, m.hidden))
        return cf.outputs(y=cf.rms_norm(x, cf.weight("w", (m.hidden,)), 1e-5))

    graph = named.trace("llama-2-7b", 1)
    assert "ws_trace" in emit(plan_graph(graph, 1, 1))
    with pytest.raises(DuplicateName, match="'ws_trace' is taken: first the kernel's own workspace"):
        plan_graph(graph, 1, 1, trace=True)
