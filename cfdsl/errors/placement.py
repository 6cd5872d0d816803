"""Mistakes in a spec: where values live, and how they move."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.errors.base import CfdslError


@dataclass(eq=False, kw_only=True)
class NeedsReduce(CfdslError):
    """A Partial is used where the value itself is needed."""

    op: str
    argument: str
    placement: str
    axis: str
    collective: str
    _says = "{op} needs a value, but {argument} is {placement} on the {axis} axis: each holder has only a term of it."
    _remedy = "needs {collective}: call {collective} on {argument} before this line."


@dataclass(eq=False, kw_only=True)
class ShardDoesNotDivide(CfdslError):
    """A dimension cannot be cut into the slices that a placement asks for."""

    op: str
    dim: int
    size: int | str
    parts: int
    axis: str
    advice: str = "choose a number that divides it, or shard another dimension"
    _says = "{op} cannot shard dimension {dim} of size {size} over {parts} {axis}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class WrongCollective(CfdslError):
    """A collective is called on a value that it cannot move."""

    call: str
    moves: str
    argument: str
    placement: str
    legal: str
    _says = "{call} moves {moves}, but {argument} is placed {placement}."
    _remedy = "{legal}."


@dataclass(eq=False, kw_only=True)
class PlacementMismatch(CfdslError):
    """Two values that must be placed alike are not, or a value is sharded along a dimension that the op needs whole."""

    op: str
    problem: str
    legal: str
    _says = "{op}: {problem}."
    _remedy = "{legal}."


@dataclass(eq=False, kw_only=True)
class ClustersDoNotDivide(CfdslError):
    """The number of clusters (with splits: of groups of clusters) does not go with the number of work units."""

    over: int
    clusters: int
    splits: int = 1

    @property
    def message(self) -> str:
        return f"{self.over} work units cannot be spread over {self.clusters} {self._holders}: neither number divides the other."

    @property
    def remedy(self) -> str:
        return f"use a number of {self._holders} that divides {self.over}, or a multiple of {self.over}."

    @property
    def _holders(self) -> str:
        return "clusters" if self.splits == 1 else f"groups of {self.splits} clusters"


@dataclass(eq=False, kw_only=True)
class NothingToSplit(CfdslError):
    """Several clusters are to share a unit by splitting its tokens, but the fusion does not split them."""

    fusion: str
    splits: int
    _says = "{splits} clusters share a unit, but {fusion} has no attend(..., shard='tokens', across='all'): they would repeat its work."
    _remedy = "use splits=1, or a dataflow that splits tokens over clusters (of attention_block: qkv='grid')."
