"""Placement rules of rotary embedding, cache append and attention."""

from __future__ import annotations

from cfdsl.dsl.place_rules.site import Rule, Site
from cfdsl.dsl.placement import Partial, Placement, R, ReduceOp


def _rope(site: Site) -> tuple[Placement, ...]:
    site.no_partial()
    site.whole(0, (2,))
    for index in (1, 2, 3):
        site.replicated(index)
    return site.args[:1]


def _append(site: Site) -> tuple[Placement, ...]:
    site.no_partial()
    cache = site.args[0]
    site.replicated(3)
    for index in (1, 2):
        site.replicated(index, ("cluster",))
        if site.args[index].grid not in (R, cache.grid):
            problem = f"{site.name(index)} {site.args[index]} is not placed like {site.name(0)} {cache} on the grid axis"
            raise site.mismatch(problem, "slice both with the axis of the clusters block")
    return (cache,)


def _attend(site: Site) -> tuple[Placement, ...]:
    site.no_partial()
    q, cache = site.args[:2]
    site.replicated(0, ("cluster",))
    site.whole(0, (2,))
    if q.grid not in (R, cache.grid) or (q.grid == R and cache.grid != R):
        problem = f"{site.name(0)} {q} and {site.name(1)} {cache} are placed differently on the grid axis"
        raise site.mismatch(problem, "slice both with the axis of the clusters block, by heads")
    if len(site.args) == 3:
        site.replicated(2)
    terms = Partial(ReduceOp.LSE)
    return (Placement(q.grid, terms if site.node.attr("shard") == "tokens" else R, terms if site.node.attr("across") == "all" else R),)


RULES: dict[str, Rule] = {
    "rope": _rope,
    "append": _append,
    "attend": _attend,
}
