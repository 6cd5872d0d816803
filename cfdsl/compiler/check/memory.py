"""Proofs about global memory: nobody reads or writes past an end, every row has one owner, workspaces are complete when they are read."""

from __future__ import annotations

from collections.abc import Iterator

from cfdsl.compiler.accesses import accesses
from cfdsl.compiler.geometry import CHUNK, COPY_BYTES
from cfdsl.compiler.plan import KernelPlan, Step
from cfdsl.errors import CfdslError, PlanError

Found = Iterator[CfdslError]


def vectors(plan: KernelPlan) -> Found:
    """Elementwise reads and stores stay within their argument."""
    sizes = {arg.name: arg.elements for arg in plan.args}
    for step in plan.steps:
        for access in accesses(plan, step):
            starts = [access.offset.at(at) for at in corners(plan)]
            ends = [start + access.reach(cta) for start, cta in zip(starts, _corner_ctas(plan), strict=True)]
            if min(starts) < 0 or max(ends) > sizes[access.name]:
                total = f"elements {min(starts)} to {max(ends)} of {sizes[access.name]}"
                yield PlanError(what=f"{access.name} is used past its end in {step.op}", sum=total, src=step.src)


def fragments(plan: KernelPlan) -> Found:
    """Fragments are whole chunks, and start at chunks, in every CTA: a pointer that is said to be aligned and is not moves silently."""
    aligned = {arg.name: arg.align for arg in plan.args}
    for step in plan.steps:
        p = step.params
        if "tiles" not in p or step.op == "decode":
            continue
        if p["tiles"].tile_cols % CHUNK:
            yield PlanError(what=f"a fragment in {step.op} ends within a chunk", sum=f"{p['tiles'].tile_cols} % {CHUNK}", src=step.src)
        places = [(leaf.name, leaf.offset) for leaf in p["tree"].walk() if leaf.kind in ("leaf", "smem")] if "tree" in p else []
        for name, offset in [*places, (p["dst"], p["offset"])] if step.op == "store_fragment" else places:
            if any(k % CHUNK for k in (offset.const, *(k for _, k in offset.terms))):
                yield PlanError(what=f"a fragment of {name} starts within a chunk", sum=f"{offset}, not in {CHUNK}s", src=step.src)
            if aligned.get(name, COPY_BYTES) % COPY_BYTES:
                total = f"{aligned[name]} bytes, not {COPY_BYTES}"
                yield PlanError(what=f"a fragment is read from or written to {name}, which is aligned to less", sum=total, src=step.src)


def shares_cover(plan: KernelPlan) -> Found:
    """A partition over all CTAs has every row once."""
    for share in plan.shares:
        at = 0
        for cta in range(share.ctas):
            first, last = share.bounds(cta)
            if first != at or last - first > share.most:
                total = f"CTA {cta} has rows {first} to {last}, the last ended at {at}"
                yield PlanError(what=f"{share.name} is not a partition", sum=total)
            at = last
        if at != share.rows or share.ctas != plan.mesh.ctas:
            total = f"it ends at row {at} of {share.rows}, over {share.ctas} of {plan.mesh.ctas} CTAs"
            yield PlanError(what=f"{share.name} is not a partition", sum=total)


def cache_heads(plan: KernelPlan) -> Found:
    """A cluster's heads of a cache exist."""
    for step in plan.steps:
        if step.op in ("append", "decode"):
            cache = step.params["cache"]
            last = max(cache.base.at(at) for at in corners(plan)) + cache.heads
            if last > cache.all_heads:
                total = f"heads to {last} of {cache.all_heads}"
                yield PlanError(what=f"{cache.name} is used past its last head", sum=total, src=step.src)


def workspaces(plan: KernelPlan) -> Found:
    """Between a CTA's write to a workspace and another's read there is a grid barrier; sums are zero again for the next launch."""
    ours = {arg.name for arg in plan.args if arg.role == "workspace"}
    pending: dict[str, int] = {}
    summed: dict[str, Step] = {}
    cleared: dict[str, int] = {}
    for i, step in enumerate(plan.steps):
        if step.op == "grid_barrier":
            pending.clear()
        for name in step.reads:
            if name in cleared:
                total = f"zeroed in step {cleared[name]}, read in {i}"
                yield PlanError(what=f"{name} is read after it was cleared", sum=total, src=step.src)
            if name in pending:
                total = f"written in step {pending[name]}, read in {i}"
                yield PlanError(what=f"{name} is read without a grid barrier", sum=total, src=step.src)
        if step.op == "atomic_add":
            summed[step.params["workspace"]] = step
        if step.op not in ("fetch", "terms_push", "store_index"):
            pending |= dict.fromkeys(ours.intersection(str(step.params.get(key)) for key in ("workspace", "dst", "outs", "stats")), i)
        for name in step.params.get("clears", ()):
            summed.pop(name, None)
            cleared[name] = i
    for name, step in summed.items():
        yield PlanError(what=f"{name} is not zero when the next launch adds to it", sum="no step clears it", src=step.src)
    if not plan.needs_residency and any(step.op == "grid_barrier" for step in plan.steps):
        yield PlanError(what="a grid barrier needs all clusters at once", sum="but the plan does not ask for it")


def corners(plan: KernelPlan) -> list[dict[str, int]]:
    """The coordinates of the CTAs where an affine offset may have its least or largest value, with the least and largest indices there."""
    bounds = {step.params["out"]: (0, step.params["rows"] - 1) for step in plan.steps if step.op == "index"}
    ctas = [plan.coordinates(cta) for cta in _outermost(plan)]
    return [at | {name: pair[end] for name, pair in bounds.items()} for end in (0, 1)[: 1 + bool(bounds)] for at in ctas]


def _corner_ctas(plan: KernelPlan) -> list[int]:
    """The CTA of each of `corners`."""
    return _outermost(plan) * (1 + any(step.op == "index" for step in plan.steps))


def _outermost(plan: KernelPlan) -> list[int]:
    ctas, ranks = plan.mesh.ctas, plan.mesh.ranks
    return [0, ranks - 1, ctas - ranks, ctas - 1]
