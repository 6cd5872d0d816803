"""`bench collectives --plot`: time per exchange over payload, inside a kernel above and with the launch below, a column per operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfdsl.cli.files import writing
from cfdsl.cli.plot import COLORS
from cfdsl.cli.units import held

Points = list[tuple[int, float]]


def curves(rows: list[dict[str, Any]], operator: str, key: str) -> dict[tuple[int, bool], Points]:
    """(ranks, on chip) to points (payload, the shortest time of any algorithm), in the order of payloads.

    Wrong rows are not drawn, and neither are multicasts: their source is global memory.
    """
    from cfdsl.runtime.exchange_bench.cases import FROM_MEMORY

    found: dict[tuple[int, bool], dict[int, float]] = {}
    for row in rows:
        if row["error"] or row["operator"] != operator or row["algorithm"] in FROM_MEMORY:
            continue
        curve = found.setdefault((row["cluster"], row["on_chip"]), {})
        curve[row["payload"]] = min(row[key], curve.get(row["payload"], row[key]))
    return {name: sorted(points.items()) for name, points in sorted(found.items(), key=lambda item: (item[0][0], not item[0][1]))}


def plot_exchanges(record: dict[str, Any], path: Path) -> None:
    """Draw a record of `bench collectives` into `path`; the suffix says the format."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = record["rows"]
    operators = list(dict.fromkeys(row["operator"] for row in rows if not row["error"])) or ["none"]
    sizes = sorted({row["cluster"] for row in rows})
    colors = {cluster: COLORS[index % len(COLORS)] for index, cluster in enumerate(sizes)}
    figure = Figure(figsize=(max(6.5, 3.3 * len(operators) + 1.6), 7), dpi=160, layout="constrained")
    grid = figure.subplots(2, len(operators), sharex=True, sharey="row", squeeze=False)
    for column, operator in enumerate(operators):
        for axes, key in zip(grid[:, column], ("us", "launch_us"), strict=True):
            for (cluster, on_chip), points in curves(rows, operator, key).items():
                label = f"{cluster} ranks, {'DSMEM' if on_chip else 'through L2'}"
                style = {"linestyle": "-" if on_chip else (0, (4, 2)), "marker": "o" if on_chip else "x", "markersize": 4}
                axes.plot(*zip(*points, strict=True), color=colors[cluster], label=label, **style)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(color="#e3e8ee", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        grid[0, column].set_title(operator, loc="left", fontsize=10)
        draw_paper(grid[1, column], record, operator)
        ticks = sorted({row["payload"] for row in rows})
        for axes in grid[:, column]:
            axes.set_xticks(ticks, [held(tick) for tick in ticks], rotation=60, fontsize=7)
            axes.xaxis.minorticks_off()
        grid[1, column].set_xlabel("bytes of one rank")
    draw_floor(grid[0, :], record)
    grid[0, 0].set_ylabel("us per exchange inside a kernel")
    grid[1, 0].set_ylabel("us per launch with one exchange")
    place = record["environment"]
    title = f"Exchanges in a cluster, fastest algorithm each (no multicasts); {place['gpu']}, {place['date']}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    with writing("--plot", path):
        figure.savefig(path)


def draw_floor(axes: Any, record: dict[str, Any]) -> None:
    """One way of a push, across the upper row."""
    us = record["references"]["one_way_cycles"] / record["clock"]["ghz"] / 1e3
    for each in axes:
        each.axhline(us, color="#18212d", linestyle=(0, (1, 2)), linewidth=1.0, label="one way of a push")


def draw_paper(axes: Any, record: dict[str, Any], operator: str) -> None:
    """The paper's rows at the payload of the reading with equal counting."""
    lines = [row for row in record["paper"] if row["operator"] == operator and row["reading"] == "total"]
    for way, marker in (("on", "*"), ("off", "P")) if lines else ():
        points = [row["payload"] for row in lines], [row[f"paper_{way}_chip_us"] for row in lines]
        axes.plot(*points, marker, color="#b3261e", markersize=7, label=f"paper, {way} chip (4 ranks)")
