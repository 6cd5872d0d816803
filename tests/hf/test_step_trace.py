"""A decode step on a timeline: what is compiled for it, what is recorded, what is written. Kernels and clocks are stand-ins."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from runner import run

from cfdsl.cli.traced import save_step
from cfdsl.hf import step_trace
from cfdsl.runtime.timeline import Record


def record(name: str, at: int) -> Record:
    return Record(cta=0, sm=0, lane="consumer", step=0, label=name, text=name, src="a.py:1: x", start_ns=at, end_ns=at + 10)


class FakeDecoder:
    """Two layers; every replay is noted."""

    def __init__(self) -> None:
        names = ["embedding", "attention_block", "ffn_block", "attention_block", "ffn_block", "lm_head"]
        self.kernels = [(name, name) for name in names]
        self.lengths: list[int] = []
        self.replays = 0

    def reset(self, length: int) -> None:
        self.lengths.append(length)

    def capture(self) -> Callable[[], None]:
        def replay() -> None:
            self.replays += 1

        return replay


def test_every_kernel_of_a_step_is_compiled_to_note_its_times() -> None:
    assert step_trace.traced("blocks") == {name: {"trace": True} for name in ("embedding", "attention_block", "ffn_block", "lm_head")}
    assert list(step_trace.traced("whole")) == ["embedding", "decoder_layer", "lm_head"]


def test_there_is_memory_for_each_launch_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph's launches are recorded once and overwritten by each replay."""
    asked: list[tuple[list[Any], int]] = []

    @contextlib.contextmanager
    def recording(kernels: list[Any], launches: int) -> Iterator[Any]:
        asked.append((kernels, launches))
        yield SimpleNamespace(timeline=lambda: [("embedding", [record("fragment", 5)])])

    monkeypatch.setattr(step_trace, "recording", recording)
    decoder = FakeDecoder()
    assert step_trace.trace_step(decoder, 100) == [("embedding", [record("fragment", 5)])]
    assert asked == [([name for name, _ in decoder.kernels], 2)]
    assert (decoder.lengths, decoder.replays) == ([100], step_trace.REPLAYS)


def test_the_file_has_every_launch_and_the_screen_says_where(tmp_path: Path) -> None:
    screen = Console(record=True, width=200)
    path = tmp_path / "step.json"
    save_step(path, [("embedding", [record("a", 0)]), ("lm_head", [record("b", 20)])], screen)
    names = [event["name"] for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    assert sorted(names) == ["a", "b", "embedding", "lm_head"]  # each launch is an event of its own too
    assert screen.export_text() == f"{path}: one step, 2 launches; open it at https://ui.perfetto.dev\n"


def test_the_oracle_has_no_timeline(tmp_path: Path) -> None:
    done = run("generate", "--model", "smollm2-135m", "--prompt", "x", "--backend", "oracle", "--trace", str(tmp_path / "t.json"))
    assert done.code != 0
    assert "--trace cannot be given with --backend oracle: only kernels have a timeline" in done.err
