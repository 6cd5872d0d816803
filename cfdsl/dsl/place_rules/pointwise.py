"""Placement rules of pointwise ops, and of a norm, which is one once the mean is known."""

from __future__ import annotations

from cfdsl.dsl.place_rules.site import AXES, SUM, Rule, Site, on
from cfdsl.dsl.placement import AxisPlacement, Placement, R, Shard


def _pointwise(site: Site) -> tuple[Placement, ...]:
    """Equal placements; a sum may be taken term by term, and a product with a replicated factor too."""
    at: dict[str, AxisPlacement] = {}
    for axis in AXES:
        a, b = (on(placement, axis) for placement in site.args)
        linear = (a == b == SUM) if site.node.op == "add" else {a, b} == {SUM, R}
        if not linear:
            site.no_partial(axes=(axis,))
        at[axis] = SUM if linear else _meet_on(site, axis)
    return (_nested(site, Placement(**at)),)


def _non_linear(site: Site) -> tuple[Placement, ...]:
    site.no_partial()
    return site.args


def _rms_norm(site: Site) -> tuple[Placement, ...]:
    site.no_partial()
    x = site.args[0]
    for axis in AXES:
        if on(x, axis) == Shard(1) and len(site.args) < 3:
            problem = f"the last dimension of {site.name(0)} {x} is sharded on the {axis} axis, so nobody has the mean of its squares"
            raise site.mismatch(problem, f"call {axis}_gather on it first, or pass mean_square={axis}_reduce(mean_square(x))")
    if site.args[1] != Placement():
        raise site.mismatch(f"the weight is placed {site.args[1]}", "leave it whole; it is sliced like x")
    return (meet(site),)


def meet(site: Site) -> Placement:
    """Where all arguments, none of them a Partial, meet."""
    return _nested(site, Placement(_meet_on(site, "grid"), _meet_on(site, "cluster")))


def _nested(site: Site, result: Placement) -> Placement:
    """Along one dimension clusters come first, and ranks cut what their cluster has: what ranks alone have cut lies elsewhere."""
    for index, placement in enumerate(site.args):
        alone = isinstance(placement.cluster, Shard) and placement.grid == R
        if alone and result.grid == result.cluster != R:
            problem = f"{site.name(index)} {placement} is cut over the ranks alone, and the result {result} over the clusters first"
            raise site.mismatch(problem, "leave it whole: it is sliced like the result in passing")
    return result


def _meet_on(site: Site, axis: str) -> AxisPlacement:
    """Where replicated and sharded arguments, aligned at their last dimension, meet on an axis."""
    size = len(site.node.type.shape)
    found: tuple[int, Shard] | None = None
    for index, placement in enumerate(site.args):
        at = on(placement, axis)
        if not isinstance(at, Shard):
            continue
        here = Shard(at.dim + size - len(site.shape(index)))
        if found is not None and found[1] != here:
            a, b = site.name(found[0]), site.name(index)
            raise site.mismatch(
                f"{a} {site.args[found[0]]} and {b} {placement} are sharded along different dimensions on the {axis} axis",
                f"call {axis}_gather on one of them",
            )
        if site.shape(index)[at.dim] != site.node.type.shape[here.dim]:
            problem = f"{site.name(index)} {placement} is sharded along a dimension that is broadcast"
            raise site.mismatch(problem, f"call {axis}_gather on it")
        found = index, here
    return found[1] if found else R


RULES: dict[str, Rule] = {
    "add": _pointwise,
    "mul": _pointwise,
    "silu": _non_linear,
    "gelu": _non_linear,
    "cast": _non_linear,
    "rms_norm": _rms_norm,
}
