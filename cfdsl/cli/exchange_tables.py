"""The record of `bench collectives` as tables in panels: rows, the paper's table beside ours, the bars, and when it pays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cfdsl.cli.tables import panel, table
from cfdsl.cli.units import held, plural

COUNTING = (
    "cycles, us: one exchange inside a kernel, launch excluded: the SM clock cycles of a kernel that does many exchanges back to back, "
    "less those of one that does few, over the difference. Of a cluster its slowest rank; the median over clusters and launches.",
    "launch us: a launch with one exchange, as one of 200 in a CUDA graph, with programmatic dependent launch. Buffers stay in L2.",
    "payload: bytes of x on one rank (lse: of o; m and l are 8 bytes per head more). As many clusters as the GPU holds at one CTA per SM.",
    "B/clk/SM: bytes that a rank pushes per cycle, or where it pushes none, moves to and from device memory. GB/s: of one SM, and of all "
    "that send. of push: over the push bandwidth in this run. x floor: cycles over those of one way of a push and the pushed bytes at the "
    "fastest known rate. * is what the cost model chooses.",
)
PAPER_NOTE = (
    "Table 1 of arXiv 2508.18850, launch included; its set-up is not documented. Read here as: total data of 32 clusters of 4, one launch "
    "each. So 32 KB are 256 B per CTA, and 256 KB are 2 KB. Ours is counted alike: 32 clusters of 4, f16, a launch in a CUDA graph of "
    "many, with programmatic dependent launch. The other reading, size per cluster, has no bar. The paper's GPU is an H100; ours is the "
    "one named above.",
)
READING = {"total": "total data", "cluster": "per cluster"}
PAYS_NOTE = (
    "Cycles inside a kernel, the fastest way on the chip against the one through global memory; ends are measured payloads. For values "
    "that CTAs have computed: a multicast, whose source is global memory, does not count."
)
VERDICTS = {
    "wins": ("[green]DSMEM wins[/green]", "on chip"),
    "even": ("even, within 5 %", "either"),
    "loses": ("[yellow]L2 wins[/yellow]", "off chip"),
    "off chip": ("L2 is chosen, nothing on chip measured", "off chip"),
}


def show(screen: Console, record: dict[str, Any]) -> None:
    """Print everything."""
    screen.print(rows_panel(record))
    if record["paper"]:
        screen.print(paper_panel(record["paper"]))
    screen.print(pays_panel(record["pays"]))
    screen.print(bars_panel(record["bars"]))


def dim(lines: Iterable[str]) -> list[Text]:
    """Notes."""
    return [Text(line, "dim") for line in lines]


def rows_panel(record: dict[str, Any]) -> Any:
    """Where and how it was measured, the references, a row per exchange, and what failed or was left out."""
    place, clock, known = record["environment"], record["clock"], record["references"]
    low, high = known["push_b_per_clk"]
    lines = [
        f"{place['gpu']}, {place['sms']} SMs; torch {place['torch']}, CUDA {place['cuda']}; {place['date']}",
        f"SM clock {clock['ghz']:.3f} GHz, measured in this run ({clock['ghz_after']:.3f} at its end); {record['seconds']:.0f} s, "
        f"{record['compiled_s']:.0f} of them compiling",
        f"references: {known['one_way_cycles']} cycles one way, {low:.0f} to {high:.0f} B/clk/SM push ({known['source']})",
        *(push_line(cluster, push) for cluster, push in record["push"].items()),
        record["command"],
        "",
        *COUNTING,
    ]
    notes = [f"left out: {text}" for text in record["left_out"]]
    if abs(clock["ghz_after"] / clock["ghz"] - 1) > 0.02:
        notes.append("the SM clock changed by more than 2 % during the run: cycles hold, times inside a kernel are as uncertain as it is")
    wrong = [f"{name_of(row)}: {row['error']}" for row in record["rows"] if row["error"]]
    wrong += [f"beside the paper, {row['operator']} of {held(row['size'])}: {row['error']}" for row in record["paper"] if row["error"]]
    title = f"Exchanges: {plural(len(record['rows']), 'row')}, each checked against float64, {plural(record['runs'], 'run')} bitwise equal"
    return panel(
        title, *dim(lines), Text(), rows_table(record["rows"]), *(Text(note, "yellow") for note in notes),
        *(Text(f"WRONG: {text}", "bold red") for text in wrong),
    )  # fmt: skip


def push_line(cluster: int, push: dict[str, Any]) -> str:
    """The push bandwidth of one cluster size."""
    text = f"push bandwidth in this run, {cluster} ranks: {push['b_per_clk']:.1f} B/clk/SM, {push['gbps_per_sm']:.1f} GB/s per SM "
    text += f"({push['operator']} of {held(push['payload'])}"
    return text + (f"; {push['marginal']:.1f} B/clk/SM between the two largest gathers)" if push["marginal"] else ")")


def name_of(row: dict[str, Any]) -> str:
    """Which row."""
    return f"{row['operator']} of {held(row['payload'])} over {row['cluster']}, {row['algorithm']}"


def rows_table(rows: list[dict[str, Any]]) -> Table:
    """A row per exchange."""
    made = table(
        "op", ">ranks", ">payload", "algorithm", ">cycles", ">us", ">launch us", ">B/clk/SM", ">GB/s SM", ">GB/s all", ">of push",
        ">x floor", ">error",
    )  # fmt: skip
    for row in rows:
        algorithm = f"{row['algorithm']}{' *' if row['chosen'] else ''}"
        first = (row["operator"], str(row["cluster"]), held(row["payload"]), escape(algorithm))
        if row["error"]:
            made.add_row(*first, *("-" for _ in range(8)), "WRONG", style="bold red")
            continue
        made.add_row(
            *first, f"{row['cycles']:,.0f}", f"{row['us']:.3f}", f"{row['launch_us']:.2f}", f"{row['b_per_clk']:.2f}",
            f"{row['gbps_per_sm']:.1f}", f"{row['gbps_total']:,.0f}", "" if row["of_push"] is None else f"{row['of_push']:.0%}",
            "" if row["floor_cycles"] is None else f"{row['cycles'] / row['floor_cycles']:.2f}", f"{row['relative_error']:.0e}",
            style="" if row["on_chip"] else "cyan",
        )  # fmt: skip
    return made


def paper_panel(rows: list[dict[str, Any]]) -> Any:
    """The paper's table beside ours, by both readings of its sizes."""
    made = table(
        "size is", "op", ">size", ">per CTA", ">paper on chip", ">ours on chip", "", ">faster by", ">paper off chip", ">ours off chip"
    )
    for row in rows:
        made.add_row(
            READING[row["reading"]], row["operator"], held(row["size"]), held(row["payload"]), f"{row['paper_on_chip_us']:.2f}",
            us(row["us"]), row["algorithm"] or "", f"{row['speedup']:.2f}x" if row["speedup"] else "-", f"{row['paper_off_chip_us']:.2f}",
            us(row["off_chip_us"]),
        )  # fmt: skip
    return panel("Beside the paper, us per launch", *dim(PAPER_NOTE), Text(), made)


def us(value: float | None) -> str:
    """Two decimals, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def pays_panel(rows: list[dict[str, Any]]) -> Any:
    """For each operator and cluster size, where DSMEM beats the way through L2 inside a kernel."""
    made = table("op", ">ranks", ">payload per rank", "verdict", ">L2's cycles / DSMEM's", "fastest on chip")
    for entry in rows:
        for part in entry["ranges"]:
            low, high = part["payloads"]
            ratio = "-" if part["speedup"] is None else span(*(f"{value:.2f}" for value in part["speedup"]))
            made.add_row(
                entry["operator"], str(entry["cluster"]), span(held(low), held(high)), VERDICTS[part["verdict"]][0], ratio,
                ", ".join(part["algorithms"]),
            )  # fmt: skip
    lines = [PAYS_NOTE]
    if not rows:
        lines.append("Nothing was measured both on the chip and off it.")
    return panel("When does on-chip communication pay", *dim(lines), Text(), made)


def span(low: str, high: str) -> str:
    """`4 B to 2 KB`, or the one value."""
    return low if low == high else f"{low} to {high}"


def bars_panel(rows: list[dict[str, Any]]) -> Any:
    """Met, missed, or not to be told from this run."""
    made = table("", "bar", "wanted", "measured")
    for row in rows:
        mark = {True: "[green]met[/green]", False: "[bold red]MISSED[/bold red]", None: "[yellow]not told[/yellow]"}[row["met"]]
        made.add_row(mark, escape(row["name"]), escape(row["wanted"]), escape(row["got"]))
    return panel("Bars", made)
