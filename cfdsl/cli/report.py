"""What `compile` and `explain` say, as plain records: the tables and the JSON are two ways to write the same dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cfdsl.cli.holdings import Placed, names_of, regrouped
from cfdsl.cli.request import Request
from cfdsl.cli.units import plural
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import RESOLUTION, RESOLUTION_US, near
from cfdsl.compiler.plan import Exchange, KernelPlan
from cfdsl.dsl.graph import LEAVES, VIEWS

if TYPE_CHECKING:
    from cfdsl.compiler.cost import Candidate, Choice
    from cfdsl.compiler.parts import Part
    from cfdsl.dsl.interpret.traffic import Traffic


def request_record(request: Request) -> dict[str, Any]:
    """The command line, resolved."""
    return {
        "fusion": request.fusion.name,
        "model": request.model.name,
        "batch": request.batch,
        "dtype": request.dtype,
        "kv_len": request.kv_len,
        "options": {**request.fusion.options, **request.options},
        "part": part_record(request.part, request.part_from),
    }


def part_record(part: Part, came_from: str) -> dict[str, Any]:
    """The target and where it came from: given, gpu or default."""
    return {"name": part.name, "arch": part.arch, "sms": part.sms, "hbm_gbps": part.hbm_gbps, "from": came_from}


def graph_record(placed: Placed) -> dict[str, Any]:
    """The placed graph: leaves with their types, then every op and exchange in order with the placement of its result."""
    names = names_of(placed.graph)
    leaves, ops = [], []
    for node in placed.graph.nodes:
        if node.op in LEAVES:
            leaves.append({"name": names[node], "kind": node.op, "type": str(node.type), "line": str(node.src)})
        elif node.op not in VIEWS:
            items = [user for user in placed.graph.users(node) if user.op == "item"] or [node]
            ops.append(
                {
                    "name": ", ".join(names[item] for item in items),
                    "op": node.op,
                    "args": [names[regrouped(arg)] for arg in node.args],
                    "type": ", ".join(dict.fromkeys(str(type_) for type_ in node.types)),
                    "placement": str(placed.of(items[0])),
                    "exchange": node.is_collective,
                    "line": str(node.src),
                    "code": node.src.code,
                }
            )
    mesh = {"clusters": placed.mesh.clusters, "ranks": placed.mesh.ranks, "splits": placed.mesh.splits}
    return {"mesh": mesh, "leaves": leaves, "ops": ops}


def config_record(config: Config, plan: KernelPlan) -> dict[str, Any]:
    """The schedule, with what follows from it."""
    ring = None
    if plan.ring:
        flight = plan.ring.flight
        ring = {"stages": plan.ring.stages, "stage_bytes": plan.ring.stage_bytes, "bytes": plan.ring.bytes, "window": flight}
        ring["early"] = plan.ring.early
    return {**asdict(config), "ctas": config.ctas, "threads": plan.threads, "ring": ring, "smem_bytes": plan.smem_bytes}


TIMES = ("time_us", "start_us", "stream_us", "exchanges_us", "tail_us")


def candidate_record(row: Candidate) -> dict[str, Any]:
    """One weighed config: its fields, its estimated times (None where it is refused), the reasons against it."""
    times = {name: getattr(row.estimate, name) if row.estimate else None for name in TIMES}
    units = None if row.units is None else float(row.units)
    return {
        "config": asdict(row.config),
        **times,
        "smem_bytes": row.smem_bytes,
        "units_per_cluster": units,
        "waves": row.estimate.waves if row.estimate else None,
        "refused": [str(reason) for reason in row.refused],
        "chosen": row.chosen,
    }


def choice_record(weighed: Iterable[Candidate], overrides: dict[str, Any]) -> dict[str, Any]:
    """The chosen config's reasons and everything that was weighed, the best first."""
    rows = [candidate_record(row) for row in weighed]
    fit = [row for row in rows if not row["refused"]]
    refused = [row for row in rows if row["refused"]]
    return {"why": why(fit, overrides), "given": overrides, "fit": fit, "refused": refused}


def why(fit: list[dict[str, Any]], overrides: dict[str, Any]) -> str:
    """In a few sentences, why the chosen config was chosen."""
    chosen = next((row for row in fit if row["chosen"]), None)
    if chosen is None:
        return "Nothing fits."
    least = min(row["time_us"] for row in fit)
    equal = sum(near(row["time_us"], least) for row in fit)
    text = f"Estimated at {chosen['time_us']:.1f} us, the least of {plural(len(fit), 'config')} that fit."
    if len(fit) == 1:
        text = f"Estimated at {chosen['time_us']:.1f} us; nothing else fits what was given."
    elif equal > 1:
        text = (
            f"Estimated at {chosen['time_us']:.1f} us. Of {plural(len(fit), 'config')} that fit, {equal} are within {RESOLUTION_US:.1f} us "
            f"and {RESOLUTION:.0%} of the least estimate, {least:.1f} us, and count as equal: first comes what has an SM to each CTA, then "
            "fewer splits, then smaller clusters. The others follow by their times."
        )
    size = chosen["config"]["cluster_size"]
    other = min((row for row in fit if row["config"]["cluster_size"] != size), key=lambda row: row["time_us"], default=None)
    if other is not None:
        more = round(other["time_us"] - chosen["time_us"], 1)
        text += f" The best with another cluster size, {shape_text(other['config'])}: {other['time_us']:.1f} us"
        text += f" ({more:+.1f})." if more else "."
    if overrides:
        text += " Given by hand: " + ", ".join(f"{name}={value}" for name, value in overrides.items()) + "."
    return text


def groups_text(clusters: int, splits: int) -> str:
    """Behind a number of clusters: how many of them share units by splitting their tokens, where they do; else nothing."""
    return f" ({plural(clusters // splits, 'group')} of {splits} splits)" if splits > 1 else ""


def shape_text(config: dict[str, Any]) -> str:
    """Clusters x ranks; groups x splits x ranks where clusters share units."""
    splits = config["splits"]
    clusters = f"{config['clusters'] // splits} x {splits}" if splits > 1 else str(config["clusters"])
    return f"{clusters} x {config['cluster_size']}"


def refusals(refused: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Kinds of reasons (what stands before the colon) with how many configs each rules out, the commonest first."""
    return Counter(kind for row in refused for kind in {reason.split(":")[0] for reason in row["refused"]}).most_common()


def exchange_record(exchange: Exchange) -> dict[str, Any]:
    """One exchange of a plan, or one round of it: the call that it is of, and its bytes over the launch."""
    op, _, _ = exchange.name.partition(":")
    return {"op": op, "does": exchange.op, "scope": exchange.scope, "bytes": exchange.total, "line": str(exchange.src)}


def traffic_record(traffic: Traffic, plan: KernelPlan, choice: Choice, part: Part) -> dict[str, Any]:
    """Bytes of one launch by scope, those of exchanges as planned; the memory's time on the part; the estimate of the chosen config."""
    chosen = next((row for row in choice.rows if row.chosen), None)
    estimate = candidate_record(chosen) if chosen is not None else {}
    return {
        "hbm_bytes": traffic.hbm_bytes,
        "weights": traffic.weights,
        "kv_read": traffic.kv_read,
        "kv_write": traffic.kv_write,
        "inputs": traffic.inputs,
        "outputs": traffic.outputs,
        "l2_bytes": traffic.l2_bytes,
        "dsmem_bytes": sum(exchange.total for exchange in plan.exchanges if exchange.scope == "cluster"),
        "grid_bytes": sum(exchange.total for exchange in plan.exchanges if exchange.scope == "grid"),
        "exchanges": [exchange_record(exchange) for exchange in plan.exchanges],
        "memory_us": traffic.hbm_bytes / part.hbm_gbps / 1e3,
        "hbm_gbps": part.hbm_gbps,
        "estimate_us": {name: estimate[name] for name in TIMES} if estimate else {},
    }
