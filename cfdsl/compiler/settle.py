"""The choice that holds: the best candidate that a plan can be made of.

The cost model weighs candidates before there is a plan, and knows only in part what the lowering cannot do. So the best one is lowered,
and where that is refused, the next; a refused one is told with its reason, like those that were refused before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cfdsl.compiler.check import check
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import Candidate, Choice, choose, early_tiles, tiles_in_flight
from cfdsl.compiler.cost.candidates import refused_by_error
from cfdsl.compiler.cost.overrides import MIN_STAGES
from cfdsl.compiler.cost.refusals import no_legal_config, once_each
from cfdsl.compiler.geometry import BARRIER_BYTES
from cfdsl.compiler.limits import limits
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import KernelPlan
from cfdsl.compiler.schedule import schedule
from cfdsl.dsl.graph import Graph
from cfdsl.dsl.place import PlacedGraph, place
from cfdsl.errors import CfdslError, PlanError, singles

BARRIERS_PER_STAGE = 2 * BARRIER_BYTES  # one full and one empty barrier


def settle(graph: Graph, part: Part, overrides: Mapping[str, Any] | None = None, sizes: Mapping[str, int] | None = None) -> Choice:
    """As `choose`, whose choice it is unless that cannot be lowered.

    Raises what `choose` raises. Where no candidate can be lowered: the refusal that all of them share, else NoLegalConfig.
    """
    overrides = overrides or {}
    choice = choose(graph, part, overrides, sizes)
    if limits(graph):  # no config cures these, and the lowering tells them all at once
        return choice
    fit = [row for row in choice.rows if not row.refused]
    tried: list[tuple[Candidate, CfdslError]] = []
    for at, row in enumerate(fit):
        config = choice.config if row.chosen else _with_flight(part, row.config, overrides)
        error = _refusal(graph, part, config, "stages" in overrides)
        if error is None:
            chosen, left, before = replace(row, config=config, chosen=True), fit[at + 1 :], [each for each in choice.rows if each.refused]
            return replace(choice, config=config, rows=(chosen, *left, *(refused for refused, _ in tried), *before))
        tried.append((replace(row, estimate=None, refused=tuple(refused_by_error(error)), chosen=False), error))
    raise _none_holds(graph, part, overrides, tried)


def _with_flight(part: Part, config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config with as many tiles in flight as the chosen one would have in its place."""
    if "window" not in overrides:
        config = config.with_(window=tiles_in_flight(part, config))
    return config if "early" in overrides else config.with_(early=early_tiles(config))


def _refusal(graph: Graph, part: Part, config: Config, stages_given: bool) -> CfdslError | None:
    """Why a config cannot be lowered, if it cannot. A plan that is wrong is a mistake of the compiler, and raised."""
    try:
        check(planned(place(graph, config.mesh), part, config, stages_given), part)
    except CfdslError as error:
        if any(isinstance(single, PlanError) for single in singles(error)):
            raise
        return error
    return None


def planned(placed: PlacedGraph, part: Part, config: Config, stages_given: bool, model: str = "") -> KernelPlan:
    """The plan of a config; where its buffers, now known exactly, leave the ring less room than was estimated, with fewer stages."""
    plan = schedule(placed, config, model)
    if plan.ring is None or stages_given:
        return plan
    fixed = plan.smem_bytes - config.stages * (config.stage_bytes + BARRIERS_PER_STAGE)
    room = (part.smem_budget(config.ctas_per_sm) - fixed) // (config.stage_bytes + BARRIERS_PER_STAGE)
    return plan if room >= config.stages else schedule(placed, config.with_(stages=max(MIN_STAGES, room)), model)


def _none_holds(graph: Graph, part: Part, overrides: Mapping[str, Any], tried: list[tuple[Candidate, CfdslError]]) -> CfdslError:
    rows, errors = zip(*tried)
    if len({tuple(single.message for single in singles(error)) for error in errors}) == 1:
        first: CfdslError = errors[0]
        return first
    return no_legal_config(graph, part, overrides, once_each(rows))
