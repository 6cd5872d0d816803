"""The records of `report` as rich tables in panels, for a terminal or a log of 120 columns."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cfdsl.cli.report import TIMES, groups_text, refusals, shape_text
from cfdsl.cli.tables import panel, table
from cfdsl.cli.units import held, percent, plural, size, trim

EXCHANGE = {"cluster": "magenta", "grid": "cyan"}
TOP = 8


def header(record: dict[str, Any], note: str) -> Panel:
    """What is compiled, for what."""
    options = "  ".join(f"{name}={value}" for name, value in record["options"].items())
    line = Text.assemble((record["fusion"], "bold"), f"  {record['model']}, {record['dtype']}, batch {record['batch']}")
    if options:
        line.append(f"   {options}", "dim")
    style = "yellow" if record["part"]["from"] in ("default", "fallback") else ""
    return panel("cfdsl", line, Text(note, style))


def graph_panel(record: dict[str, Any]) -> Panel:
    """Leaves in a paragraph per kind; then a row per op, exchanges in the colour of their scope."""
    mesh = record["mesh"]
    leaves = Table.grid(padding=(0, 2, 0, 0))
    for kind, title in (("input", "inputs"), ("weight", "weights"), ("kv_cache", "caches")):
        found = [f"{leaf['name']} [dim]{escape(leaf['type'])}[/dim]" for leaf in record["leaves"] if leaf["kind"] == kind]
        if found:
            leaves.add_row(f"[bold]{title}[/bold]", ", ".join(found))
    axes = "[grid, cluster, splits]" if mesh["splits"] > 1 else "[grid, cluster]"
    ops = table("value", "op", "type", axes, "line", spare=("type", "line"))
    for op in record["ops"]:
        color = EXCHANGE["grid" if op["op"].startswith("grid") else "cluster"] if op["exchange"] else ""
        call = f"{op['op']}({', '.join(op['args'])})"
        file, _, line = op["line"].rpartition(":")
        ops.add_row(op["name"], escape(call), escape(op["type"]), escape(op["placement"]), f"{file.rsplit('/', 1)[-1]}:{line}", style=color)
    clusters = plural(mesh["clusters"], "cluster") + groups_text(mesh["clusters"], mesh["splits"])
    title = f"Placed graph: {clusters} of {plural(mesh['ranks'], 'rank')}"
    return panel(title, leaves, Text(), ops)


def config_panel(config: dict[str, Any], choice: dict[str, Any]) -> Panel:
    """The chosen schedule, why, and the best of the others."""
    ring = config["ring"]
    in_ring = "no ring"
    if ring:
        in_ring = f"ring {ring['stages']} x {held(ring['stage_bytes'])} = {held(ring['bytes'])}, {plural(ring['window'], 'tile')} in flight"
        in_ring += f", {ring['early']} of them behind a grid barrier to come" if ring["early"] else ""
    flags = [name for name in ("pdl", "multicast", "evict_first", "stamp_cluster") if config[name]]
    clusters = f"{plural(config['clusters'], 'cluster')}{groups_text(config['clusters'], config['splits'])} of {config['cluster_size']}"
    facts = (
        f"[bold]{clusters} = {plural(config['ctas'], 'CTA')}[/bold], "
        f"{config['threads']} threads ({config['warps']} consumer warps), {in_ring}, "
        f"{held(config['smem_bytes'])} shared memory per CTA, room for {plural(config['ctas_per_sm'], 'CTA')} per SM; "
        f"{', '.join(flags) or 'no flags'}"
    )
    parts: list[RenderableType] = [Text.from_markup(facts), Text(choice["why"]), Text(), candidates(choice["fit"][:TOP])]
    rest = len(choice["fit"]) - TOP
    summary = [f"and {plural(rest, 'other')} that fit"] if rest > 0 else []
    if choice["refused"]:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in refusals(choice["refused"]))
        summary.append(f"{plural(len(choice['refused']), 'config')} refused: {kinds}")
    if summary:
        parts.append(Text("; ".join(summary) + ". `explain` lists all.", "dim"))
    return panel("Config", *parts)


def candidates(rows: list[dict[str, Any]]) -> Table:
    """Configs with their estimated times; the chosen one marked. Shared memory is estimated too: only a plan knows it to the byte."""
    made = table(
        "", "clusters", ">units each", ">CTAs/SM", "ring", ">smem, est.", ">warps", ">waves", ">us",
        *(f">{name[:-3]}" for name in TIMES[1:]), spare=("warps", "waves", "units each", "ring", "smem, est.", "CTAs/SM"),
    )  # fmt: skip
    for row in rows:
        c = row["config"]
        units, times = row["units_per_cluster"], (f"{row[name]:.1f}" for name in TIMES)
        cells = (
            "[green]*[/green]" if row["chosen"] else "",
            shape_text(c),
            "-" if units is None else trim(units, 3),
            str(c["ctas_per_sm"]),
            f"{c['stages']} x {held(c['stage_bytes'])}" if (row["smem_bytes"] or 0) > c["stage_bytes"] else "-",
            held(row["smem_bytes"] or 0),
            str(c["warps"]),
            str(row["waves"]),
        )
        made.add_row(*cells, *times, style="bold" if row["chosen"] else "")
    return made


def refused_table(rows: list[dict[str, Any]]) -> Table:
    """Configs that cannot run, with every reason."""
    made = table("clusters", ">stages", ">warps", ">CTAs/SM", "refused because", spare=("warps", "stages"))
    for row in rows:
        c = row["config"]
        numbers = (shape_text(c), c["stages"], c["warps"], c["ctas_per_sm"])
        made.add_row(*(str(number) for number in numbers), escape("\n".join(row["refused"])))
    return made


def traffic_panel(record: dict[str, Any], kv_len: int | None) -> Panel:
    """Bytes by scope beside the estimated time; kv_len: cached tokens, None for a fusion without a cache."""
    bytes_ = table("bytes of one launch", ">", "")
    kinds = (("weights", "weights"), ("KV read", "kv_read"), ("KV written", "kv_write"), ("inputs", "inputs"), ("outputs", "outputs"))
    detail = ", ".join(f"{name} {size(record[key])}" for name, key in kinds if record[key])
    bytes_.add_row("device memory, once each", size(record["hbm_bytes"]), detail)
    bytes_.add_row(
        "loads of all CTAs, via L2", size(record["l2_bytes"]), f"{percent(record['l2_bytes'], record['hbm_bytes'])} of the above"
    )
    for scope, name, key in (("cluster", "cluster exchanges, DSMEM", "dsmem_bytes"), ("grid", "grid exchanges, via L2", "grid_bytes")):
        calls: dict[tuple[str, str], int] = {}  # of a call, all rounds together
        for row in (row for row in record["exchanges"] if row["scope"] == scope):
            calls[row["op"], row["line"]] = calls.get((row["op"], row["line"]), 0) + row["bytes"]
        bytes_.add_row(name, size(record[key]), ", ".join(f"{op} {size(n)}" for (op, _), n in calls.items()), style=EXCHANGE[scope])
    memory = f"memory's time [bold]{record['memory_us']:.1f} us[/bold] at {trim(record['hbm_gbps'])} GB/s"
    estimate = record["estimate_us"]
    if estimate:
        parts = ", ".join(f"{name[:-3]} {estimate[name]:.1f}" for name in TIMES[1:])
        memory += f"; estimated [bold]{estimate['time_us']:.1f} us[/bold] ({parts})"
    title = "Traffic and time" if kv_len is None else f"Traffic and time, {kv_len:,} cached tokens"
    return panel(title, bytes_, Text(), Text.from_markup(memory))


def oracle_panel(record: dict[str, Any] | None, left_out: str | None) -> Panel:
    """The check of the placed graph against the plain PyTorch reference, or why there is none."""
    if record is None:
        return panel("Oracle against the PyTorch reference", Text(f"left out: {left_out}.", "yellow"))
    verdict = "[green]agrees[/green]" if record["ok"] else "[bold red]DISAGREES[/bold red]"
    errors = ", ".join(f"{name} {error:.1e}" for name, error in record["errors"].items())
    line = f"{verdict}: relative error {record['relative_error']:.1e} (at most {record['tolerance']:.0e} allowed) in {record['dtype']}"
    return panel("Oracle against the PyTorch reference", Text.from_markup(f"{line}: {errors}"), Text(record["note"], "dim"))


def kernel_panel(record: dict[str, Any]) -> Panel:
    """Compile time, what ptxas says, where the files are."""
    spills = record["spills"]
    spilled = "unknown" if spills is None else "none" if not spills else f"[red]{spills} bytes[/red]"
    took = "loaded from the cache" if record["cached"] else "compiled"
    before = f" (compiling took {record['compile_seconds']:.2f} s)" if record["cached"] else ""
    line = f"{took} in [bold]{record['seconds']:.2f} s[/bold]{before}; {record['registers'] or '?'} registers, spills {spilled}, "
    files = Table.grid(padding=(0, 2, 0, 0))
    for name, path in record["files"].items():
        files.add_row(f"[bold]{name}[/bold]", escape(str(path)) if path else "[dim]not made[/dim]")
    return panel("Kernel", Text.from_markup(line + f"{held(record['smem_bytes'])} shared memory per CTA"), files)


def gpu_panel(record: dict[str, Any] | None, left_out: str | None) -> Panel:
    """The run on the GPU, or why there was none."""
    if record is None:
        return panel("On the GPU", Text(f"not run: {left_out}.", "dim"))
    error = f"relative error {record['relative_error']:.1e} against float64"
    line = f"{record['gpu']}: [bold]{record['us']:.1f} us[/bold], {record['gbps']:.0f} GB/s; {error}"
    return panel("On the GPU", Text.from_markup(line), Text(record["note"], "dim"))
