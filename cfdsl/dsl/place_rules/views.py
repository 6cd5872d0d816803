"""Placement rules of leaves, slices and views."""

from __future__ import annotations

from cfdsl.dsl.place_rules.pointwise import meet
from cfdsl.dsl.place_rules.site import Rule, Site
from cfdsl.dsl.placement import Placement, Shard


def _leaf(site: Site) -> tuple[Placement, ...]:
    return (Placement(),)


def _slice_grid(site: Site) -> tuple[Placement, ...]:
    dim = site.node.attr("dim")
    site.replicated(0, ("grid",))
    site.whole(0, (dim,))
    site.divide(site.shape(0)[dim], "grid", dim)
    return (Placement(Shard(dim), site.args[0].cluster),)


def _slice_cluster(site: Site) -> tuple[Placement, ...]:
    dim = site.node.attr("dim")
    site.replicated(0, ("cluster",))
    site.divide(site.local(site.shape(0)[dim], dim, site.args[0]), "cluster", dim)
    return (Placement(site.args[0].grid, Shard(dim)),)


def _split_heads(site: Site) -> tuple[Placement, ...]:
    dim, heads = site.node.attr("dim"), site.node.attr("heads")
    placement = site.args[0]
    if placement.grid == Shard(dim):
        site.exclusive(heads, dim, "its slices would cut through heads")
    if placement.cluster == Shard(dim):
        site.divide(site.local(heads, dim, placement), "cluster", dim)
    return (moved(placement, {d: d if d <= dim else d + 1 for d in range(len(site.shape(0)))}),)


def moved(placement: Placement, dims: dict[int, int]) -> Placement:
    """The placement with its sharded dimensions renumbered."""
    grid, cluster = (Shard(dims[at.dim]) if isinstance(at, Shard) else at for at in (placement.grid, placement.cluster))
    return Placement(grid, cluster)


def _merge_heads(site: Site) -> tuple[Placement, ...]:
    site.replicated(0, ("cluster",))
    site.whole(0, (2,))
    if site.args[0].grid == Shard(1):
        site.exclusive(site.shape(0)[1], 1, "several clusters would hold the same head")
    return site.args


def _split(site: Site) -> tuple[Placement, ...]:
    site.whole(0, (site.node.attr("dim"),))
    return site.args * len(site.node.types)


def _concat(site: Site) -> tuple[Placement, ...]:
    for index in range(len(site.args)):
        site.whole(index, (site.node.attr("dim"),))
    if all(placement == site.args[0] for placement in site.args):
        return site.args[:1]
    site.no_partial()
    return (meet(site),)


def _reshape(site: Site) -> tuple[Placement, ...]:
    before, after = site.shape(0), site.node.type.shape
    survives = {d: e for d in range(len(before)) for e in range(len(after)) if before[: d + 1] == after[: e + 1]}
    for dim in range(len(before)):
        if dim not in survives:
            site.whole(0, (dim,))
    return (moved(site.args[0], survives),)


RULES: dict[str, Rule] = {
    "input": _leaf,
    "weight": _leaf,
    "kv_cache": _leaf,
    "slice_grid": _slice_grid,
    "slice_cluster": _slice_cluster,
    "split_heads": _split_heads,
    "merge_heads": _merge_heads,
    "split": _split,
    "concat": _concat,
    "reshape": _reshape,
}
