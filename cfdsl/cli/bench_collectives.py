"""`bench collectives`: what an exchange costs inside a kernel and with a launch, on the chip and through L2, beside the paper's table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cfdsl.cli.complaints import BadOption, NeedsGpu, OptionsConflict
from cfdsl.cli.exchange_tables import show
from cfdsl.cli.files import PLOTS, file_errors
from cfdsl.cli.measuring import JsonFile, PlotFile, command_line, deliver, json_errors, progress
from cfdsl.errors import CfdslError, raise_all

SIZES = (1, 2, 4, 8, 16)


def bench_collectives(
    cluster_sizes: Annotated[str | None, typer.Option("--cluster-sizes", help="Ranks per cluster: 2,4,8,16.", show_default=False)] = None,
    payloads: Annotated[str | None, typer.Option(help="Bytes of one rank: 4,512,16K.", show_default=False)] = None,
    ops: Annotated[
        str | None, typer.Option(help="sum, max, min, lse, reduce_scatter, gather, broadcast; comma-separated.", show_default=False)
    ] = None,
    algorithms: Annotated[
        str | None,
        typer.Option(
            help="chosen, all, push, bulk, scatter_gather, doubling, multicast, global; comma-separated. Without `global` there is "
            "nothing to say about when on-chip communication pays.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A dozen rows: one cluster size, two operators.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every size, operator and algorithm; takes long.")] = False,
    paper: Annotated[bool, typer.Option("--paper/--no-paper", help="Measure the rows of the paper's table too.")] = True,
    runs: Annotated[int, typer.Option(min=1, help="Launches whose outputs must be equal bit by bit.")] = 100,
    jobs: Annotated[
        int | None, typer.Option(min=0, help="Processes that compile ahead; one per core, at most 16.", show_default=False)
    ] = None,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds after which no further row is begun.")] = 480.0,
    json: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """Measure exchanges among the ranks of a cluster: inside a kernel, with the launch, on the chip and through L2.

    Every row is checked against float64 before it is timed. The exit status is 1 if a row is wrong.
    """
    from cfdsl.cli.gpu import gpu_part
    from cfdsl.runtime.exchange_bench.cases import grids

    if quick and full:
        raise OptionsConflict(option="--full", other="--quick", reason="one measures all, the other as little as possible")
    mistakes: list[CfdslError] = []
    axes = axes_of(cluster_sizes, payloads, ops, algorithms, mistakes)
    raise_all([*mistakes, *json_errors(json), *file_errors("--plot", plot, PLOTS)])
    part = gpu_part()
    if part is None:
        raise NeedsGpu(command="python -m cfdsl bench collectives")
    record = measured(part, grids("quick" if quick else "full" if full else "default", **axes), paper, runs, jobs, budget)
    deliver(record, json, lambda screen: show(screen, record))
    if plot is not None:
        from cfdsl.cli.plot_exchanges import plot_exchanges

        plot_exchanges(record, plot)
    if record["errors"]:
        raise typer.Exit(1)


def axes_of(
    cluster_sizes: str | None, payloads: str | None, ops: str | None, algorithms: str | None, mistakes: list[CfdslError]
) -> dict[str, tuple[Any, ...] | None]:
    """What was given of the axes of a grid (see `exchange_bench.cases.Grid`), None where nothing was; what is wrong goes to `mistakes`."""
    from cfdsl.runtime.exchange_bench.cases import ALGORITHMS, OPERATORS

    sizes, bytes_ = f"cluster sizes of {', '.join(map(str, SIZES))}", "multiples of 4 bytes, such as 4,512,16K"
    return {
        "cluster_sizes": numbers("--cluster-sizes", cluster_sizes, mistakes, lambda n: n in SIZES, sizes),
        "payloads": numbers("--payloads", payloads, mistakes, lambda n: n >= 4 and n % 4 == 0, bytes_),
        "operators": words("--ops", ops, mistakes, tuple(OPERATORS)),
        "algorithms": words("--algorithms", algorithms, mistakes, ALGORITHMS),
    }


def measured(part: Any, asked: Any, paper: bool, runs: int, jobs: int | None, budget: float) -> dict[str, Any]:
    """Compile and measure."""
    from cfdsl.runtime.exchange_bench.run import bench_collectives
    from cfdsl.runtime.jobs import default_jobs

    jobs = default_jobs() if jobs is None else jobs
    found = bench_collectives(part, asked, with_paper=paper, jobs=jobs, runs=runs, budget_s=budget, log=progress())
    return {"command": command_line(), **found}


def numbers(option: str, text: str | None, mistakes: list[CfdslError], fits: Any, expected: str) -> tuple[int, ...] | None:
    """`4,16K` as numbers; None if the option was not given, and where it is wrong one more mistake."""
    if text is None:
        return None
    try:
        found = tuple(dict.fromkeys(number(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(fits(value) for value in found):
        mistakes.append(BadOption(option=option, value=text, expected=expected))
        return None
    return found


def number(text: str) -> int:
    """`16K` is 16384."""
    text = text.strip().lower()
    return int(text[:-1]) << 10 if text.endswith("k") else int(text)


def words(option: str, text: str | None, mistakes: list[CfdslError], known: tuple[str, ...]) -> tuple[str, ...] | None:
    """`sum,gather` as names that are known; as `numbers`."""
    if text is None:
        return None
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(found) <= set(known):
        mistakes.append(BadOption(option=option, value=text, expected=f"names of {', '.join(known)}"))
        return None
    return found
