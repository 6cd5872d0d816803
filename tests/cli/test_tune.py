"""`tune`: candidates measured one after another, and what is said of them. Without a GPU: the measuring is made up."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console
from runner import run

from cfdsl.cli import tune
from cfdsl.cli.build import choice_for, lower_for
from cfdsl.cli.request import resolve
from cfdsl.compiler.cost import Candidate
from cfdsl.runtime import tuning

REQUEST = resolve(fusion="attention_block", model="smollm2-135m", option=["qkv=rows"], kv_len=1024, part="h100-sxm")
BEST = [row for row in choice_for(REQUEST).rows if not row.refused][:3]


def rows(times: list[float | str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `tune` makes of candidates that take so long, or fail with a text."""
    given = iter(times)

    def fake(bench: Any, kv_len: int) -> dict[str, Any]:
        time = next(given)
        if isinstance(time, str):
            raise RuntimeError(time)
        return {"us": time, "gbps": 800.0, "relative_error": 1.7e-3, "stages": 12, "window": 4, "early": 2, "flags": []}

    monkeypatch.setattr(tuning, "measured", fake)
    monkeypatch.setattr(tuning, "Bench", lambda *given: object())
    monkeypatch.setattr(tuning, "replaced", lambda bench, kernel: bench)
    made: list[Mapping[str, int]] = []
    found = tuning.tune(REQUEST.fusion, REQUEST.model, BEST, lambda shape: made.append(shape), 1024, REQUEST.options)  # type: ignore[arg-type,func-returns-value]
    assert made == [tuning.shape_of(row) for row in BEST]
    return found


def printed(what: Any) -> str:
    screen = Console(width=140, record=True, file=io.StringIO())
    screen.print(what)
    return screen.export_text()


def record(found: list[dict[str, Any]]) -> dict[str, Any]:
    place = {"gpu": "NVIDIA H100", "sms": "132", "torch": "2.11.0", "cuda": "13.0", "date": "2026-11-28 12:00 UTC"}
    return {
        "fusion": "attention_block", "model": "smollm2-135m", "dtype": "bf16", "kv_len": 1024, "environment": place,
        "command": "python -m cfdsl tune ...", "rows": found,
    }  # fmt: skip


def test_a_shape_leaves_the_cost_model_one_candidate() -> None:
    for row in BEST:
        lowered = lower_for(tune.shaped(REQUEST, tuning.shape_of(row)))
        config = lowered.plan.config
        assert {name: getattr(config, name) for name in tuning.SHAPE} == tuning.shape_of(row)
        assert config.stages == row.config.stages


def test_the_fastest_comes_first_and_is_told_how_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows([6.5, 6.0, 7.0], monkeypatch)
    assert [row["us"] for row in found] == [6.0, 6.5, 7.0]
    shape = tuning.shape_of(BEST[1])
    text = tune.verdict(found)
    assert text.startswith("Fastest: 6.0 us, 0.5 us faster than the cost model's choice, with --clusters ")
    assert f"--cluster-size {shape['cluster_size']} --splits 1 --ctas-per-sm {shape['ctas_per_sm']}" in text
    shown = printed(tune.tune_panel(record(found)))
    for wanted in ("NVIDIA H100, 132 SMs", "python -m cfdsl tune", "6.0", "estimate off", "1.7e-03", "* "):
        assert wanted in shown


def test_one_that_fails_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows([6.5, "no room\nfor it", 7.0], monkeypatch)
    assert [row["problem"] for row in found] == [None, None, "RuntimeError: no room"]
    assert tune.verdict(found) == "The cost model's choice is the fastest of 2 candidates."
    assert "RuntimeError: no room" in printed(tune.tune_panel(record(found)))
    assert tune.verdict(rows(["a", "b", "c"], monkeypatch)) == "None of them ran."


def test_kernels_are_compiled_ahead_from_the_words_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of its own is given is enough for it to make the same kernel."""
    asked: list[Any] = []
    monkeypatch.setattr("cfdsl.cli.build.kernel_for", lambda request: asked.append(lower_for(request)))
    candidate: Candidate = BEST[0]
    tune.compile_one((REQUEST.asked, REQUEST.part.name, tuning.shape_of(candidate)))
    mine = lower_for(tune.shaped(REQUEST, tuning.shape_of(candidate)))
    assert asked[0].source == mine.source


def test_it_needs_a_gpu() -> None:
    result = run("tune", "attention_block", "--model", "llama-2-7b")
    assert result.code == 1
    assert "NeedsGpu: `python -m cfdsl tune` measures on a GPU" in result.err
