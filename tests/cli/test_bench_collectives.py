"""`bench collectives`: options, tables, JSON, plot and exit status; the record is made by the runtime with stand-in kernels."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runner import run

from cfdsl.cli.exchange_tables import bars_panel, pays_panel, push_line, rows_panel, show
from cfdsl.cli.plot_exchanges import curves, plot_exchanges
from cfdsl.compiler.parts import PARTS

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

H100 = PARTS["h100-sxm"]
PLACE = {"gpu": "NVIDIA H100", "sms": "132", "torch": "2.13.0", "cuda": "12.8", "date": "2026-11-23 12:00 UTC"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU that computes with stand-ins: see tests/runtime/fake_exchange.py for what an exchange takes there."""
    from fake_exchange import FakeFactory, possible

    from cfdsl.runtime import measure
    from cfdsl.runtime.exchange_bench import run as bench
    from cfdsl.runtime.exchange_bench import timing

    factory = FakeFactory()
    real = bench.bench_collectives
    monkeypatch.setattr(measure, "time_graph", lambda *given: factory.time_graph(*given))
    monkeypatch.setattr(measure, "environment", lambda: PLACE)
    monkeypatch.setattr(timing, "TIMED_LAUNCHES", 2)
    monkeypatch.setattr("cfdsl.cli.gpu.gpu_part", lambda: H100)
    stand_ins = {"factory": factory, "possible": possible, "device": "cpu", "jobs": 0}
    monkeypatch.setattr(bench, "bench_collectives", lambda *given, **rest: real(*given, **{**rest, **stand_ins}))
    return factory


ARGS = ("bench", "collectives", "--cluster-sizes", "4,2", "--payloads", "4,512,8K", "--ops", "sum,gather", "--runs", "2")


def printed(what: Any) -> str:
    screen = Console(width=120, record=True, file=io.StringIO())
    screen.print(what)
    return screen.export_text()


def test_it_needs_a_gpu() -> None:
    done = run("bench", "collectives")
    assert done.code == 1
    assert done.err.startswith("error: NeedsGpu: `python -m cfdsl bench collectives` measures on a GPU")


def test_all_wrong_options_are_named_at_once() -> None:
    done = run("bench", "collectives", "--cluster-sizes", "3", "--payloads", "4,x", "--ops", "add", "--algorithms", "fast")
    assert done.code == 1
    for option in ("--cluster-sizes", "--payloads", "--ops", "--algorithms"):
        assert f"BadOption: {option} got" in done.err
    assert "expected" not in done.err
    assert "OptionsConflict: --full cannot be given with --quick" in run("bench", "collectives", "--quick", "--full").err


@pytest.mark.parametrize("text", ["", "0", "2", "6", "-4"])
def test_payloads_are_multiples_of_4(text: str) -> None:
    assert "BadOption: --payloads" in run("bench", "collectives", f"--payloads={text}").err


def test_the_fusions_bench_is_still_there() -> None:
    assert "UnknownModel" in run("bench", "attention_block", "--model", "x").err
    assert "--kv-len" in run("bench", "--help").out
    assert "--payloads" in run("bench", "collectives", "--help").out


def test_tables(fake: Any) -> None:
    """At 2 GHz: 512 B over 4 take 240 + 96 cycles, 0.168 us, and 1.5 + 1336/2000 us with the launch; through L2 1008 cycles."""
    done = run(*ARGS)
    assert done.code == 0
    text = " ".join(done.out.replace("│", " ").split())
    for wanted in (
        "NVIDIA H100, 132 SMs", "2026-11-23 12:00 UTC", "SM clock 2.000 GHz, measured in this run", "240 cycles one way",
        "16 to 19 B/clk/SM push (Timing in", "push bandwidth in this run, 4 ranks", "launch excluded",
        "push * 336 0.168 2.17", "global 1,008 0.504",
        "total data of 32 clusters of 4, one launch each", "The other reading", "per cluster", "6.77", "22.44",
        "DSMEM wins", "4 B to", "reduce of 32 KB, with a launch", "at most 350 cycles", "at most 600 cycles", "met",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert max(len(line) for line in done.out.splitlines()) <= 120
    assert "sum of 512 B over 4, push: 336 cycles, 2.17 us with the launch" in done.err


def test_json_on_stdout_is_the_record(fake: Any) -> None:
    done = run(*ARGS, "--json", "-")
    record = done.json
    assert record["command"].startswith("python -m cfdsl")
    assert {row["cluster"] for row in record["rows"]} == {2, 4}
    assert {row["payload"] for row in record["rows"]} == {4, 512, 8192}
    assert record["errors"] == 0
    assert len(record["paper"]) == 8


def test_json_and_plot_go_into_files(fake: Any, tmp_path: Path) -> None:
    done = run(*ARGS, "--no-paper", "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.svg"))
    assert done.code == 0
    assert "Beside the paper" not in done.out
    assert json.loads((tmp_path / "out.json").read_text())["paper"] == []
    text = (tmp_path / "out.svg").read_text()
    assert text.lstrip().startswith("<?xml")
    assert len(text) > 10000


def test_a_wrong_row_is_shown_and_the_exit_status_says_so(fake: Any, tmp_path: Path) -> None:
    fake.flaw = lambda kernel, y: y.add_(1.0) if kernel.case.payload == 512 and kernel.case.operator == "sum" else None
    done = run(*ARGS, "--plot", str(tmp_path / "out.png"))
    assert done.code == 1
    assert "WRONG: sum of 512 B over 4, push: WrongResult: 1 exchange in a launch" in done.out
    assert "not told" in done.out
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert run(*ARGS, "--json", "-").code == 1


def test_a_run_in_which_everything_is_wrong_still_prints_and_plots(fake: Any, tmp_path: Path) -> None:
    fake.flaw = lambda kernel, y: y.zero_()
    done = run(*ARGS, "--plot", str(tmp_path / "out.png"))
    assert done.code == 1
    assert "Nothing was measured both on the chip and off it." in done.out


def row(cluster: int, algorithm: str, payload: int, us: float, error: str | None = None) -> dict[str, Any]:
    return {"operator": "sum", "cluster": cluster, "algorithm": algorithm, "on_chip": algorithm != "global", "payload": payload, "us": us,
            "launch_us": 2 * us, "error": error}  # fmt: skip


def test_curves_are_of_the_fastest_algorithm() -> None:
    rows = [
        row(4, "push", 512, 0.2), row(4, "bulk", 512, 0.3), row(4, "push", 4, 0.1), row(4, "global", 4, 0.5), row(2, "push", 4, 0.15),
        row(2, "push", 8, 0.01, "wrong"),
        row(2, "multicast", 4, 0.01),
    ]  # fmt: skip
    assert curves(rows, "sum", "us") == {(2, True): [(4, 0.15)], (4, True): [(4, 0.1), (512, 0.2)], (4, False): [(4, 0.5)]}
    assert curves(rows, "gather", "us") == {}


def test_bars_are_met_missed_or_not_told() -> None:
    rows = [{"name": f"bar {met}", "wanted": "at most 1", "got": "2", "met": met} for met in (True, False, None)]
    lines = printed(bars_panel(rows)).splitlines()
    for mark, met in (("met ", True), ("MISSED", False), ("not told", None)):
        assert any(mark in line and f"bar {met}" in line for line in lines)


def test_ranges_are_printed_with_their_ends() -> None:
    ranges = [
        {"verdict": "wins", "payloads": [4, 8192], "speedup": [1.5, 4.0], "algorithms": ["push", "bulk"]},
        {"verdict": "loses", "payloads": [65536, 65536], "speedup": [0.8, 0.8], "algorithms": ["bulk"]},
        {"verdict": "off chip", "payloads": [131072, 131072], "speedup": None, "algorithms": []},
    ]
    text = printed(pays_panel([{"operator": "sum", "cluster": 4, "ranges": ranges}]))
    for wanted in ("4 B to 8 KiB", "DSMEM wins", "1.50 to 4.00", "push, bulk", "64 KiB", "L2 wins", "0.80", "128 KiB", "L2 is chosen"):
        assert wanted in text


def test_the_push_bandwidth_line() -> None:
    push = {"b_per_clk": 15.96, "gbps_per_sm": 28.0, "operator": "sum", "payload": 16384, "marginal": None}
    assert push_line(4, push) == "push bandwidth in this run, 4 ranks: 16.0 B/clk/SM, 28.0 GB/s per SM (sum of 16 KiB)"
    assert "17.0 B/clk/SM between the two largest gathers" in push_line(4, {**push, "marginal": 17.0})


def test_a_clock_that_moves_is_noted(fake: Any) -> None:
    record = run(*ARGS, "--no-paper", "--json", "-").json
    assert "changed by more than 2 %" not in printed(rows_panel(record))
    record["clock"]["ghz_after"] = 1.9
    assert "changed by more than 2 %" in printed(rows_panel(record))


def test_every_algorithm_and_operator_has_room(fake: Any, tmp_path: Path) -> None:
    every = ("--ops", "sum,max,min,lse,reduce_scatter,gather,broadcast", "--algorithms", "all")
    record = run("bench", "collectives", "--cluster-sizes", "16", "--payloads", "2048", *every, "--json", "-", "--runs", "1").json
    screen = Console(width=120, record=True, file=io.StringIO())
    show(screen, record)
    text = screen.export_text()
    assert "reduce_scatter" in text
    assert max(len(line) for line in text.splitlines()) <= 120
    plot_exchanges(record, tmp_path / "out.svg")
