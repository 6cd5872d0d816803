"""`--trace`: when each stage of each CTA ran, as a file for Perfetto and as a short table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cfdsl.cli.files import write
from cfdsl.cli.request import Request
from cfdsl.cli.tables import panel, table

if TYPE_CHECKING:
    from cfdsl.runtime.timeline import Record, StageTimes

VIEWER = "https://ui.perfetto.dev"


def trace_bench(request: Request, kv_len: int, path: Path, screen: Console) -> None:
    """Launch a traced twin of the kernel as `bench` does, in a CUDA graph over sets of tensors; write when the last launch did what."""
    from cfdsl.cli.build import kernel_for
    from cfdsl.runtime import measure
    from cfdsl.runtime.benchmark import Bench
    from cfdsl.runtime.recording import recording
    from cfdsl.runtime.timeline import stage_times

    kernel = kernel_for(dataclasses.replace(request, overrides={**request.overrides, "trace": True}))
    bench = Bench(request.fusion, request.model, kernel, request.options, kv_len, kv_len)
    bench.at(kv_len)
    calls = bench.calls()
    with recording([kernel], 2 * len(calls)) as made:  # `capture` launches each call once before
        graph = measure.capture(calls)
        graph.replay()
        graph.replay()
    name, records = made.timeline()[-1]
    write_trace(path, [(name, records)])
    screen.print(trace_panel(f"{name}, {request.model.name}, {kv_len:,} tokens", stage_times(records), path))


def write_trace(path: Path, launches: Sequence[tuple[str, Sequence[Record]]]) -> None:
    """Write launches, (kernel's name, records) in launch order as `Recording.timeline()` gives them, into one file for Perfetto."""
    from cfdsl.runtime.timeline import chrome_trace

    write("--trace", path, json.dumps(chrome_trace(launches)) + "\n")


def save_step(path: Path, launches: Sequence[tuple[str, Sequence[Record]]], screen: Console) -> None:
    """Write the launches of a decode step, and say where: thousands of stages are for the viewer, not for a table."""
    write_trace(path, launches)
    screen.print(f"{path}: one step, {len(launches)} launches; open it at {VIEWER}", style="dim", markup=False)


def trace_panel(title: str, stages: Sequence[StageTimes], path: Path) -> Any:
    """The stages as a table, with where the file is and how to look at it."""
    where = Text(f"{path}: open it at {VIEWER} (Open trace file; it stays on this machine)", "dim")
    return panel(escape(f"when the stages of {title}, ran"), where, Text(), stages_table(stages))


def stages_table(stages: Sequence[StageTimes]) -> Table:
    """A row per stage, over all CTAs, in us after the first CTA started; each lane in its order."""
    made = table("lane", "stage", ">median start", ">median us", ">latest end", "line")
    lane = ""
    for row in stages:
        times = (f"{row.start_us:.2f}", f"{row.duration_us:.2f}", f"{row.latest_us:.2f}")
        made.add_row("" if row.lane == lane else row.lane, escape(row.label), *times, escape(_short(row.src)))
        lane = row.lane
    return made


def _short(src: str, width: int = 44) -> str:
    """The start of a line of the spec."""
    return src if len(src) <= width else src[: width - 3] + "..."
