"""What is said when every candidate is refused: the mistake itself where all fail alike, else every reason with its configs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from cfdsl.compiler.config import Config
from cfdsl.compiler.cost.slices import refused_by_slices
from cfdsl.compiler.cost.smem import smem_pieces
from cfdsl.compiler.parts import Part
from cfdsl.dsl.graph import GRID_COLLECTIVES, Graph, Src
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.placement import Mesh
from cfdsl.errors import CfdslError, NoLegalConfig, NotResident, SharedMemoryExceeded, singles

Placed = Mapping[Mesh, PlacedGraph | CfdslError]


class Refused(Protocol):
    """A candidate that cannot run (`cfdsl.compiler.cost.Candidate` is one)."""

    @property
    def config(self) -> Config: ...
    @property
    def smem_bytes(self) -> int | None: ...
    @property
    def refused(self) -> tuple[str, ...]: ...


def nothing_left(
    graph: Graph, part: Part, overrides: Mapping[str, Any], sizes: Mapping[str, int], rows: Sequence[Refused], placed: Placed
) -> list[CfdslError]:
    """The mistakes to raise together. placed: what placing gave or raised, on every mesh that was tried."""
    mistakes = _said_on_every_mesh(placed.values())
    if mistakes:
        return mistakes
    on_a_mesh = [(row, found) for row in rows if isinstance(found := placed.get(row.config.mesh), PlacedGraph)]
    alike = [*_not_resident(graph, part, on_a_mesh), *_too_large(part, on_a_mesh, sizes)]
    said = [refused_by_slices(found, row.config, sizes) for row, found in on_a_mesh]
    blamed = [node for node in graph.leaves("linear") if said and all(node in each.values() for each in said)]
    if blamed:
        only = {reason for each in said for reason, node in each.items() if node in blamed}
        reasons = once_each([row for row, _ in on_a_mesh], only)
        alike.append(no_legal_config(graph, part, overrides, reasons, blamed[0].src))
    return alike or [no_legal_config(graph, part, overrides, once_each(rows))]


def no_legal_config(
    graph: Graph, part: Part, overrides: Mapping[str, Any], reasons: tuple[str, ...], src: Src | None = None
) -> NoLegalConfig:
    """The error that no config fits what the user has fixed. src: of the line to blame, where there is one."""
    given = " with " + ", ".join(f"{name}={value}" for name, value in overrides.items()) if overrides else ""
    return NoLegalConfig(fusion=graph.name, part=part.name, given=given, reasons=reasons, src=src)


def _said_on_every_mesh(placed: Iterable[object]) -> list[CfdslError]:
    """What placing said on every mesh that was tried: no other field of the config cures it, so it is told as it is."""
    said: list[dict[str, CfdslError]] = []
    for found in placed:
        if not isinstance(found, CfdslError):
            return []
        said.append({str(single): single for single in singles(found)})
    first, *others = said or [{}]
    return [mistake for text, mistake in first.items() if all(text in other for other in others)]


def _not_resident(graph: Graph, part: Part, rows: Sequence[tuple[Refused, PlacedGraph]]) -> list[CfdslError]:
    """Where no candidate's clusters all run at once and there is a grid barrier: of the one that comes closest."""
    room = [(row.config, part.resident(row.config.cluster_size, row.config.ctas_per_sm)) for row, _ in rows]
    waits = next((node for node in graph.nodes if node.op in GRID_COLLECTIVES), None)
    if not rows or waits is None or any(held is None or config.clusters <= held for config, held in room):
        return []
    config, held = max(room, key=lambda each: (each[1] or 0) / each[0].clusters)
    size, ctas = config.cluster_size, config.ctas_per_sm
    return [NotResident(clusters=config.clusters, resident=held or 0, size=size, part=part.name, ctas_per_sm=ctas, src=waits.src)]


def _too_large(part: Part, rows: Sequence[tuple[Refused, PlacedGraph]], sizes: Mapping[str, int]) -> list[CfdslError]:
    """Where no candidate's shared memory fits: the sum of the one that lacks least, and the line of its largest piece."""
    lacks = [(row.smem_bytes or 0) - part.smem_budget(row.config.ctas_per_sm) for row, _ in rows]
    if not rows or min(lacks) <= 0:
        return []
    row, found = rows[lacks.index(min(lacks))]
    needed, config = row.smem_bytes or 0, row.config
    pieces = [piece for piece in smem_pieces(found, config, sizes) if piece.bytes]
    rest = needed - sum(piece.bytes for piece in pieces)
    ring = config.stages * config.stage_bytes
    sums = [("ring", ring)] if rest >= ring else []
    sums += [(piece.name, piece.bytes) for piece in pieces]
    sums += [("alignment", left)] if (left := needed - sum(size for _, size in sums)) else []
    largest = max(pieces, key=lambda piece: piece.bytes, default=None)
    node = largest.node if largest is not None and (rest < ring or largest.bytes > ring) else None  # of the ring no line is to blame
    src = node.src if node is not None else None
    return [SharedMemoryExceeded(needed=needed, limit=part.smem_budget(config.ctas_per_sm), breakdown=sums, src=src)]


def once_each(rows: Sequence[Refused], only: set[str] | None = None) -> tuple[str, ...]:
    """Each reason once, with the configs it was said of when several were weighed; of those that differ in numbers only, the first."""
    first: dict[str, str] = {}
    shapes: dict[str, dict[str, None]] = {}
    for row in rows:
        for reason in row.refused if only is None else only.intersection(row.refused):
            kind = re.sub(r"(?<!\w)\d[\d,]*", "#", reason)
            first.setdefault(kind, reason)
            shapes.setdefault(kind, {})[f"{row.config.clusters}x{row.config.cluster_size}"] = None
    if len(rows) == 1:
        return tuple(first.values())
    return tuple(f"{reason} ({_some(tuple(shapes[kind]))})" for kind, reason in first.items())


def _some(shapes: Sequence[str]) -> str:
    more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
    return f"{', '.join(shapes[:4])}{more}"
