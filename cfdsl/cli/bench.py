"""`bench`: the kernel's time, its share of the memory's read ceiling, its error, and torch's times for the same block."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cfdsl.cli.companions import companion_errors
from cfdsl.cli.complaints import NeedsGpu
from cfdsl.cli.console import console
from cfdsl.cli.files import PLOTS, file_errors
from cfdsl.cli.measuring import JsonFile, PlotFile, command_line, deliver, is_stdout, json_errors, parse_lengths, progress
from cfdsl.cli.report import config_record, request_record
from cfdsl.cli.request import Request, takes_request
from cfdsl.cli.tables import panel, table
from cfdsl.cli.units import held, plural
from cfdsl.errors import raise_all


class BenchCommand(typer.core.TyperCommand):
    """`bench FUSION ...`; what is measured otherwise is a command with other options, parsed where it is named first."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """The context of the one or the other."""
        if args[:1] and args[0] in OTHERS:
            return other_command(args[0]).make_context(f"{info_name} {args[0]}", args[1:], *rest, **extra)
        return super().make_context(info_name, args, *rest, **extra)


# `bench NAME`: the module whose function `bench_NAME` it is
OTHERS = {"collectives": "cfdsl.cli.bench_collectives", "decode": "cfdsl.cli.bench_decode"}


def other_command(name: str) -> Any:
    """`bench collectives` or `bench decode` as a command of its own."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(name)(getattr(import_module(OTHERS[name]), f"bench_{name}"))
    return typer.main.get_command(app)


@takes_request("kv_len")
def bench(
    request: Request,
    kv_len: Annotated[str, typer.Option("--kv-len", help="Cached tokens, several separated by commas.")] = "1024,4096,16384",
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure torch eager and torch.compile too.")] = True,
    runs: Annotated[int, typer.Option(min=1, help="Launches whose outputs must be equal bit by bit.")] = 1000,
    budget: Annotated[float, typer.Option(help="Seconds after which no further peer is begun.")] = 300.0,
    json: JsonFile = None,
    plot: PlotFile = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Write when each stage ran here, for Perfetto (at the longest KV length).", show_default=False),
    ] = None,
) -> None:
    """Measure a kernel on the GPU at hand, L2-cold and under CUDA graphs, beside torch.

    `bench collectives` measures exchanges instead, and `bench decode` whole decode steps of a model; they have options of their own:
    `bench collectives --help`, `bench decode --help`.
    """
    from cfdsl.cli.gpu import gpu_part

    kv_lens = parse_lengths(kv_len)
    files = [*json_errors(json), *file_errors("--plot", plot, PLOTS), *file_errors("--trace", trace)]
    raise_all([*companion_errors(request.fusion), *files])
    if gpu_part() is None:
        raise NeedsGpu(command="python -m cfdsl bench")
    record = measured(request, kv_lens, peers, runs, budget)
    deliver(record, json, lambda screen: screen.print(bench_panel(record)))
    if plot is not None:
        from cfdsl.cli.plot import plot_times

        plot_times(record, plot)
    if trace is not None:
        from cfdsl.cli.traced import trace_bench

        trace_bench(request, max(kv_lens), trace, console(stderr=is_stdout(json)))


def measured(request: Request, kv_lens: list[int], peers: bool, runs: int, budget: float) -> dict[str, Any]:
    """Compile and measure."""
    from cfdsl.cli.build import kernel_for
    from cfdsl.runtime.benchmark import benchmark

    kernel = kernel_for(request)
    cached = any(arg.role == "cache" for arg in kernel.args)
    if not cached:
        kv_lens = [0]  # one row: the number of cached tokens means nothing to this fusion
    found = benchmark(
        request.fusion, request.model, kernel, kv_lens, request.options, peers=peers, runs=runs, budget_s=budget, log=progress()
    )
    asked = {**request_record(request), "kv_lens": kv_lens, "cached": cached}
    asked.pop("kv_len")
    build = {"registers": kernel.registers, "spills": kernel.spills, "kernel": kernel.name}
    return {**asked, "config": config_record(kernel.config, kernel.plan), **build, "command": command_line(), **found}


def bench_panel(record: dict[str, Any]) -> Any:
    """The record as a table, with where and how it was measured above it."""
    place, ceiling, config = record["environment"], record["ceiling"], record["config"]
    title = f"{record['fusion']}, {record['model']}, {record['dtype']}, batch {record['batch']}"
    shape = f"{plural(config['clusters'], 'cluster')} of {config['cluster_size']}, {held(config['smem_bytes'])} shared memory"
    pdl, l2 = "on" if config["pdl"] else "off", "cold" if record["cold"] else "NOT cold"
    lines = [
        f"{place['gpu']}, {place['sms']} SMs; torch {place['torch']}, CUDA {place['cuda']}; {place['date']}",
        f"{shape}, pdl {pdl}; {record['registers']} registers",
        f"host: {record['host_us']:.1f} us per eager call; with weights and caches bound (kernel.bind) {record['step_us']:.1f}, "
        f"with all {record['bound_us']:.1f}; torch's x.add_(0) {record['torch_op_us']:.1f}",
        f"read ceiling {ceiling['gbps']:,.0f} GB/s ({ceiling['how']}); {record['sets']} sets of tensors in turn, L2 {l2}",
        record["command"],
    ]
    notes = [f"left out: {text}" for text in record["peers_left_out"]]
    notes += [
        f"at {row['kv_len']:,}: {row['different_runs']} of {row['runs']} launches differ" for row in record["rows"] if row["different_runs"]
    ]
    notes += [f"at {row['kv_len']:,}: {flag}" for row in record["rows"] for flag in row["flags"]]
    return panel(
        escape(title), *(Text(line, "dim") for line in lines), Text(), rows_table(record), *(Text(note, "yellow") for note in notes)
    )


def rows_table(record: dict[str, Any]) -> Table:
    """A row per KV length and a further one per peer."""
    made = table(
        ">KV length", "what", ">us", ">GB/s", ">of ceiling", ">memory's us", ">error", "runs", ">ours is faster by",
        spare=("memory's us", "GB/s", "runs", "error"),
    )  # fmt: skip
    for row in record["rows"]:
        same = f"{row['runs']} equal" if not row["different_runs"] else f"[red]{row['different_runs']} differ[/red]"
        ours = (
            f"{row['us']:.1f}",
            f"{row['gbps']:,.0f}",
            f"{row['of_ceiling']:.1%}",
            f"{row['memory_us']:.1f}",
            f"{row['relative_error']:.1e}",
            same,
        )
        made.add_row(f"{row['kv_len']:,}" if record.get("cached", True) else "-", "cfdsl", *ours, "", style="bold")
        for peer in row["peers"]:
            gbps = row["bytes"] / peer["us"] / 1e3
            times = (
                f"{peer['us']:.1f}",
                f"{gbps:,.0f}",
                f"{gbps / record['ceiling']['gbps']:.1%}",
                "",
                f"{peer['relative_error']:.1e}",
                "",
            )
            made.add_row("", f"{peer['name']}, {peer['variant']}", *times, f"{peer['speedup']:.2f}x")
    return made
