"""`tune`: the cost model's best candidates, measured on the GPU at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from cfdsl.cli.companions import companion_errors
from cfdsl.cli.complaints import NeedsGpu
from cfdsl.cli.measuring import JsonFile, command_line, deliver, json_errors, progress
from cfdsl.cli.report import request_record, shape_text
from cfdsl.cli.request import Request, resolve, takes_request
from cfdsl.cli.tables import panel, table
from cfdsl.cli.units import plural
from cfdsl.errors import raise_all


@takes_request()
def tune(
    request: Request,
    top: Annotated[int, typer.Option(min=1, help="Candidates to measure, the best by estimate first.")] = 8,
    jobs: Annotated[int, typer.Option(min=0, help="Processes that compile ahead; 0: one per core.")] = 0,
    json: JsonFile = None,
) -> None:
    """Measure the cost model's best configs on the GPU at hand, and say how to ask for the fastest."""
    from cfdsl.cli.gpu import gpu_part

    raise_all([*companion_errors(request.fusion), *json_errors(json)])
    if gpu_part() is None:
        raise NeedsGpu(command="python -m cfdsl tune")
    record = tuned(request, top, jobs)
    deliver(record, json, lambda screen: screen.print(tune_panel(record)))


def tuned(request: Request, top: int, jobs: int) -> dict[str, Any]:
    """Choose, compile ahead, measure."""
    from cfdsl.cli.build import choice_for, kernel_for
    from cfdsl.runtime import measure
    from cfdsl.runtime.tuning import shape_of, tune

    found = [row for row in choice_for(request).rows if not row.refused][:top]
    compile_ahead(request, [shape_of(row) for row in found], jobs)
    rows = tune(
        request.fusion, request.model, found, lambda shape: kernel_for(shaped(request, shape)), request.kv_len, request.options, progress()
    )
    return {**request_record(request), "environment": measure.environment(), "command": command_line(), "rows": rows}


def shaped(request: Request, shape: Mapping[str, int]) -> Request:
    """The request with these fields of the schedule fixed too."""
    return replace(request, overrides={**request.overrides, **shape})


def compile_ahead(request: Request, shapes: Sequence[Mapping[str, int]], jobs: int) -> None:
    """Compile in processes of their own into the disk cache; if they cannot be had, each kernel is compiled when it is measured."""
    from cfdsl.runtime.jobs import MOST_JOBS, compilers, default_jobs

    jobs = min(jobs or default_jobs(), MOST_JOBS, len(shapes))
    if jobs < 2:
        return
    try:
        with compilers(jobs) as pool:
            list(pool.map(compile_one, [(request.asked, request.part.name, shape) for shape in shapes]))
    except (OSError, RuntimeError) as error:  # BrokenProcessPool is a RuntimeError: out of memory, most likely
        progress()(f"not compiled ahead: {type(error).__name__}: {error}")


def compile_one(job: tuple[Mapping[str, Any], str, Mapping[str, int]]) -> None:
    """In a process of its own: a kernel into the disk cache. What goes wrong comes up again where it is measured."""
    from cfdsl.cli.build import kernel_for
    from cfdsl.errors import CfdslError

    asked, part, shape = job
    try:
        kernel_for(shaped(resolve(**{**asked, "part": part}), shape))
    except CfdslError:
        return


def tune_panel(record: dict[str, Any]) -> Any:
    """Where and how, a row per candidate with its estimate, and the options that name the fastest."""
    place, rows = record["environment"], record["rows"]
    lines = [
        f"{place['gpu']}, {place['sms']} SMs; torch {place['torch']}, CUDA {place['cuda']}; {place['date']}",
        "each in a CUDA graph, L2-cold, right against float64 before it is timed; * is what the cost model chooses",
        record["command"],
    ]
    made = table(
        "", "clusters", ">CTAs/SM", ">ring", ">in flight", ">estimated us", ">measured us", ">estimate off", ">GB/s", ">error", "",
        spare=("GB/s", "error", "in flight", "ring", "estimate off"),
    )  # fmt: skip
    for row in rows:
        first = ("[green]*[/green]" if row["chosen"] else "", shape_text(row["shape"]), str(row["shape"]["ctas_per_sm"]))
        if row["problem"]:
            made.add_row(*first, "", "", f"{row['estimate_us']:.1f}", "-", "", "", "", f"[red]{escape(row['problem'])}[/red]")
            continue
        off = f"{row['estimate_us'] / row['us'] - 1:+.0%}"
        numbers = (f"{row['estimate_us']:.1f}", f"{row['us']:.1f}", off, f"{row['gbps']:,.0f}", f"{row['relative_error']:.1e}")
        made.add_row(*first, str(row["stages"]), str(row["window"]), *numbers, "; ".join(row["flags"]))
    parts: list[Any] = [*(Text(line, "dim") for line in lines), Text(), made, Text(), Text(verdict(rows))]
    title = f"{record['fusion']}, {record['model']}, {record['dtype']}, {record['kv_len']:,} cached tokens"
    return panel(escape(title), *parts)


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far the chosen one is from the fastest, and how to ask for that."""
    right = [row for row in rows if not row["problem"]]
    if not right:
        return "None of them ran."
    best, chosen = right[0], next((row for row in right if row["chosen"]), None)
    if best is chosen:
        return f"The cost model's choice is the fastest of {plural(len(right), 'candidate')}."
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in best["shape"].items())
    behind = f", {chosen['us'] - best['us']:.1f} us faster than the cost model's choice" if chosen else ""
    return f"Fastest: {best['us']:.1f} us{behind}, with {flags}"
