"""The load stream of the busiest CTA as a sequence of runs, with the KV length filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cfdsl.compiler.plan import KernelPlan, Step, Stream


@dataclass(frozen=True)
class Run:
    """One stream's place in the load stream: `tiles` tiles, bytes `begin` to `end` of what the CTA loads in all."""

    stream: Stream
    tiles: int
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.begin


def tiles_of(stream: Stream, ranks: int, kv_len: int) -> int:
    """Tiles of the busiest CTA; where the plan leaves them to the KV length, for `kv_len` tokens split over the ranks."""
    if stream.tiles is not None:
        return stream.tiles
    return math.ceil(math.ceil(kv_len / ranks) / stream.rows) * max(stream.blocks, 1)


def runs(plan: KernelPlan, kv_len: int) -> tuple[Run, ...]:
    """The load stream of the busiest CTA for a cache of `kv_len` tokens."""
    found, at = [], 0
    for stream in plan.streams:
        tiles = tiles_of(stream, plan.mesh.ranks, kv_len)
        found.append(Run(stream, tiles, at, at + tiles * stream.tile_bytes))
        at = found[-1].end
    return tuple(found)


def stream_of(step: Step, plan: KernelPlan) -> int | None:
    """The index of the stream whose tiles a step eats, if it eats any."""
    index = step.params.get("stream")
    return index if isinstance(index, int) and index < len(plan.streams) else None
