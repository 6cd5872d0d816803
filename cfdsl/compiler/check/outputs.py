"""Proofs about what is stored: of an output, or a workspace that is gathered, every element; of a sum, every cluster's term once."""

from __future__ import annotations

from collections.abc import Iterator

from cfdsl.compiler.accesses import WRITE, Run, accesses
from cfdsl.compiler.plan import KernelPlan
from cfdsl.errors import CfdslError, PlanError

Found = Iterator[CfdslError]


def stored_whole(plan: KernelPlan) -> Found:
    """No element of an output or of a gathered workspace is left as it was."""
    sizes = {arg.name: arg.elements for arg in plan.args}
    runs: dict[str, list[Run]] = {arg.name: [] for arg in plan.args if arg.role == "output"}
    sources = {}
    for step in plan.steps:
        for access in accesses(plan, step):
            if access.kind == WRITE:
                runs.setdefault(access.name, []).extend(access.runs(plan))
                sources[access.name] = step.src
    for name, found in runs.items():
        reached = 0
        for first, last in sorted(found):
            if first > reached:
                break
            reached = max(reached, last)
        if reached < sizes[name]:
            yield PlanError(what=f"{name} is not stored whole", sum=f"element {reached} of {sizes[name]} is missing", src=sources.get(name))


def terms_once(plan: KernelPlan) -> Found:
    """Each cluster adds one term to each element of a sum: two ranks that have the same term do not both add it."""
    sizes = {arg.name: arg.elements for arg in plan.args}
    for step in plan.steps:
        if step.op != "atomic_add":
            continue
        name, n = step.params["workspace"], step.params["rows"]
        for cluster in (0, plan.mesh.clusters - 1):
            ctas = [cluster * plan.mesh.ranks + rank for rank in range(1 if step.params["alone"] else plan.mesh.ranks)]
            starts = sorted(step.params["offset"].at(plan.coordinates(cta)) for cta in ctas)
            if starts != list(range(0, sizes[name], n)) or n * len(starts) != sizes[name]:
                total = f"{len(starts)} x {n} elements of {sizes[name]}, by cluster {cluster}"
                yield PlanError(what=f"{name} does not get every term once", sum=total, src=step.src)
