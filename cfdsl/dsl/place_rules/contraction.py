"""Placement rules of ops that sum over a dimension: sharded contraction -> Partial, sharded rows -> sharded result."""

from __future__ import annotations

from cfdsl.dsl.place_rules.site import SUM, Rule, Site
from cfdsl.dsl.placement import AxisPlacement, Placement, R, Shard


def _linear(site: Site) -> tuple[Placement, ...]:
    site.no_partial()
    x, w = site.args[:2]
    if w.cluster != R:
        raise site.mismatch(f"the weight {site.name(1)} {w} is sharded on the cluster axis", "leave it whole and say linear(..., shard=)")
    result = Placement(_linear_grid(site, x, w), _linear_cluster(site, x))
    if len(site.args) == 3:
        if SUM in (result.grid, result.cluster):
            axis = "cluster" if result.cluster == SUM else "grid"
            advice = f"call linear without its bias, then {axis}_reduce, then add the bias"
            raise site.mismatch(f"its result is {SUM} on the {axis} axis, so a bias would be added once per term", advice)
        _bias(site, result)
    return (result,)


def _linear_grid(site: Site, x: Placement, w: Placement) -> AxisPlacement:
    """Rows of w sharded: the result is. Contraction sharded on both sides: partial sums."""
    inner = len(site.shape(1)) - 1
    everywhere = site.node.attr("across") == "all"
    if x.grid == Shard(1) or w.grid == Shard(inner):
        if not (x.grid == Shard(1) and w.grid == Shard(inner)):
            (one, at), (other, other_at) = ((site.name(index), site.args[index]) for index in ((0, 1) if x.grid == Shard(1) else (1, 0)))
            problem = f"{one} {at} has its contraction sharded on the grid axis, but {other} {other_at} has not"
            raise site.mismatch(problem, "call grid_gather on the activation, or slice both with the axis of the clusters block")
        site.exclusive(site.shape(0)[1], 1, "a slice held twice would be added twice")
        if everywhere:
            problem = "shard='out' over the whole launch meets a contraction that is sharded on the grid axis"
            raise site.mismatch(problem, "call grid_gather on the activation first")
        return SUM
    if isinstance(w.grid, Shard) and x.grid != R:
        raise site.mismatch(
            f"{site.name(0)} {x} and {site.name(1)} {w} are both sharded on the grid axis", "call grid_gather on the activation first"
        )
    if everywhere:
        if x.grid != R or w.grid != R:
            index = 0 if x.grid != R else 1
            problem = f"shard='out' over the whole launch needs whole arguments, but {site.name(index)} is {site.args[index]}"
            raise site.mismatch(problem, "call grid_gather on it, or move the linear into the clusters block")
        return Shard(1) if len(site.shape(1)) == 2 else Shard(2)
    return Shard(w.grid.dim + 1) if isinstance(w.grid, Shard) else x.grid


def _linear_cluster(site: Site, x: Placement) -> AxisPlacement:
    shard, last = site.node.attr("shard"), len(site.node.type.shape) - 1
    size = site.node.type.shape[last]
    if shard == "in":
        site.whole(0, (0,), ("cluster",))
        held = site.local(site.shape(0)[1], 1, x)
        site.divide(held, "cluster", 1)
        return SUM
    if x.cluster == Shard(1):
        problem = f"{site.name(0)} {x} has its contraction sharded on the cluster axis"
        raise site.mismatch(problem, "call cluster_gather on it first, or say shard='in' and reduce the result")
    if shard is None:
        return x.cluster
    site.replicated(0, ("cluster",))
    if site.node.attr("across") == "cluster":
        sharded_on_grid = site.args[1].grid == Shard(0) and last == 1
        site.divide(site.local(size, last, Placement(Shard(last))) if sharded_on_grid else size, "cluster", last)
    return Shard(last)


def _bias(site: Site, result: Placement) -> None:
    """A bias is sliced like the result, or comes sliced like it on the grid."""
    bias = site.args[2]
    if bias.grid != R and (not isinstance(bias.grid, Shard) or Shard(bias.grid.dim + 1) != result.grid):
        problem = f"the bias {site.name(2)} {bias} is not placed like the result {result}"
        raise site.mismatch(problem, "slice the bias as the weight is sliced")
    site.replicated(2, ("cluster",))


def _mean_square(site: Site) -> tuple[Placement, ...]:
    site.no_partial()
    if site.args[0].grid == Shard(1):
        site.exclusive(site.shape(0)[1], 1, "a slice held twice would be added twice")
    grid, cluster = (SUM if at == Shard(1) else at for at in (site.args[0].grid, site.args[0].cluster))
    return (Placement(grid, cluster),)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "mean_square": _mean_square,
}
