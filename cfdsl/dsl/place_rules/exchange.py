"""Placement rules of collectives: what each may move."""

from __future__ import annotations

from dataclasses import replace

from cfdsl.dsl.place_rules.site import Rule, Site, on
from cfdsl.dsl.placement import Partial, Placement, R, ReduceOp, Shard
from cfdsl.errors import CfdslError, WrongCollective

ARGMAX = Partial(ReduceOp.ARGMAX)


def _refuse(site: Site, index: int, moves: str) -> CfdslError:
    placement, name = site.args[index], site.name(index)
    legal = _legal(placement, name)
    return WrongCollective(call=site.op, moves=moves, argument=name, placement=str(placement), legal=legal, src=site.node.src)


def _legal(placement: Placement, name: str) -> str:
    """What may be called on a value placed so."""
    if placement.grid == placement.cluster == ARGMAX:
        return f"call grid_reduce, or cluster_reduce and then grid_reduce, on {name}"
    if isinstance(placement.cluster, Partial):
        return f"call cluster_reduce or cluster_reduce_scatter on {name}"
    if isinstance(placement.split, Partial):
        return f"call grid_reduce on {name}"
    if isinstance(placement.grid, Partial):
        return f"call grid_reduce or grid_reduce_scatter on {name}"
    calls = [f"{axis}_gather" for axis in ("cluster", "grid") if isinstance(on(placement, axis), Shard)]
    return f"call {' or '.join(calls)} on {name}" if calls else "every holder has all of it already: leave the call out"


def _cluster_reduce(site: Site) -> tuple[Placement, ...]:
    for index, placement in enumerate(site.args):
        if not isinstance(placement.cluster, Partial):
            raise _refuse(site, index, "P(op) -> R on the cluster axis")
    return tuple(replace(placement, cluster=R) for placement in site.args)


def _cluster_gather(site: Site) -> tuple[Placement, ...]:
    for index, placement in enumerate(site.args):
        if not isinstance(placement.cluster, Shard):
            raise _refuse(site, index, "S(d) -> R on the cluster axis")
    return tuple(replace(placement, cluster=R) for placement in site.args)


def _cluster_reduce_scatter(site: Site) -> tuple[Placement, ...]:
    dim = site.node.attr("dim")
    for index, placement in enumerate(site.args):
        if not isinstance(placement.cluster, Partial):
            raise _refuse(site, index, f"P(op) -> S({dim}) on the cluster axis")
        site.divide(site.local(site.shape(index)[dim], dim, placement), "cluster", dim)
    return tuple(replace(placement, cluster=Shard(dim)) for placement in site.args)


def _grid_gather(site: Site) -> tuple[Placement, ...]:
    for index, placement in enumerate(site.args):
        at = (placement.grid, placement.cluster, placement.split)
        if any(isinstance(axis, Partial) for axis in at) or not any(isinstance(axis, Shard) for axis in at):
            raise _refuse(site, index, "S(d) on the grid or the cluster axis -> R on both")
    return (Placement(),) * len(site.args)


def _grid_reduce(site: Site) -> tuple[Placement, ...]:
    """Terms of argmax are numbers enough for one exchange: every CTA's may be combined at once, without a cluster_reduce before."""
    for index, placement in enumerate(site.args):
        if placement.grid == placement.cluster == ARGMAX:
            continue
        has_terms = isinstance(placement.grid, Partial) or isinstance(placement.split, Partial)
        if not has_terms or isinstance(placement.cluster, Partial):
            raise _refuse(site, index, "P(op) on the grid axis or the splits (values on the cluster axis) -> R on all")
    return (Placement(),) * len(site.args)


def _grid_reduce_scatter(site: Site) -> tuple[Placement, ...]:
    dim = site.node.attr("dim")
    for index, placement in enumerate(site.args):
        if not isinstance(placement.grid, Partial) or isinstance(placement.cluster, Partial):
            raise _refuse(site, index, f"P(op) on the grid axis (values on the cluster axis) -> S({dim}) on both")
    return (Placement(Shard(dim), Shard(dim)),) * len(site.args)


RULES: dict[str, Rule] = {
    "cluster_reduce": _cluster_reduce,
    "cluster_gather": _cluster_gather,
    "cluster_reduce_scatter": _cluster_reduce_scatter,
    "grid_gather": _grid_gather,
    "grid_reduce": _grid_reduce,
    "grid_reduce_scatter": _grid_reduce_scatter,
}
