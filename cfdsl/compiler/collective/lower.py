"""From a request to what a kernel is made of: the design, its proof, the launch's arguments, the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cfdsl.compiler.collective.check import check
from cfdsl.compiler.collective.choose import choose, explain
from cfdsl.compiler.collective.design import Design
from cfdsl.compiler.collective.protocol import protocol_text
from cfdsl.compiler.collective.request import Collective
from cfdsl.compiler.config import Config
from cfdsl.compiler.emit.collective import emit_collective
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import Arg, KernelPlan
from cfdsl.dsl.placement import Mesh

LINE = 32  # words between the counters of clusters in device memory; mirrors `primitives.offchip.LINE`


@dataclass(frozen=True)
class LoweredCollective:
    """What the runtime makes a kernel from. `stages`: the choice, the protocol ("plan"), the source."""

    design: Design
    part: Part
    plan: KernelPlan
    source: str
    choice: str

    @property
    def stages(self) -> Mapping[str, str]:
        return {"choice": self.choice, "plan": protocol_text(self.design.protocol), "source": self.source}


def lower_collective(request: Collective, part: Part, algorithm: str | None = None) -> LoweredCollective:
    """Choose, prove, write down. Raises everything that is wrong with the request; a protocol that does not hold is a PlanError."""
    design, found = choose(request, part, algorithm)
    check(design.protocol)
    plan = plan_of(design)
    return LoweredCollective(design, part, plan, emit_collective(plan, design), explain(found, design))


def plan_of(design: Design) -> KernelPlan:
    """The launch: its arguments, mesh, threads and shared memory. Steps, buffers and barriers are the protocol's."""
    request = design.request
    config = Config(
        clusters=request.clusters, cluster_size=request.cluster, stages=0, stage_bytes=0, warps=design.warps, ctas_per_sm=1, window=0
    )
    op = f"_{request.op}" if request.folds else ""
    return KernelPlan(
        name=f"{request.kind}{op}_{design.algorithm}", model="", dtype=request.dtype, mesh=Mesh(request.clusters, request.cluster),
        config=config, args=tuple(_args(design)), ring=None, streams=(), buffers=(), barriers=(), steps=(), exchanges=(),
        smem_bytes=design.smem_bytes, needs_residency=False,
    )  # fmt: skip


def _args(design: Design) -> list[Arg]:
    request = design.request
    ctas = (request.clusters, request.cluster)
    args = [Arg("x", (*ctas, *request.shape), request.dtype, "input")]
    if request.lse:
        args.append(Arg("ml", (*ctas, request.heads, 2), "f32", "input"))
    args.append(Arg("y", (*ctas, *request.result_shape), request.dtype, "output", mutated=True))
    if request.timed:
        args.append(Arg("cycles", ctas, "i32", "output", mutated=True))
    if design.offchip:
        args.append(Arg("ws_sync", (LINE * (1 + request.clusters),), "i32", "workspace", mutated=True))
        args.append(Arg("ws_rows", (design.workspace_words(),), "f32", "workspace", mutated=True))
    return args
