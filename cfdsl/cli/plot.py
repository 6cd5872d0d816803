"""`bench --plot`: times over KV lengths as grouped bars, with the memory's time as a line across each group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfdsl.cli.files import writing

COLORS = ("#2f6fde", "#93a7bd", "#e08a2c", "#c9a227", "#3a9d6e")


def series(record: dict[str, Any]) -> dict[str, list[float | None]]:
    """Times by name, one per KV length; of several variants of a peer the fastest; None where it was left out."""
    found: dict[str, list[float | None]] = {"cfdsl": [row["us"] for row in record["rows"]]}
    names = dict.fromkeys(peer["name"] for row in record["rows"] for peer in row["peers"])
    for name in names:
        per_row = [[peer["us"] for peer in row["peers"] if peer["name"] == name] for row in record["rows"]]
        found[name] = [min(times, default=None) for times in per_row]
    return found


def plot_times(record: dict[str, Any], path: Path) -> None:
    """Draw a bench record into `path`; the suffix says the format."""
    from matplotlib.figure import Figure

    found, rows = series(record), record["rows"]
    figure = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(found)
    for index, (name, times) in enumerate(found.items()):
        at = [row - 0.4 + width * (index + 0.5) for row in range(len(rows))]
        bars = axes.bar(at, [time or 0 for time in times], width * 0.92, label=name, color=COLORS[index % len(COLORS)])
        axes.bar_label(bars, [f"{time:.1f}" if time else "" for time in times], fontsize=8, padding=2)
    for index, row in enumerate(rows):
        label = f"memory's time at {record['ceiling']['gbps']:,.0f} GB/s" if index == 0 else "_again"
        axes.hlines(row["memory_us"], index - 0.44, index + 0.44, colors="#18212d", linestyles=(0, (4, 2)), linewidth=1.2, label=label)
    axes.set_xticks(range(len(rows)), [f"{row['kv_len']:,}" if record.get("cached", True) else "" for row in rows])
    axes.set_xlabel("cached tokens" if record.get("cached", True) else "")
    axes.set_ylabel("us per launch, L2-cold, CUDA graph")
    place = record["environment"]
    title = f"{record['fusion']}, {record['model']}, {record['dtype']}, batch {record['batch']}\n{place['gpu']}, {place['date']}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with writing("--plot", path):
        figure.savefig(path)
