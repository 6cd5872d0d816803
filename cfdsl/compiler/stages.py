"""The pipeline, as one named list: from a fusion to the source of a kernel. Every stage has a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from cfdsl.compiler.check import check
from cfdsl.compiler.check.text import check_text
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import Choice, config_text
from cfdsl.compiler.cost.overrides import override_errors, size_errors
from cfdsl.compiler.emit import emit, with_marks
from cfdsl.compiler.limits import limits
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import KernelPlan
from cfdsl.compiler.plan_text import plan_text
from cfdsl.compiler.settle import planned, settle
from cfdsl.dsl.fusion import Fusion
from cfdsl.dsl.graph import Graph
from cfdsl.dsl.place import PlacedGraph, place
from cfdsl.dsl.text import to_text
from cfdsl.dsl.verify import verify
from cfdsl.errors import CfdslError, NoLegalConfig, raise_all, singles
from cfdsl.models import ModelConfig


class Kept(Protocol):
    """Where choices of a config are kept (`cfdsl.runtime.choices.KeptChoices`): the arguments are those of `choose`."""

    def find(self, graph: Graph, part: Part, overrides: Mapping[str, Any], sizes: Mapping[str, int]) -> Config | None: ...
    def keep(self, graph: Graph, part: Part, overrides: Mapping[str, Any], sizes: Mapping[str, int], config: Config) -> None: ...


@dataclass
class Lowered:
    """A fusion on its way down. Fields fill from top to bottom; `stages` has the text of each named stage, made when it is asked for.

    chosen   the config that the cost model chose, now or in a run before this one
    choice   what it was weighed against; where it was chosen before, weighed again when somebody asks
    """

    fusion: Fusion
    model: ModelConfig
    batch: int
    dtype: str
    part: Part
    overrides: Mapping[str, Any]
    options: Mapping[str, Any]
    sizes: Mapping[str, int] | None = None
    kept: Kept | None = None
    graph: Graph = field(init=False)
    chosen: Config = field(init=False)
    placed: PlacedGraph = field(init=False)
    plan: KernelPlan = field(init=False)
    source: str = field(init=False)

    @property
    def config(self) -> Config:
        return self.plan.config

    @cached_property
    def choice(self) -> Choice:
        return settle(self.graph, self.part, self.overrides, self.sizes)

    @property
    def stages(self) -> Mapping[str, str]:
        return Texts(self)


class Texts(Mapping[str, str]):
    """The texts of all stages by name."""

    def __init__(self, at: Lowered) -> None:
        self._at, self._stages = at, {stage.name: stage for stage in STAGES}

    def __getitem__(self, name: str) -> str:
        return self._stages[name].text(self._at)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)


def trace(at: Lowered) -> None:
    """Run the spec once, for this model, batch and dtype."""
    at.graph = at.fusion.trace(at.model, at.batch, at.dtype, **at.options)
    verify(at.graph)


def configure(at: Lowered) -> None:
    """Choose the mesh and the schedule by cost, within what the user has fixed."""
    asked = (at.graph, at.part, at.overrides, at.sizes or {})
    right = not override_errors(at.overrides) and not size_errors(at.graph, at.sizes or {})
    found = at.kept.find(*asked) if at.kept is not None and right else None
    at.chosen = found or _choose(at)
    if found is None and at.kept is not None:
        at.kept.keep(*asked, at.chosen)


def _choose(at: Lowered) -> Config:
    """Raises with the mistakes of the choice what is beyond any config."""
    try:
        return at.choice.config
    except CfdslError as error:
        beyond = [limit.error for limit in limits(at.graph)]  # what fits no kernel is no config's fault
        raise_all([*beyond, *(single for single in singles(error) if not beyond or not isinstance(single, NoLegalConfig))])
        raise


def place_on_mesh(at: Lowered) -> None:
    """Give every value its placement on the chosen mesh."""
    at.placed = place(at.graph, at.chosen.mesh)


def make_plan(at: Lowered) -> None:
    """Plan with the chosen config."""
    at.plan = with_marks(planned(at.placed, at.part, at.chosen, "stages" in at.overrides, at.model.name))


def check_plan(at: Lowered) -> None:
    """Prove the plan's arithmetic, and that the part can run it."""
    check(at.plan, at.part)


def write_source(at: Lowered) -> None:
    """Write the kernel."""
    at.source = emit(at.plan)


@dataclass(frozen=True)
class Stage:
    """One arrow of the pipeline: `run` fills a field of Lowered or checks it, `text` says with what result."""

    name: str
    run: Callable[[Lowered], None]
    text: Callable[[Lowered], str]


STAGES: tuple[Stage, ...] = (
    Stage("traced", trace, lambda at: to_text(at.graph)),
    Stage("config", configure, lambda at: config_text(at.choice)),
    Stage("placed", place_on_mesh, lambda at: to_text(at.placed)),
    Stage("plan", make_plan, lambda at: plan_text(at.plan)),
    Stage("check", check_plan, lambda at: check_text(at.plan, at.part)),
    Stage("source", write_source, lambda at: at.source),
)


def lower(
    fusion: Fusion, model: ModelConfig, batch: int, dtype: str, part: Part, overrides: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None, sizes: Mapping[str, int] | None = None, kept: Kept | None = None,
) -> Lowered:  # fmt: skip
    """Run every stage. `overrides` are Config fields fixed by the user, `options` the dataflows of the fusion, `sizes` symbolic
    dimensions to estimate with (default 4096 tokens), `kept` what was chosen before. Raises one error, or `Errors` with all that are
    independent."""
    at = Lowered(fusion, model, batch, dtype, part, overrides or {}, options or {}, sizes, kept)
    for stage in STAGES:
        stage.run(at)
    return at
