"""What the exchanges of a plan move, counted from its steps: of a CTA the most, and of the whole launch."""

from __future__ import annotations

from dataclasses import replace

from cfdsl.compiler.accesses import ADD, READ, WRITE, Access, accesses
from cfdsl.compiler.plan import Exchange, KernelPlan
from cfdsl.dsl.graph import ITEMSIZE


def with_counted(plan: KernelPlan) -> KernelPlan:
    """The plan with the bytes of its exchanges. A CTA counts an element that it reads twice in the same way once: it comes from its L1."""
    touched: dict[str, list[Access]] = {}
    for step in plan.steps:
        for access in accesses(plan, step):
            touched.setdefault(access.name, []).append(access)
    return replace(plan, exchanges=tuple(_counted(plan, exchange, touched) for exchange in plan.exchanges))


def _counted(plan: KernelPlan, exchange: Exchange, touched: dict[str, list[Access]]) -> Exchange:
    if exchange.scope == "cluster":
        ranks = plan.mesh.ranks
        sent = exchange.received_bytes * (ranks - 1) if exchange.algorithm == "multicast" else exchange.sent_bytes * ranks
        return replace(exchange, total=sent * plan.mesh.clusters)
    sizes = {arg.name: ITEMSIZE[arg.dtype] for arg in plan.args}
    written, read = ([0] * plan.mesh.ctas for _ in range(2))
    for name in exchange.values:
        for cta in range(plan.mesh.ctas):
            written[cta] += sizes[name] * _elements(plan, cta, touched[name], (WRITE, ADD))
            read[cta] += sizes[name] * _elements(plan, cta, touched[name], (READ,))
    most = max(written)
    return replace(exchange, payload=most, sent_bytes=most, received_bytes=max(read), total=sum(written) + sum(read))


def _elements(plan: KernelPlan, cta: int, found: list[Access], kinds: tuple[str, ...]) -> int:
    at = plan.coordinates(cta)
    mine = {(a.offset.at(at), a.block, a.stride, a.count(cta)) for a in found if a.kind in kinds and a.done_by(at)}
    return sum(n for *_, n in mine)
