"""The list of checks, and those of the ring, the barriers and the buffers.

Each check is a function from a plan to the errors it found; `CHECKS` lists them. They recompute everything from the steps: none of them
trusts what the builder counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cfdsl.compiler.allocate import separated
from cfdsl.compiler.check.exchange import PUSHES, exchange_bytes, exchange_records, landing_places, pushed_bytes, rendezvous
from cfdsl.compiler.check.memory import cache_heads, fragments, shares_cover, vectors, workspaces
from cfdsl.compiler.check.multicast import buffers_as_they_are, early_requests, whole_vectors
from cfdsl.compiler.check.outputs import stored_whole, terms_once
from cfdsl.compiler.check.products import addresses, products, streamed_types
from cfdsl.compiler.check.shared import shared_vectors
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import KernelPlan, Step
from cfdsl.errors import CfdslError, NotResident, PlanError, SharedMemoryExceeded, raise_all

MAX_TX = 2**20 - 1  # what one mbarrier phase can wait for
SYNCS = ("sync", "grid_barrier")
Found = Iterator[CfdslError]


def check(plan: KernelPlan, part: Part) -> None:
    """Raise everything that is wrong with `plan`, or that keeps it from running on `part`."""
    errors = [error for rule in CHECKS for error in rule(plan)]
    errors += fits(plan, part)
    raise_all(errors)


def ring_geometry(plan: KernelPlan) -> Found:
    """Every tile fits a stage, and every bulk copy is a multiple of 16 bytes at an address that is one."""
    if plan.ring is None:
        return
    if plan.ring.stage_bytes % 128 or plan.ring.stages < 2:
        yield PlanError(what="a ring has at least 2 stages of a multiple of 128 bytes", sum=f"{plan.ring.stages} x {plan.ring.stage_bytes}")
    if plan.ring.early and not plan.ring.early < plan.ring.window < plan.ring.stages:
        total = f"{plan.ring.early} < {plan.ring.window} < {plan.ring.stages} is not so"
        yield PlanError(what="tiles for behind a grid barrier are some of those in flight, and those some of the stages", sum=total)
    for stream in plan.streams:
        if stream.tile_bytes > plan.ring.stage_bytes:
            total = f"{len(stream.tensors)} x {stream.rows} rows x {stream.cols} x {stream.itemsize} B = {stream.tile_bytes}"
            yield PlanError(what=f"a tile of {stream.name} does not fit a stage", sum=f"{total} > {plan.ring.stage_bytes}", src=stream.src)
        row = stream.cols * stream.itemsize
        if row % 16 or stream.ld * stream.itemsize % 16:
            yield PlanError(what=f"rows of {stream.name} are not multiples of 16 bytes", sum=f"{row} % 16 = {row % 16}", src=stream.src)


def ring_barriers(plan: KernelPlan) -> Found:
    """A full barrier gets one arrival, an empty one as many as there are consumer warps; no phase waits for too many bytes."""
    want = {"full": 1, "empty": plan.config.warps, "exchange": 1}
    for barrier in plan.barriers:
        if barrier.arrivals != want[barrier.kind]:
            yield PlanError(what=f"{barrier.name} expects the wrong arrivals", sum=f"{barrier.arrivals}, not {want[barrier.kind]}")
        if barrier.tx_bytes > MAX_TX:
            yield PlanError(what=f"{barrier.name} waits for more than a phase can count", sum=f"{barrier.tx_bytes} > {MAX_TX}")
        if barrier.kind != "exchange" and barrier.count != (plan.ring.stages if plan.ring else 0):
            stages = plan.ring.stages if plan.ring else 0
            yield PlanError(what=f"there is not one {barrier.name} barrier to a stage", sum=f"{barrier.count} of {stages}")
    largest = max((stream.tile_bytes for stream in plan.streams), default=0)
    for barrier in plan.barriers:
        if barrier.kind == "full" and barrier.tx_bytes != largest:
            yield PlanError(what=f"{barrier.name} does not wait for the largest tile", sum=f"{barrier.tx_bytes}, not {largest}")


def stream_order(plan: KernelPlan) -> Found:
    """Consumers eat every stream once, in the order in which the producer loads them."""
    eaten = [step.params["stream"] for step in plan.steps if "stream" in step.params]
    if eaten != list(range(len(plan.streams))):
        yield PlanError(what="tiles are eaten in another order than they are loaded", sum=f"{eaten} of {len(plan.streams)} streams")


def _continues(plan: KernelPlan, i: int) -> bool:
    """Whether a product goes on where the step before it, another product into the same buffer, ended: they write different rows."""
    step, before = plan.steps[i], plan.steps[i - 1]
    if step.op != "gemv" or before.op != "gemv" or step.out != before.out:
        return False
    tiles = before.params["tiles"]
    return bool(step.params["first"] == before.params["first"] + tiles.run)


def hazards(plan: KernelPlan) -> Found:
    """Between a write to shared memory and a read of it, or a read and the next write, the consumer warps have a barrier."""
    peer_written = {buffer.name for buffer in plan.buffers if buffer.peer_written}
    landed: set[str] = set()
    written: dict[str, int] = {}
    read: dict[str, int] = {}
    for i, step in enumerate(plan.steps):
        if step.op in SYNCS:
            written.clear()
            read.clear()
        if step.op == "wait":
            landed |= set(step.params["fills"])
        for name in step.ins:
            if name in written:
                total = f"written in step {written[name]}, read in {i}"
                yield PlanError(what=f"{name} is read without a barrier", sum=total, src=step.src)
            if name in peer_written and name not in landed:
                yield PlanError(what=f"{name} is read before it has landed", sum=f"step {i}: {step.text}", src=step.src)
        writes = written_by(step)
        for name in writes:
            if (name in written or name in read) and not _continues(plan, i):
                total = f"used in step {written.get(name, read.get(name))}, written in {i}"
                yield PlanError(what=f"{name} is overwritten without a barrier", sum=total, src=step.src)
        if step.op in ("mean_square", "argmax"):  # has a barrier between its write of the scratch and its read
            written.clear()
            read = dict.fromkeys(writes, i)
            continue
        written.update(dict.fromkeys(writes, i))
        read.update(dict.fromkeys(step.ins, i))


def written_by(step: Step) -> tuple[str, ...]:
    """The buffers that a step writes in its own CTA."""
    return tuple(step.out.split(",")) if step.out else ()


def lifetimes(plan: KernelPlan) -> Found:
    """A buffer is live in every step that uses it; buffers that share bytes have a barrier between their lives."""
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    for i, step in enumerate(plan.steps):
        landing = [step.params.get("dst") or step.params.get("box")] if step.op in PUSHES else []
        for name in dict.fromkeys((*step.ins, *written_by(step), *landing, *step.params.get("fills", ()))):
            buffer = buffers[name]
            if not buffer.first <= i <= buffer.last:
                total = f"step {i}, live {buffer.first} to {buffer.last}"
                yield PlanError(what=f"{name} is used outside of its life", sum=total, src=step.src)
    for n, one in enumerate(plan.buffers):
        for other in plan.buffers[n + 1 :]:
            overlap = one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes
            if overlap and not separated(one, other, plan.steps):
                span = f"[{one.offset}, {one.offset + one.bytes}) and [{other.offset}, {other.offset + other.bytes})"
                yield PlanError(what=f"{one.name} and {other.name} share bytes while both are live", sum=span)


def layout(plan: KernelPlan) -> Found:
    """Ring, barriers and buffers do not overlap, are aligned, and end within the arena."""
    ring_end = plan.ring.end if plan.ring else 0
    barriers_end = max([ring_end, *(b.offset + 8 * b.count for b in plan.barriers)])
    spans = sorted((b.offset, b.offset + 8 * b.count, b.name) for b in plan.barriers)
    for (_, end, name), (start, _, following) in zip(spans, spans[1:], strict=False):
        if start < end:
            yield PlanError(what=f"{name} and {following} overlap", sum=f"{start} < {end}")
    for barrier in plan.barriers:
        if barrier.offset < ring_end or barrier.offset % 8:
            yield PlanError(what=f"{barrier.name} is misplaced", sum=f"at {barrier.offset}, ring ends at {ring_end}")
    for buffer in plan.buffers:
        if buffer.offset % 16 or buffer.offset < barriers_end or buffer.offset + buffer.bytes > plan.smem_bytes:
            span = f"[{buffer.offset}, {buffer.offset + buffer.bytes}) of [{barriers_end}, {plan.smem_bytes})"
            yield PlanError(what=f"{buffer.name} is misplaced", sum=span)


def fits(plan: KernelPlan, part: Part) -> list[CfdslError]:
    """Shared memory, and all clusters at once where a grid barrier waits for them."""
    errors: list[CfdslError] = []
    budget = part.smem_budget(plan.config.ctas_per_sm)
    if plan.smem_bytes > budget:
        ring = [("ring", plan.ring.bytes)] if plan.ring else []
        rest = plan.smem_bytes - sum(nbytes for _, nbytes in ring)
        errors.append(SharedMemoryExceeded(needed=plan.smem_bytes, limit=budget, breakdown=(*ring, ("barriers and buffers", rest))))
    resident = part.resident(plan.config.cluster_size, plan.config.ctas_per_sm)
    if plan.needs_residency and resident is not None and resident < plan.mesh.clusters:
        errors.append(
            NotResident(
                clusters=plan.mesh.clusters, resident=resident, size=plan.config.cluster_size, part=part.name,
                ctas_per_sm=plan.config.ctas_per_sm,
            )
        )  # fmt: skip
    return errors


CHECKS: tuple[Callable[[KernelPlan], Found], ...] = (
    ring_geometry, ring_barriers, stream_order, exchange_bytes, exchange_records, rendezvous, landing_places, hazards, lifetimes, layout,
    addresses, streamed_types, products, vectors, fragments, shared_vectors, cache_heads, shares_cover, workspaces, stored_whole,
    terms_once, whole_vectors, early_requests, buffers_as_they_are,
)  # fmt: skip

__all__ = ["CHECKS", "check", "fits", "pushed_bytes"]
