"""What follows from the rows: the push bandwidth, the table beside the paper's, the bars, and when on-chip communication pays.

Pure arithmetic on the records that `run` makes; rows with an `error` are evidence of nothing and are left out everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from cfdsl.compiler.parts import Part
from cfdsl.runtime.exchange_bench.cases import FROM_MEMORY, OPERATORS
from cfdsl.runtime.exchange_bench.paper import READINGS, PaperRow

Row = dict[str, Any]

FASTEST_PUSH = 19.0  # B/clk/SM: the upper end of what `Timing.push_bytes_per_clk` in compiler/parts.py cites, 16 to 19
EVEN = 0.05  # on chip and off chip within 5 % of each other are called even
LARGE_GATHER = 4096  # bytes per rank from which a gather counts as large

BAR_PAPER, BAR_FLOAT, BAR_512, BAR_GATHER = 2.0, 350.0, 600.0, 0.85


def references(part: Part) -> dict[str, Any]:
    """The physical references, and where they come from."""
    return {
        "one_way_cycles": part.timing.st_async_cycles,
        "push_b_per_clk": [part.timing.push_bytes_per_clk, FASTEST_PUSH],
        "source": "Timing in cfdsl/compiler/parts.py: measured on one H100 80GB HBM3, 2026-11",
    }


def sound(rows: Iterable[Row]) -> list[Row]:
    """Rows that are right and have a time inside a kernel."""
    return [row for row in rows if not row["error"] and "cycles" in row]


def push_bandwidth(rows: Sequence[Row]) -> dict[int, dict[str, Any]]:
    """For each cluster size the push bandwidth that this run measured, per SM, while all SMs push at once.

    b_per_clk     of the fastest row by "push" among each operator's largest payload (broadcasts are left out: there one rank sends)
    marginal      the bytes between a gather's two largest payloads by "push" over the cycles between them: without what is fixed; or None
    """
    found = {}
    pushes = [row for row in sound(rows) if row["algorithm"] == "push" and row["bytes_pushed"] and row["senders"] > 1]
    for cluster in sorted({row["cluster"] for row in pushes}):
        mine = sorted((row for row in pushes if row["cluster"] == cluster), key=lambda row: int(row["bytes_pushed"]))
        largest = {row["operator"]: row for row in mine}
        best = max(largest.values(), key=lambda row: float(row["b_per_clk"]))
        found[cluster] = {name: best[name] for name in ("b_per_clk", "gbps_per_sm", "operator", "payload")}
        found[cluster]["marginal"] = marginal([row for row in mine if row["operator"] == "gather"])
    return found


def marginal(rows: Sequence[Row]) -> float | None:
    """Bytes per cycle between the last two rows."""
    if len(rows) < 2 or rows[-1]["cycles"] <= rows[-2]["cycles"]:
        return None
    return float((rows[-1]["bytes_pushed"] - rows[-2]["bytes_pushed"]) / (rows[-1]["cycles"] - rows[-2]["cycles"]))


def with_share_of_push(rows: Sequence[Row], push: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """The rows, each with `of_push`: its rate over the push bandwidth of its cluster size, where it pushes."""
    good = {id(row) for row in sound(rows)}

    def share(row: Row) -> float | None:
        known = id(row) in good and row["bytes_pushed"] and row["cluster"] in push
        return row["b_per_clk"] / push[row["cluster"]]["b_per_clk"] if known else None

    return [{**row, "of_push": share(row)} for row in rows]


def chosen(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """The row of the chosen algorithm among those that agree with `wanted`; if that was not measured, the fastest one on the chip."""
    fits = [row for row in sound(rows) if all(row[name] == value for name, value in wanted.items())]
    picked = [row for row in fits if row["chosen"]] or [row for row in fits if row["on_chip"]]
    return min(picked, key=lambda row: float(row["cycles"]), default=None)


def failure(rows: Iterable[Row], **wanted: Any) -> str | None:
    """What was wrong with the chosen algorithm's row among those that agree with `wanted`: another one's time does not stand in for it."""
    fits = (row for row in rows if row["chosen"] and all(row[name] == value for name, value in wanted.items()))
    return next((row["error"] for row in fits if row["error"]), None)


# ---- the paper's table ---------------------------------------------------------------------------------------------------------------


def paper_table(measured: Mapping[tuple[str, PaperRow], Sequence[Row]]) -> list[dict[str, Any]]:
    """Its rows beside ours, launches included: `us` and `algorithm` of ours on chip, `off_chip_us` through global memory, `speedup`.

    Ours are None where there is no right row (`error` says why, if one failed).
    """
    table = []
    for (reading, line), rows in measured.items():
        right = [row for row in rows if not row["error"]]
        on = min((row for row in right if row["on_chip"]), key=lambda row: float(row["launch_us"]), default=None)
        off = min((row for row in right if not row["on_chip"]), key=lambda row: float(row["launch_us"]), default=None)
        table.append(
            {
                "reading": reading, "counted": READINGS[reading], "operator": line.operator, "size": line.size,
                "payload": line.payload(reading), "paper_on_chip_us": line.on_chip_us, "paper_off_chip_us": line.off_chip_us,
                "algorithm": on["algorithm"] if on else None, "us": on["launch_us"] if on else None,
                "off_chip_us": off["launch_us"] if off else None, "speedup": line.on_chip_us / on["launch_us"] if on else None,
                "error": "; ".join(row["error"] for row in rows if row["error"]) or None,
            }
        )  # fmt: skip
    return table


# ---- bars ----------------------------------------------------------------------------------------------------------------------------


def bar(name: str, wanted: str, got: str, met: bool | None) -> dict[str, Any]:
    """met None: there is no row that could tell."""
    return {"name": name, "wanted": wanted, "got": got, "met": met}


def bars(rows: Sequence[Row], table: Sequence[Mapping[str, Any]], push: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each bar with the number that was measured, and whether it is met."""
    against = [paper_bar(line) for line in table if line["reading"] == "total"]
    alone = [cycles_bar(rows, "one float", 4, BAR_FLOAT), cycles_bar(rows, "512 bytes", 512, BAR_512)]
    return [*against, *alone, *gather_bars(rows, push)]


def paper_bar(line: Mapping[str, Any]) -> dict[str, Any]:
    """At least twice as fast as the paper's row on the chip, at equal counting."""
    name = f"{'reduce' if line['operator'] == 'sum' else line['operator']} of {line['size'] >> 10} KB, with a launch"
    wanted = f"{BAR_PAPER:.0f}x as fast as {line['paper_on_chip_us']:.2f} us"
    if line["us"] is None:
        return bar(name, wanted, line["error"] or "not measured", None)
    return bar(name, wanted, f"{line['us']:.2f} us: {line['speedup']:.2f}x ({line['algorithm']})", line["speedup"] >= BAR_PAPER)


def cycles_bar(rows: Sequence[Row], what: str, payload: int, limit: float) -> dict[str, Any]:
    """An all-reduce over 4 ranks, inside a kernel."""
    name, wanted = f"all-reduce of {what} over 4, in a kernel", f"at most {limit:.0f} cycles"
    exchange = {"operator": "sum", "cluster": 4, "payload": payload}
    row, failed = chosen(rows, **exchange), failure(rows, **exchange)
    if row is None or failed:
        return bar(name, wanted, failed or "not measured", None)
    return bar(name, wanted, f"{row['cycles']:.0f} cycles ({row['algorithm']})", row["cycles"] <= limit)


def gather_bars(rows: Sequence[Row], push: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The largest gather over each cluster size, by the chosen algorithm, against the push bandwidth of that size in this run."""
    found = []
    gathers = [row for row in sound(rows) if row["operator"] == "gather" and row["cluster"] > 1 and row["payload"] >= LARGE_GATHER]
    for cluster in sorted({row["cluster"] for row in gathers if row["on_chip"] and row["bytes_pushed"]}):
        largest = max(row["payload"] for row in gathers if row["cluster"] == cluster and row["on_chip"] and row["bytes_pushed"])
        row = chosen(gathers, cluster=cluster, payload=largest)
        failed = failure(rows, operator="gather", cluster=cluster, payload=largest)
        found.append(gather_bar(row, f"gather of {largest:,} B over {cluster}", failed, push.get(cluster)))
        if row is not None and row["algorithm"] in FROM_MEMORY:
            held = chosen((other for other in gathers if other["algorithm"] not in FROM_MEMORY), cluster=cluster, payload=largest)
            found.append(gather_bar(held, f"the same, from shared memory over {cluster}", None, push.get(cluster)))
    return found or [bar("large gathers", f"{BAR_GATHER:.0%} of this run's push", "not measured", None)]


def gather_bar(row: Row | None, name: str, failed: str | None, reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """One gather; the share of what a further byte costs between the largest gathers, without latency, is told beside it."""
    wanted = f"{BAR_GATHER:.0%} of this run's push"
    if row is None or failed or reference is None:
        return bar(name, wanted, failed or ("not measured" if row is None else "no push was measured at this cluster size"), None)
    itself = (row["algorithm"], row["operator"], row["payload"]) == ("push", reference["operator"], reference["payload"])
    source = "which is this row" if itself else f"{reference['operator']} of {reference['payload']:,} B"
    share = row["b_per_clk"] / reference["b_per_clk"]
    got = f"{share:.0%}: {row['b_per_clk']:.1f} of {reference['b_per_clk']:.1f} B/clk/SM ({row['algorithm']}; {source})"
    if reference["marginal"]:
        got += f"; {row['b_per_clk'] / reference['marginal']:.0%} of {reference['marginal']:.1f} without latency"
    return bar(name, wanted, got, share >= BAR_GATHER)


# ---- when does on-chip communication pay ---------------------------------------------------------------------------------------------


def when_it_pays(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each operator and cluster size: payload ranges, ends included, in which the chip's own way beats the one through L2.

    Each payload compares the fastest algorithm on the chip with "global", by the cycles inside a kernel; what a CTA has computed cannot be
    multicast, so that does not count. Neighbouring payloads with one
    verdict are a range: "wins", "loses", "even" (within 5 %), or "off chip": "global" was chosen, and nothing on the chip measured.
    speedup: the lowest and highest of the range; algorithms: the fastest ones in it, in the order of their payloads.
    """
    found = []
    good = [row for row in sound(rows) if row["cluster"] > 1 and row["algorithm"] not in FROM_MEMORY]
    names = list(OPERATORS)
    for operator, cluster in sorted({(row["operator"], row["cluster"]) for row in good}, key=lambda key: (names.index(key[0]), key[1])):
        mine = [row for row in good if (row["operator"], row["cluster"]) == (operator, cluster)]
        failed = {row["payload"] for row in rows if row["error"] and (row["operator"], row["cluster"]) == (operator, cluster)}
        points = [compare(payload, mine, payload in failed) for payload in sorted({row["payload"] for row in mine})]
        ranges = [merge(verdict, list(group)) for verdict, group in groupby(points, key=lambda point: point["verdict"])]
        found.append({"operator": operator, "cluster": cluster, "ranges": [part for part in ranges if part["verdict"] != "unknown"]})
    return [entry for entry in found if entry["ranges"]]


def compare(payload: int, rows: Sequence[Row], failed: bool) -> dict[str, Any]:
    """One payload: the fastest row on the chip against the one through global memory; "unknown" where there are not both."""
    here = [row for row in rows if row["payload"] == payload]
    on = min((row for row in here if row["on_chip"]), key=lambda row: float(row["cycles"]), default=None)
    off = min((row for row in here if not row["on_chip"]), key=lambda row: float(row["cycles"]), default=None)
    if off is None or (on is None and (failed or not off["chosen"])):
        return {"payload": payload, "verdict": "unknown", "speedup": None, "algorithm": None}
    if on is None:
        return {"payload": payload, "verdict": "off chip", "speedup": None, "algorithm": None}
    speedup = off["cycles"] / on["cycles"]
    verdict = "even" if abs(on["cycles"] - off["cycles"]) <= EVEN * off["cycles"] else "wins" if speedup > 1 else "loses"
    return {"payload": payload, "verdict": verdict, "speedup": speedup, "algorithm": on["algorithm"]}


def merge(verdict: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Neighbouring payloads with one verdict, as a range."""
    ratios = [point["speedup"] for point in points if point["speedup"] is not None]
    return {
        "verdict": verdict,
        "payloads": [points[0]["payload"], points[-1]["payload"]],
        "speedup": [min(ratios), max(ratios)] if ratios else None,
        "algorithms": list(dict.fromkeys(point["algorithm"] for point in points if point["algorithm"])),
    }
