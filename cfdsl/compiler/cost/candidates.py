"""Which configs are worth weighing for a graph on a part, and every reason that speaks against one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cfdsl.compiler.config import CLUSTER_SIZES, Config
from cfdsl.compiler.cost.overrides import MIN_STAGES
from cfdsl.compiler.cost.slices import kv_tile
from cfdsl.compiler.geometry import least_kv_stage
from cfdsl.compiler.parts import Part
from cfdsl.dsl.graph import Graph, leaf_of
from cfdsl.errors import CfdslError, singles

MAX_THREADS_PER_SM = 2048
SPLITS = (1, 2, 3, 4, 6, 8)  # clusters worth weighing for one unit: a split more is another term of every head to read back


def cluster_counts(graph: Graph, part: Part, cluster_size: int) -> tuple[int, ...]:
    """Numbers of clusters worth weighing: several units each, one each, or several clusters on one unit's finer slices.

    With 8 KV heads of 4 query heads: 1, 2, 4, 8 (units divided), 16 and 32 (query heads divided, K and V repeated). Without a
    `clusters` block the work is spread over all CTAs: as many clusters as the part holds, or the next power of two below, over which
    most numbers of rows are spread evenly.
    """
    if graph.over is None:
        most = part.resident(cluster_size, 1) or max(1, part.sms // cluster_size)
        return tuple(dict.fromkeys((most, 1 << (most.bit_length() - 1))))
    units, finest = graph.over, finest_slices(graph)
    several = (n for n in range(1, units + 1) if units % n == 0)
    split = (n for n in range(2 * units, min(finest, 2 * part.sms) + 1, units) if finest % n == 0)
    return (*several, *split)


def splits_tokens(graph: Graph) -> bool:
    """Whether several clusters may share a unit by splitting its tokens."""
    return any(node.attr("across") == "all" for node in graph.leaves("attend"))


def meshes(graph: Graph, part: Part, cluster_size: int, ctas_per_sm: int, overrides: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(clusters, splits) worth weighing. Fixed fields are taken as they are, and the others made to fit.

    Where tokens may be split: a group for each unit, with every number of splits that fills the part no more than once, and of fewer
    groups only the fullest, e.g. of 8 units with clusters of 4: 8, 16 and 24 clusters, and 4 groups of 6.
    """
    counts = cluster_counts(graph, part, cluster_size)
    most = part.resident(cluster_size, ctas_per_sm) or max(1, part.sms // cluster_size)
    most = min(most, part.sms // cluster_size)
    if "clusters" in overrides:
        clusters = overrides["clusters"]
        free = [n for n in SPLITS if clusters % n == 0 and clusters // n in counts] if splits_tokens(graph) else []
        for splits in (overrides["splits"],) if "splits" in overrides else free or [1]:
            yield clusters, splits
    elif "splits" in overrides:
        yield from ((groups * overrides["splits"], overrides["splits"]) for groups in counts)
    else:
        for groups in counts:
            fit = [n for n in SPLITS if groups * n <= most] if splits_tokens(graph) and groups <= (graph.over or 0) else []
            for splits in dict.fromkeys((1, *(fit if groups == graph.over else fit[-1:]))):
                yield groups * splits, splits


def finest_slices(graph: Graph) -> int:
    """The most slices into which `[axis]` cuts heads or rows: more clusters than that would repeat each other's work.

    Slices of a weight's columns do not count: they are terms of one sum.
    """
    cut = ((node.type.shape, node.attr("dim"), leaf_of(node).op) for node in graph.leaves("slice_grid"))
    sizes = [shape[dim] for shape, dim, op in cut if not (op == "weight" and len(shape) > 1 and dim == len(shape) - 1)]
    return max((size for size in sizes if isinstance(size, int)), default=graph.over or 1)


def geometries(graph: Graph, part: Part, overrides: Mapping[str, Any]) -> Iterator[Config]:
    """Every config to weigh, with the least ring; fields that the user fixed are fixed."""
    sizes = (overrides["cluster_size"],) if "cluster_size" in overrides else CLUSTER_SIZES
    both = (overrides["ctas_per_sm"],) if "ctas_per_sm" in overrides else (1, 2)
    for cluster_size in sizes:
        found = {(mesh, ctas): None for ctas in both for mesh in meshes(graph, part, cluster_size, ctas, overrides)}
        for (clusters, splits), ctas_per_sm in sorted(found):
            given: dict[str, Any] = {"clusters": clusters, "cluster_size": cluster_size, "ctas_per_sm": ctas_per_sm, "splits": splits}
            config = Config(**({"stages": MIN_STAGES} | given | dict(overrides)))
            yield config if "stage_bytes" in overrides else config.with_(stage_bytes=_stage_bytes(graph, config))


def _stage_bytes(graph: Graph, config: Config) -> int:
    """A stage that a tile of every cache fits: many warps, or many query heads to a KV head, want more tokens at a time."""
    groups = config.groups if graph.over is not None else 1
    tiles = (kv_tile(node, groups) for node in graph.leaves("attend"))
    return max([config.stage_bytes, *(least_kv_stage(group, dim, itemsize, config.warps) for group, dim, itemsize in tiles)])


def refused_by_part(graph: Graph, part: Part, config: Config, waits_for_grid: bool) -> list[str]:
    """Reasons that follow from the part and the launch alone."""
    reasons = []
    size, clusters = config.cluster_size, config.clusters
    if size > part.cluster_limit:
        reasons.append(f"{part.name} has clusters of at most {part.cluster_limit}")
    elif waits_for_grid:
        resident = part.resident(size, config.ctas_per_sm)
        at = f"of {size} at {config.ctas_per_sm} CTA{'s' * (config.ctas_per_sm > 1)}/SM"
        if resident is None:
            reasons.append(f"residency unknown: how many clusters {at} {part.name} holds; the grid barrier needs all: ask the device")
        elif clusters > resident:
            reasons.append(f"not resident: {clusters} clusters {at}, {part.name} holds {resident}; the grid barrier would deadlock")
    finest = finest_slices(graph)
    if graph.over is not None and config.groups > finest:
        holders = f"{clusters} clusters" if config.splits == 1 else f"{config.groups} groups of clusters"
        reasons.append(f"{holders} for {finest} slices of work: some would repeat others")
    if 32 * (config.warps + 1) * config.ctas_per_sm > MAX_THREADS_PER_SM:
        reasons.append(f"{config.ctas_per_sm} x {32 * (config.warps + 1)} threads on an SM, at most {MAX_THREADS_PER_SM}")
    return reasons


def refused_by_error(error: CfdslError) -> list[str]:
    """The reasons in an error of another stage, one line each."""
    return list(dict.fromkeys(single.message.rstrip(".").split("\n")[0] for single in singles(error)))
