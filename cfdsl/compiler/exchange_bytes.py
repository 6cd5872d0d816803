"""What the exchanges of a plan move, counted from its steps: of a CTA the most, and of the whole launch."""

from __future__ import annotations

from collections.abc import Mapping
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
        for counts, kinds in ((written, (WRITE, ADD)), (read, (READ,))):
            found = [access for access in touched[name] if access.kind in kinds]
            for cta, at in enumerate(plan.everywhere):
                counts[cta] += sizes[name] * _elements(cta, at, found)
    most = max(written)
    return replace(exchange, payload=most, sent_bytes=most, received_bytes=max(read), total=sum(written) + sum(read))


def _elements(cta: int, at: Mapping[str, int], found: list[Access]) -> int:
    """Elements that these accesses of one vector touch in a CTA."""
    mine = [access for access in found if access.done_by(at)]
    if len(mine) < 2:
        return sum(access.count(cta) for access in mine)
    return sum(n for *_, n in {(access.offset.at(at), access.block, access.stride, access.count(cta)) for access in mine})
