"""Whole decode steps on the GPU at hand: time per token, its share of the memory's time, and each kernel of a step by itself.

How the length is held: a replay of the captured step advances it by one token, as decoding does, and nothing sets it back between
replays. A measurement begins at its context and is over `steps` tokens later; bytes are counted for the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from cfdsl.runtime import measure

WARMUP = 3
ROUND = 64


class Step(Protocol):
    """One launch of a step (fusions.decoder.Launch): a dataclass that launches its kernel when it is called."""

    name: str
    kernel: Any
    args: tuple[Tensor, ...]

    def __call__(self) -> None: ...


class Decodes(Protocol):
    """What is measured of fusions.decoder.Decoder."""

    launches: list[Any]
    caches: list[tuple[Tensor, Tensor]]
    capacity: int
    length: Tensor
    token: Tensor
    logits: Tensor

    def step(self) -> None: ...
    def reset(self, length: int = 0) -> None: ...
    def capture(self, advance: bool = True) -> Callable[[], None]: ...
    def kernel_bytes(self, length: int | None = None) -> int: ...
    def status(self, clear: bool = False) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class StepTimes:
    """Microseconds per token: the median, fastest and slowest of `steps`, and the mean over all of them back to back."""

    us: float
    fastest_us: float
    slowest_us: float
    mean_us: float
    steps: int


def capacity_for(context: int, steps: int) -> int:
    """Room for the context, the measured tokens and the warm-up, rounded up to a multiple of 64."""
    return -(-(context + max(steps, WARMUP) + 1) // ROUND) * ROUND


def time_steps(reset: Callable[[], None], replay: Callable[[], object], steps: int) -> StepTimes:
    """Time of each of `steps` calls of `replay`, enqueued without waiting, an event between any two.

    reset: sets the length to the context. Called before the warm-up and once more before the first measured step, and then never.
    """
    reset()
    for _ in range(WARMUP):
        replay()
    reset()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        replay()
        event.record()
    torch.cuda.synchronize()
    return summary([before.elapsed_time(after) * 1e3 for before, after in zip(events[:-1], events[1:], strict=True)])


def summary(times: Sequence[float]) -> StepTimes:
    """Of the microseconds of each step. The first one also waited for the host to launch it; the median does not mind."""
    return StepTimes(median(times), min(times), max(times), sum(times) / len(times), len(times))


def fill_caches(decoder: Decodes, seed: int = 0) -> None:
    """Random keys and values in every row of every cache, of the deviation that they have in a model: 1."""
    generator = torch.Generator(decoder.length.device).manual_seed(seed)
    for pair in decoder.caches:
        for cache in pair:
            cache.normal_(generator=generator)


def measure_steps(decoder: Decodes, context: int, steps: int, ceiling_gbps: float) -> dict[str, Any]:
    """Time per token from `context` cached tokens on, and its share of the time that the memory needs for the bytes."""
    replay = decoder.capture(advance=True)
    decoder.token.zero_()
    times = time_steps(lambda: decoder.reset(context), replay, steps)
    reached = int(decoder.length)
    moved = decoder.kernel_bytes(context + steps // 2)
    gbps = moved / times.us / 1e3
    return {
        "context": context,
        "capacity": decoder.capacity,
        "steps": steps,
        "advanced": reached - context,
        "us": times.us,
        "fastest_us": times.fastest_us,
        "slowest_us": times.slowest_us,
        "mean_us": times.mean_us,
        "tokens_per_s": 1e6 / times.us,
        "bytes": moved,
        "gbps": gbps,
        "of_ceiling": gbps / ceiling_gbps,
        "memory_us": moved / ceiling_gbps / 1e3,
        "flags": list(decoder.status(clear=True)),
    }


def measure_kernels(decoder: Decodes, length: int, ceiling_gbps: float) -> list[dict[str, Any]]:
    """Each distinct kernel of a step in a graph of its own, over the layers' weights and caches in turn, in launch order.

    length: cached tokens, for all launches: single kernels do not advance it. Where the layers' tensors together would stay in L2,
    copies of them are rotated over too; `cold` says whether that was enough.
    """
    decoder.reset(length)
    sizes = {"tokens": decoder.capacity, "positions": decoder.capacity, "length": length}
    rows = []
    for name in dict.fromkeys(launch.name for launch in decoder.launches):
        launches = [launch for launch in decoder.launches if launch.name == name]
        moved = int(launches[0].kernel.traffic(sizes).hbm_bytes)
        calls, cold = rotation(launches, moved, measure.l2_bytes())
        us = measure.time_graph(calls).us
        gbps = moved / us / 1e3
        rows.append(
            {
                "name": name, "launches": len(launches), "us": us, "step_us": us * len(launches), "bytes": moved, "gbps": gbps,
                "of_ceiling": gbps / ceiling_gbps, "cold": cold,
            }
        )  # fmt: skip
    return rows


def rotation(launches: Sequence[Any], moved: int, l2: int) -> tuple[list[Any], bool]:
    """The launches, and as many further ones on copies of their weights and caches as it takes to cover L2; and whether L2 is cold.

    moved: bytes of one launch.
    """
    rounds = math.ceil(measure.L2_COVER * l2 / max(moved * len(launches), 1))
    cold = rounds <= measure.MAX_SETS
    copies = [copied(launch) for _ in range(min(rounds, measure.MAX_SETS) - 1) for launch in launches] if cold else []
    return [*launches, *copies], cold


def copied(launch: Any) -> Any:
    """The same launch on copies of its weights and caches."""
    roles = [arg.role for arg in launch.kernel.args]
    args = tuple(tensor.clone() if role in ("weight", "cache") else tensor for role, tensor in zip(roles, launch.args, strict=True))
    return replace(launch, args=args)


def in_l2(moved: int, l2: int) -> str | None:
    """What is to be said of a step whose bytes may partly stay in L2 until the next one; None where they cannot."""
    if moved >= measure.L2_COVER * l2:
        return None
    return (
        f"a step moves {moved / 1e6:,.0f} MB and L2 holds {l2 / 1e6:,.0f} MB: part of the weights may stay in it from one token to the "
        "next, so the share of the memory's ceiling may be above what the memory alone allows"
    )


def logits_error(ours: Tensor, theirs: Tensor) -> float:
    """Relative difference of two decoders' logits after the same step."""
    return measure.relative_error(ours.flatten(), theirs.flatten())


def totals(kernels: Iterable[Mapping[str, Any]]) -> float:
    """Microseconds of all launches of a step, each kernel timed by itself."""
    return sum(row["step_us"] for row in kernels)
