"""Timelines of kernels on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cfdsl as cf
from cfdsl.compiler.emit import marks
from cfdsl.errors import RecordingFull
from cfdsl.runtime import measure
from cfdsl.runtime.kernel import Kernel
from cfdsl.runtime.recording import recording
from cfdsl.runtime.timeline import Record, stage_times
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm

pytestmark = pytest.mark.gpu

MODEL = "smollm2-135m"


@pytest.fixture(scope="module")
def traced() -> Kernel:
    return cf.compile(attention_block, MODEL, trace=True)


def inputs(fusion: cf.Fusion = attention_block, seed: int = 0) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = fusion.example_inputs(
        cf.models.resolve(MODEL), 1, "bf16", device="cuda", length=300, capacity=640, seed=seed
    )
    return made


def check(kernel: Kernel, records: list[Record]) -> None:
    """Every CTA has every mark, and each lane's steps follow one another."""
    found = marks(kernel.plan)
    steps = {n for n, mark in enumerate(found) if mark.label not in ("start", "end")}
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    for cta in range(kernel.plan.grid):
        own = [record for record in records if record.cta == cta]
        assert {record.step for record in own} == steps
        assert len(own) == len(steps)
        assert len({record.sm for record in own}) == 1
        assert 0 <= own[0].sm < 2 * sms  # numbers of SMs may have gaps
        for lane in {record.lane for record in own}:
            times = [(record.start_ns, record.end_ns) for record in own if record.lane == lane]
            assert all(start <= end for start, end in times)
            assert all(a[1] == b[0] for a, b in zip(times, times[1:], strict=False))
    assert len(records) == len(steps) * kernel.plan.grid


def test_every_cta_has_every_mark_in_order(traced: Kernel) -> None:
    records = traced.trace(**inputs())
    check(traced, records)
    span = max(record.end_ns for record in records) - min(record.start_ns for record in records)
    assert 1_000 < span < 1_000_000  # some 10 us; a first launch would have been slower
    # all CTAs leave a grid barrier after all have come: clocks of different SMs are on one time axis
    barrier = next(n for n, mark in enumerate(marks(traced.plan)) if mark.label == "grid_barrier")
    own = [record for record in records if record.step == barrier]
    slack = 1_500  # ns: the global timer may tick that coarsely, and there are few launches to average over
    assert min(record.end_ns for record in own) > max(record.start_ns for record in own) - slack


def test_a_kernel_without_a_producer() -> None:
    kernel = cf.compile(rms_norm, MODEL, cluster_size=4, trace=True)
    records = kernel.trace(**inputs(rms_norm))
    check(kernel, records)
    assert {record.lane for record in records} == {"consumer"}


def test_marks_do_not_change_what_is_computed(traced: Kernel) -> None:
    plain = cf.compile(attention_block, MODEL)
    assert plain.config.with_(trace=True) == traced.config
    one, other = inputs(), inputs()
    plain(**one)
    traced(**other)
    records = traced.trace(**other, warmup=0)
    for arg in plain.args:
        assert torch.equal(_bits(one[arg.name]), _bits(other[arg.name])), arg.name
    check(traced, records)
    assert plain.status() == traced.status() == ()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def test_launches_of_several_kernels_are_on_one_time_axis(traced: Kernel) -> None:
    norm = cf.compile(rms_norm, MODEL, cluster_size=4, trace=True)
    given, rows = inputs(), inputs(rms_norm)
    with recording([traced, norm], launches=3) as made:
        for _ in range(3):
            norm(**rows)
            traced(**given)
    found = made.timeline()
    assert [name for name, _ in found] == ["rms_norm", "attention_block"] * 3
    ends = [max(record.end_ns for record in records) for _, records in found]
    assert ends == sorted(ends)
    for name, records in found:
        check(traced if name == "attention_block" else norm, records)


def test_launches_in_a_graph_are_recorded_by_its_replay(traced: Kernel) -> None:
    given = inputs()
    with recording([traced], launches=4) as made:
        graph = measure.capture([lambda: traced(**given)] * 2)  # which launches both eagerly first
        graph.replay()
        first = [records for _, records in made.timeline()]
        graph.replay()
        second = [records for _, records in made.timeline()]
    assert len(first) == len(second) == 4
    assert max(r.end_ns for r in first[3]) < min(r.start_ns for r in second[2])
    check(traced, second[3])


def test_a_recording_has_an_end(traced: Kernel) -> None:
    given = inputs()
    with recording([traced], launches=1):
        traced(**given)
        with pytest.raises(RecordingFull, match="room for 1 launches"):
            traced(**given)
    traced(**given)  # into its own memory again
    torch.cuda.synchronize()


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cfdsl.cli.app import main

    path = tmp_path / "out.json"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "attention_block", "--model", MODEL, "--kv-len", "300", "--no-peers", "--runs", "2", "--trace", str(path)])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "https://ui.perfetto.dev" in out
    assert "decode" in out
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in events if event["ph"] == "X")
    assert any(event["name"] == "attention_block" for event in events)


def test_the_table_covers_the_launch(traced: Kernel) -> None:
    records = traced.trace(**inputs())
    rows = stage_times(records)
    span = (max(r.end_ns for r in records) - min(r.start_ns for r in records)) / 1e3
    assert max(row.latest_us for row in rows) == pytest.approx(span)
    consumer = [row for row in rows if row.lane == "consumer"]
    assert 0.2 * span < sum(row.duration_us for row in consumer) < 1.1 * span
