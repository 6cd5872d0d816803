"""Choosing a config: every candidate gets an estimate, or all the reasons that speak against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from cfdsl.compiler.config import Config
from cfdsl.compiler.cost.candidates import geometries, refused_by_error, refused_by_part
from cfdsl.compiler.cost.estimate import Estimate, estimate
from cfdsl.compiler.cost.moves import Traffic
from cfdsl.compiler.cost.overrides import MAX_STAGES, MIN_STAGES, override_errors, size_errors
from cfdsl.compiler.cost.refusals import nothing_left
from cfdsl.compiler.cost.shared_inputs import shared_inputs
from cfdsl.compiler.cost.slices import refused_by_slices
from cfdsl.compiler.cost.smem import SmemOf, fit_stages, fixed_smem
from cfdsl.compiler.cost.traffic import streams, traffic
from cfdsl.compiler.parts import Part
from cfdsl.dsl.graph import GRID_COLLECTIVES, Graph
from cfdsl.dsl.place import PlacedGraph, place
from cfdsl.dsl.placement import Mesh
from cfdsl.errors import CfdslError, raise_all

FLIGHT_US = 1.4  # of the memory's time in flight: enough to keep it busy, little enough to keep its queue short
# Estimates that are closer than the model is exact are not told apart: then the shape that is usually good decides.
RESOLUTION, RESOLUTION_US = 0.03, 0.5  # within both


@dataclass(frozen=True)
class Candidate:
    """One config with its estimate, or with all reasons against it (`refused`; then `estimate` and every `*_us` is None).

    smem_bytes   of a CTA, the ring included (the least ring, if none fits); None where the graph cannot be placed
    units        work units (KV heads, rows, ...) per cluster; below 1, several clusters share a unit. None: no clusters block
    *_us         microseconds: the estimate's time and its four terms, then the limits behind `stream_us`
    """

    config: Config
    estimate: Estimate | None
    smem_bytes: int | None
    units: Fraction | None
    refused: tuple[str, ...] = ()
    chosen: bool = False
    time_us: float | None = field(init=False)
    start_us: float | None = field(init=False)
    stream_us: float | None = field(init=False)
    exchanges_us: float | None = field(init=False)
    tail_us: float | None = field(init=False)
    hbm_us: float | None = field(init=False)
    l2_us: float | None = field(init=False)
    sm_us: float | None = field(init=False)

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name.endswith("_us"):
                object.__setattr__(self, each.name, getattr(self.estimate, each.name, None))

    @property
    def verdict(self) -> str:
        """In words, for a table."""
        if self.refused:
            return "; ".join(self.refused)
        return "chosen" if self.chosen else ""


@dataclass(frozen=True)
class Choice:
    """The chosen config, and what was weighed, best first, refused ones last."""

    config: Config
    rows: tuple[Candidate, ...]
    part: Part
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def chosen(self) -> Candidate:
        return next(row for row in self.rows if row.chosen)

    @property
    def floor_us(self) -> float:
        """The memory's time: each byte once, at the part's read ceiling."""
        chosen = self.chosen.estimate
        return self.part.at_hbm_us(chosen.traffic.unique_bytes) if chosen else 0.0


def choose(
    graph: Graph,
    part: Part,
    overrides: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    smem_of: SmemOf | None = None,
) -> Choice:
    """Weigh every config that `overrides` (fields fixed by the user) leaves open, and choose one.

    sizes     symbolic dimensions of the estimate, e.g. {"tokens": 4096} (the default)
    smem_of   bytes of shared memory besides the ring's stages, for a config; default: an estimate from the placed graph

    The same arguments give the same choice, and are weighed once per process. Raises ConfigError or ClusterSizeUnsupported for fields
    that no config has, and ArgumentError for sizes that there are not. When every candidate is refused: the mistake that all of them
    share (NotResident, SharedMemoryExceeded, what placing says on every mesh), else NoLegalConfig with all reasons.
    """
    raise_all([*override_errors(overrides or {}), *size_errors(graph, sizes or {})])
    overrides, sizes = dict(overrides or {}), dict(sizes or {})
    return _choose(graph, part, tuple(sorted(overrides.items())), tuple(sorted(sizes.items())), smem_of)


def weighed(graph: Graph, part: Part, overrides: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Candidate]:
    """Every config that `choose` weighs for the same arguments, in no order, also where it refuses all of them."""
    return _Scales(graph, part, overrides, sizes, None).all()


@lru_cache(maxsize=256)
def _choose(
    graph: Graph, part: Part, overrides: tuple[tuple[str, Any], ...], sizes: tuple[tuple[str, int], ...], smem_of: SmemOf | None
) -> Choice:
    weigh = _Scales(graph, part, dict(overrides), dict(sizes), smem_of)
    rows = weigh.all()
    legal = [row for row in rows if row.estimate]
    if not legal:
        raise_all(nothing_left(graph, part, weigh.overrides, weigh.sizes, rows, weigh.placed))
    best = min(row.estimate.time_us for row in legal if row.estimate)
    legal.sort(key=lambda row: _rank(row, best))
    config = legal[0].config
    if "window" not in weigh.overrides:
        config = config.with_(window=tiles_in_flight(part, config))
    if "early" not in weigh.overrides:
        config = config.with_(early=early_tiles(config))
    legal[0] = replace(legal[0], config=config, chosen=True)
    refused = [row for row in rows if row.refused]
    return Choice(legal[0].config, (*legal, *refused), part, sizes)


def tiles_in_flight(part: Part, config: Config) -> int:
    """How many tiles a CTA should have on their way: together as many bytes as the memory delivers in FLIGHT_US, 48 KB each at least.

    Measured on an H200, 2026-11-23, Llama-2-7B attention block: 3 of 16 KB for 128 CTAs (2: 2 us slower at 4096 tokens; 6: 2 us; 12:
    2.3 us), 6 for 64 CTAs (4: 3 us slower).
    """
    least = -(-48 * 1024 // config.stage_bytes)  # what one SM of an H100 needs to read at full rate
    return min(config.stages, max(least, round(part.hbm_gbps * 1000 * FLIGHT_US / (config.ctas * config.stage_bytes))))


def early_tiles(config: Config) -> int:
    """How many of the tiles in flight may be for later: two thirds, so that a CTA which is ahead leaves the memory to those it waits for.

    Measured on an H200, 2026-11-23, Llama-2-7B attention block, 3 tiles in flight: 36.0 and 46.5 us at 1024 and 4096 tokens with 2 of
    them, 37.0 and 47.3 with 3, 37.0 and 47.9 with 1; Llama-3.1-8B at 4096 tokens: 27.4, 28.2 and 27.5.
    """
    return max(1, config.window * 2 // 3) if config.window else 0


def _rank(row: Candidate, best_us: float) -> tuple[Any, ...]:
    """Faster first. Among those within RESOLUTION of the best: an SM to each CTA, few splits, small clusters, many of them.

    Two CTAs that share an SM have rings of half the depth, and in a row of different kernels they do not spread evenly: a decode step of
    Llama-3.2-1B at 1024 tokens takes 958 us with `ffn_block` two to an SM, and 908 with one (H100 80GB HBM3, 2026-11-28: `bench decode`).
    """
    assert row.estimate is not None
    time, config = row.estimate.time_us, row.config
    shape = (config.ctas_per_sm, config.splits, config.cluster_size, -config.clusters)
    return (0, *shape, time) if near(time, best_us) else (1, time, *shape)


def near(us: float, best_us: float) -> bool:
    """Whether an estimate is too close to the least one to be told from it."""
    return us <= min(best_us * (1 + RESOLUTION), best_us + RESOLUTION_US)


class _Scales:
    """Weighs candidates of one graph on one part; a mesh is placed and walked once."""

    def __init__(self, graph: Graph, part: Part, overrides: Mapping[str, Any], sizes: Mapping[str, int], smem_of: SmemOf | None) -> None:
        self.graph, self.part, self.overrides, self.sizes, self.smem_of = graph, part, overrides, sizes, smem_of
        self.waits_for_grid = any(node.op in GRID_COLLECTIVES for node in graph.nodes)
        self.least_stages = overrides.get("stages", MIN_STAGES)
        self.most_stages = overrides.get("stages", MAX_STAGES) if streams(graph) else 0
        self.placed: dict[Mesh, PlacedGraph | CfdslError] = {}
        self.traffic: dict[tuple[Mesh, int, bool], Traffic] = {}

    def all(self) -> list[Candidate]:
        """Every config that the overrides leave open."""
        return [self.candidate(config) for config in geometries(self.graph, self.part, self.overrides)]

    def candidate(self, config: Config) -> Candidate:
        """The estimate of a config, or every reason against it; with multicast, if that was measured to pay and nobody fixed it."""
        plain = self._weigh(config)
        if plain.time_us is None or "multicast" in self.overrides or self.part.timing.multicast_us is None or config.cluster_size == 1:
            return plain
        shared = self._weigh(config.with_(multicast=True))
        return shared if shared.time_us is not None and shared.time_us < plain.time_us else plain

    def _weigh(self, config: Config) -> Candidate:
        units = None if self.graph.over is None else Fraction(self.graph.over, config.clusters)
        reasons = refused_by_part(self.graph, self.part, config, self.waits_for_grid)
        placed = self._place(config.mesh)
        if isinstance(placed, CfdslError):
            return Candidate(config, None, None, units, (*reasons, *refused_by_error(placed)))
        reasons += refused_by_slices(placed, config, self.sizes)
        try:
            smem_of = self.smem_of or (lambda fitted: fixed_smem(placed, fitted, self.sizes))
            fitted, smem = fit_stages(self.part, config, smem_of, self.most_stages, self.least_stages)
        except CfdslError as error:
            return Candidate(config, None, None, units, (*reasons, *refused_by_error(error)))
        if fitted is None:
            budget = self.part.smem_budget(config.ctas_per_sm)
            reasons.append(f"shared memory: {smem:,} bytes of {budget:,} at {config.ctas_per_sm} CTA{'s' * (config.ctas_per_sm > 1)}/SM")
        if fitted is None or reasons:
            return Candidate(fitted or config, None, smem, units, tuple(reasons))
        return Candidate(fitted, estimate(self.part, fitted, self._traffic(placed, fitted)), smem, units)

    def _place(self, mesh: Mesh) -> PlacedGraph | CfdslError:
        if mesh not in self.placed:
            try:
                self.placed[mesh] = place(self.graph, mesh)
            except CfdslError as error:
                self.placed[mesh] = error
        return self.placed[mesh]

    def _traffic(self, placed: PlacedGraph, config: Config) -> Traffic:
        key = (placed.mesh, config.stage_bytes, config.multicast)
        if key not in self.traffic:
            shared = shared_inputs(placed) if config.multicast else ()
            self.traffic[key] = traffic(placed, self.sizes, config.stage_bytes, shared)
        return self.traffic[key]


HEADERS = ("clusters x ranks", "per cluster", "CTAs/SM", "stages", "smem, est.", "time", "start", "stream", "exchanges", "tail", "verdict")


def cells(row: Candidate) -> tuple[str, ...]:
    """One row of the table, as text in the order of HEADERS. Where clusters share units: groups x splits x ranks."""
    config, e = row.config, row.estimate
    times = ["-"] * 5 if e is None else [f"{us:.1f}" for us in (e.time_us, e.start_us, e.stream_us, e.exchanges_us, e.tail_us)]
    stages = "-" if e is None or not e.traffic.streams else str(config.stages)
    smem = "-" if row.smem_bytes is None else f"{row.smem_bytes:,}"
    units = "-" if row.units is None else str(row.units)
    clusters = f"{config.groups} x {config.splits}" if config.splits > 1 else str(config.clusters)
    return (f"{clusters} x {config.cluster_size}", units, str(config.ctas_per_sm), stages, smem, *times, row.verdict)


def explain(choice: Choice) -> str:
    """The table of candidates as plain text: aligned columns, microseconds, the best first and the refused ones last."""
    table = [HEADERS, *(cells(row) for row in choice.rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADERS) - 1)]
    lines = ["  ".join([*(text.rjust(width) for text, width in zip(line, widths)), line[-1]]).rstrip() for line in table]
    sizes = "".join(f", {name} {value}" for name, value in choice.sizes)
    head = f"{choice.part.name}: times in us at {choice.part.hbm_gbps:,.0f} GB/s{sizes}; the memory's time is {choice.floor_us:.1f}"
    return "\n".join([head, *(f"note: {note}" for note in choice.part.notes), "", *lines])


def config_text(choice: Choice) -> str:
    """The chosen row of the table of candidates, and every field of the config."""
    chosen = explain(replace(choice, rows=(choice.chosen,)))
    wide = max(len(field.name) for field in fields(Config))
    each = [f"{field.name:{wide}}  {getattr(choice.config, field.name)}" for field in fields(Config)]
    weighed = f"chosen of {sum(not row.refused for row in choice.rows)} that fit and {len(choice.rows)} that were weighed"
    return "\n".join([chosen, "", weighed, "", *each]) + "\n"
