"""The pipeline, as one named list: from a fusion to the source of a kernel. Every stage has a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cfdsl.compiler.candidates import MIN_STAGES
from cfdsl.compiler.check import check
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import Choice, choose
from cfdsl.compiler.emit import emit, with_marks
from cfdsl.compiler.lowering.limits import check_limits
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import KernelPlan
from cfdsl.compiler.plan_text import plan_text
from cfdsl.compiler.schedule import schedule
from cfdsl.dsl.fusion import Fusion
from cfdsl.dsl.graph import Graph
from cfdsl.dsl.place import PlacedGraph, place
from cfdsl.dsl.placement import Mesh
from cfdsl.dsl.text import to_text
from cfdsl.dsl.verify import verify
from cfdsl.models import ModelConfig

BARRIERS_PER_STAGE = 16  # bytes: one full and one empty barrier


@dataclass
class Lowered:
    """A fusion on its way down. Fields fill from top to bottom; `stages` has the text of each named stage that was reached."""

    fusion: Fusion
    model: ModelConfig
    batch: int
    dtype: str
    part: Part
    overrides: Mapping[str, Any]
    options: Mapping[str, Any]
    sizes: Mapping[str, int] | None = None
    graph: Graph = field(init=False)
    choice: Choice = field(init=False)
    placed: PlacedGraph = field(init=False)
    plan: KernelPlan = field(init=False)
    source: str = field(init=False)

    @property
    def config(self) -> Config:
        return self.plan.config

    @cached_property
    def stages(self) -> dict[str, str]:
        return {stage.name: stage.text(self) for stage in STAGES if stage.text is not None}


def trace(at: Lowered) -> None:
    """Run the spec once, for this model, batch and dtype; refuse what no config can lower."""
    at.graph = at.fusion.trace(at.model, at.batch, at.dtype, **at.options)
    verify(at.graph)
    check_limits(at.graph)


def configure(at: Lowered) -> None:
    """Choose the mesh and the schedule by cost, within what the user has fixed."""
    at.choice = choose(at.graph, at.part, dict(at.overrides), dict(at.sizes) if at.sizes else None)


def place_on_mesh(at: Lowered) -> None:
    """Give every value its placement on the chosen mesh."""
    at.placed = place(at.graph, Mesh(at.choice.config.clusters, at.choice.config.cluster_size, at.choice.config.splits))


def make_plan(at: Lowered) -> None:
    """Plan with the chosen config; where the buffers, now known exactly, leave the ring less room than estimated, with fewer stages."""
    config = at.choice.config
    at.plan = schedule(at.placed, config, at.model.name)
    if at.plan.ring is not None and "stages" not in at.overrides:
        fixed = at.plan.smem_bytes - config.stages * (config.stage_bytes + BARRIERS_PER_STAGE)
        room = (at.part.smem_budget(config.ctas_per_sm) - fixed) // (config.stage_bytes + BARRIERS_PER_STAGE)
        if room < config.stages:
            at.plan = schedule(at.placed, config.with_(stages=max(MIN_STAGES, room)), at.model.name)
    at.plan = with_marks(at.plan)


def check_plan(at: Lowered) -> None:
    """Prove the plan's arithmetic, and that the part can run it."""
    check(at.plan, at.part)


def write_source(at: Lowered) -> None:
    """Write the kernel."""
    at.source = emit(at.plan)


@dataclass(frozen=True)
class Stage:
    """One arrow of the pipeline: `run` fills a field of Lowered, `text` prints it (None: the stage only decides or checks)."""

    name: str
    run: Callable[[Lowered], None]
    text: Callable[[Lowered], str] | None = None


STAGES: tuple[Stage, ...] = (
    Stage("traced", trace, lambda at: to_text(at.graph)),
    Stage("config", configure),
    Stage("placed", place_on_mesh, lambda at: to_text(at.placed)),
    Stage("plan", make_plan, lambda at: plan_text(at.plan)),
    Stage("check", check_plan),
    Stage("source", write_source, lambda at: at.source),
)


def lower(
    fusion: Fusion, model: ModelConfig, batch: int, dtype: str, part: Part, overrides: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None, sizes: Mapping[str, int] | None = None,
) -> Lowered:  # fmt: skip
    """Run every stage. `overrides` are Config fields fixed by the user, `options` the dataflows of the fusion, `sizes` symbolic
    dimensions to estimate with (default 4096 tokens). Raises one error, or `Errors` with all that are independent."""
    at = Lowered(fusion, model, batch, dtype, part, overrides or {}, options or {}, sizes)
    for stage in STAGES:
        stage.run(at)
    return at
