"""Plans to test with: of given fusions, models and configs, without a cost model in between; and ways to damage them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from cfdsl import Mesh, place
from cfdsl.compiler.config import Config
from cfdsl.compiler.emit import with_marks
from cfdsl.compiler.plan import Buffer, Exchange, KernelPlan, Step
from cfdsl.compiler.schedule import schedule
from cfdsl.dsl.graph import Graph
from fusions.attention_block import attention_block
from fusions.decoder_layer import decoder_layer
from fusions.ffn_block import ffn_block
from fusions.rms_norm import rms_norm

Pairs = tuple[tuple[str, Any], ...]  # a dictionary that can be a key
LLAMA = "llama-2-7b"
FLOWS = [{"qkv": qkv, "out": out} for qkv in ("rows", "split_k") for out in ("gather", "atomic")]


def plan_graph(graph: Graph, clusters: int, cluster_size: int, model: str = "", **fields: Any) -> KernelPlan:
    """The plan of a graph under exactly this config (4 stages unless said otherwise)."""
    config = Config(clusters=clusters, cluster_size=cluster_size, **{"stages": 4, **fields})
    return with_marks(schedule(place(graph, Mesh(clusters, cluster_size, config.splits)), config, model))


@functools.cache
def _block(model: str, clusters: int, cluster_size: int, options: Pairs, fields: Pairs) -> KernelPlan:
    return plan_graph(attention_block.trace(model, **dict(options)), clusters, cluster_size, model, **dict(fields))


def block(model: str = LLAMA, clusters: int = 32, cluster_size: int = 4, qkv: str = "rows", out: str = "gather", layout: str = "bhtd",
          **fields: Any) -> KernelPlan:  # fmt: skip
    """A plan of the attention block."""
    return _block(model, clusters, cluster_size, (("qkv", qkv), ("out", out), ("layout", layout)), tuple(sorted(fields.items())))


@functools.cache
def norm(model: str = LLAMA, batch: int = 1, cluster_size: int = 4, **fields: Any) -> KernelPlan:
    """A plan of RMSNorm, one row per cluster."""
    return plan_graph(rms_norm.trace(model, batch), batch, cluster_size, model, **fields)


@functools.cache
def ffn(model: str = LLAMA, clusters: int = 132, cluster_size: int = 1, **fields: Any) -> KernelPlan:
    """A plan of the feed-forward block."""
    return plan_graph(ffn_block.trace(model), clusters, cluster_size, model, **{"ctas_per_sm": 1, **fields})


@functools.cache
def layer(model: str, clusters: int, cluster_size: int, qkv: str = "grid", **fields: Any) -> KernelPlan:
    """A plan of a whole decoder layer."""
    return plan_graph(decoder_layer.trace(model, qkv=qkv), clusters, cluster_size, model, **{"ctas_per_sm": 1, **fields})


def shipped() -> Iterator[tuple[str, KernelPlan]]:
    """A plan for each way in which a shipped fusion's protocol differs, by name."""
    for flow in FLOWS:
        for model, clusters, ranks in ((LLAMA, 32, 4), (LLAMA, 32, 1), (LLAMA, 8, 8), ("llama-3.1-8b", 8, 8), ("llama-3.1-8b", 32, 4),
                                       ("smollm2-135m", 9, 4)):  # fmt: skip
            yield f"{model} {clusters}x{ranks} {flow['qkv']} {flow['out']}", block(model, clusters, ranks, **flow)
    for clusters, splits in ((8, 1), (16, 2), (24, 3)):
        yield f"llama-3.1-8b {clusters}x4 grid, {splits} splits", block("llama-3.1-8b", clusters, 4, "grid", splits=splits, stages=3)
    for model, ranks, fields in ((LLAMA, 1, {}), ("llama-3.1-8b", 2, {}), ("smollm2-135m", 4, {}), (LLAMA, 8, {"stage_bytes": 4096})):
        yield f"ffn_block {model} x{ranks} {fields or ''}", ffn(model, 120 // ranks, ranks, **fields)
    for model, clusters, ranks, fields in ((LLAMA, 64, 2, {"splits": 2}), ("llama-3.2-1b", 64, 2, {"splits": 8}),
                                           ("smollm2-135m", 9, 8, {"qkv": "rows"})):  # fmt: skip
        yield f"decoder_layer {model} {clusters}x{ranks}", layer(model, clusters, ranks, **fields)
    for ranks in (1, 16):
        yield f"rms_norm x{ranks}", norm(cluster_size=ranks)
    yield "multicast", block(multicast=True)
    yield "rms_norm multicast", norm(multicast=True)


def steps_of(plan: KernelPlan, op: str) -> list[int]:
    """The numbers of the steps with this op."""
    return [i for i, step in enumerate(plan.steps) if step.op == op]


def step_of(plan: KernelPlan, op: str) -> int:
    """The number of the first step with this op."""
    return steps_of(plan, op)[0]


def without(plan: KernelPlan, *steps: int) -> KernelPlan:
    """The plan without these steps; lifetimes and records follow, so that nothing else is wrong with it."""

    def moved(at: int) -> int:
        return at - sum(step < at for step in steps)

    return replace(
        plan,
        steps=tuple(step for i, step in enumerate(plan.steps) if i not in steps),
        buffers=tuple(replace(b, first=moved(b.first), last=moved(b.last)) for b in plan.buffers),
        exchanges=tuple(replace(e, step=moved(e.step)) for e in plan.exchanges),
    )


def with_step(plan: KernelPlan, at: int, change: Callable[[Step], Step]) -> KernelPlan:
    """The plan with one step changed."""
    return replace(plan, steps=tuple(change(step) if i == at else step for i, step in enumerate(plan.steps)))


def with_params(plan: KernelPlan, at: int, **params: Any) -> KernelPlan:
    """The plan with parameters of one step changed."""
    return with_step(plan, at, lambda step: replace(step, params={**step.params, **params}))


def with_buffer(plan: KernelPlan, name: str, **fields: Any) -> KernelPlan:
    """The plan with one buffer changed."""
    return replace(plan, buffers=tuple(replace(b, **fields) if b.name == name else b for b in plan.buffers))


def with_barrier(plan: KernelPlan, name: str, **fields: Any) -> KernelPlan:
    """The plan with one barrier changed."""
    return replace(plan, barriers=tuple(replace(b, **fields) if b.name == name else b for b in plan.barriers))


def with_exchange(plan: KernelPlan, index: int, **fields: Any) -> KernelPlan:
    """The plan with one exchange's record changed."""
    changed: list[Exchange] = list(plan.exchanges)
    changed[index] = replace(changed[index], **fields)
    return replace(plan, exchanges=tuple(changed))


def buffer(plan: KernelPlan, name: str) -> Buffer:
    """A buffer by name."""
    return next(b for b in plan.buffers if b.name == name)
