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


def tiles_of(stream: Stream, holders: int, kv_len: int) -> int:
    """Tiles of the busiest CTA; where the plan leaves them to the KV length, for `kv_len` tokens dealt to `holders` CTAs by tiles."""
    if stream.tiles is not None:
        return stream.tiles
    return math.ceil(math.ceil(kv_len / stream.rows) / holders) * max(stream.blocks, 1)


def holders_of(index: int, plan: KernelPlan) -> int:
    """How many CTAs share the tokens of a stream: the ranks of a cluster, times the clusters that split a unit's tokens."""
    for step in plan.steps:
        if stream_of(step, plan) == index:
            return int(step.params.get("splits", 1)) * (plan.mesh.ranks if step.params.get("sharded", True) else 1)
    return plan.mesh.ranks


def runs(plan: KernelPlan, kv_len: int) -> tuple[Run, ...]:
    """The load stream of the busiest CTA for a cache of `kv_len` tokens."""
    found, at = [], 0
    for index, stream in enumerate(plan.streams):
        tiles = tiles_of(stream, holders_of(index, plan), kv_len)
        found.append(Run(stream, tiles, at, at + tiles * stream.tile_bytes))
        at = found[-1].end
    return tuple(found)


def stream_of(step: Step, plan: KernelPlan) -> int | None:
    """The index of the stream whose tiles a step eats, if it eats any."""
    index = step.params.get("stream")
    return index if isinstance(index, int) and index < len(plan.streams) else None
