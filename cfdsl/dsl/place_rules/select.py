"""Placement rules of ops that pick by an index, or find one."""

from __future__ import annotations

from cfdsl.dsl.place_rules.site import Rule, Site
from cfdsl.dsl.placement import AxisPlacement, Partial, Placement, ReduceOp, Shard


def _embedding(site: Site) -> tuple[Placement, ...]:
    """Whoever has a sequence's index has its row: the table is whole."""
    site.no_partial()
    site.replicated(1)
    return site.args[:1]


def _argmax(site: Site) -> tuple[Placement, ...]:
    """Holders of slices of the last dimension have terms: the greatest value of their slice, and its index."""
    site.no_partial()
    last = Shard(len(site.shape(0)) - 1)

    def found(at: AxisPlacement) -> AxisPlacement:
        return Partial(ReduceOp.ARGMAX) if at == last else at

    return (Placement(found(site.args[0].grid), found(site.args[0].cluster)),)


RULES: dict[str, Rule] = {
    "embedding": _embedding,
    "argmax": _argmax,
}
