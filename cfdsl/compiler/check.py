"""Proofs about a plan, on the host: a mistake here is an error with the sum spelled out, and never a hung or corrupting GPU.

Each check is a function from a plan to the errors it found; `CHECKS` lists them. They recompute everything from the steps: none of them
trusts what the builder counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cfdsl.compiler.geometry import RowTiles
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import Barrier, Buffer, KernelPlan, Step
from cfdsl.compiler.schedule import separated

from cfdsl.errors import CfdslError, NotResident, PlanError, SharedMemoryExceeded, raise_all

MAX_TX = 2**20 - 1  # what one mbarrier phase can wait for
PUSHES = ("gather_push", "reduce_push", "scatter_push", "lse_push", "scalar_push")
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


def stream_order(plan: KernelPlan) -> Found:
    """Consumers eat every stream once, in the order in which the producer loads them."""
    eaten = [step.params["stream"] for step in plan.steps if "stream" in step.params]
    if eaten != list(range(len(plan.streams))):
        yield PlanError(what="tiles are eaten in another order than they are loaded", sum=f"{eaten} of {len(plan.streams)} streams")


def exchange_bytes(plan: KernelPlan) -> Found:
    """The bytes that a barrier is armed with are exactly those that the ranks push to it, and somebody waits for them, once."""
    for barrier in (b for b in plan.barriers if b.kind == "exchange"):
        terms = [(step.text, pushed_bytes(step, plan.mesh.ranks)) for step in plan.steps if step.op in PUSHES and _uses(step, barrier)]
        total = sum(nbytes for _, nbytes in terms)
        if total != barrier.tx_bytes:
            spelled = " + ".join(str(nbytes) for _, nbytes in terms) or "nothing"
            yield PlanError(
                what=f"{barrier.name} is armed with {barrier.tx_bytes} bytes, but {total} arrive", sum=f"{spelled} = {total}"
            )
        waits = [i for i, step in enumerate(plan.steps) if step.op == "wait" and _uses(step, barrier)]
        pushes = [i for i, step in enumerate(plan.steps) if step.op in PUSHES and _uses(step, barrier)]
        if len(waits) != 1:
            yield PlanError(
                what=f"{barrier.name} has one phase", sum=f"{len(waits)} waits: a rank that does not wait may leave while peers write to it"
            )
        elif pushes and max(pushes) > waits[0]:
            yield PlanError(what=f"{barrier.name} is waited for before the last push to it", sum=f"step {waits[0]} < step {max(pushes)}")


def pushed_bytes(step: Step, ranks: int) -> int:
    """Bytes that arrive at one rank from all ranks through one push step."""
    p = step.params
    if step.op == "scalar_push":
        return 4 * ranks
    if step.op == "lse_push":
        return 8 * p["heads"] * ranks
    return 4 * int(p["n"]) * ranks


def rendezvous(plan: KernelPlan) -> Found:
    """No rank pushes before every peer has initialised its barriers."""
    met = False
    for i, step in enumerate(plan.steps):
        met |= step.op == "rendezvous"
        if step.op in PUSHES and not met:
            yield PlanError(what="a push before the cluster's rendezvous", sum=f"step {i}: {step.text}", src=step.src)


def landing_places(plan: KernelPlan) -> Found:
    """What peers write into is reserved from the start until it has been waited for, and large enough."""
    for step in plan.steps:
        if step.op not in PUSHES:
            continue
        buffer = _buffer(plan, step.params.get("dst") or step.params["box"])
        if not buffer.peer_written or buffer.first != 0:
            yield PlanError(what=f"{buffer.name} is written by peers at any time", sum=f"but is reserved from step {buffer.first}", src=step.src)
        if buffer.bytes < pushed_bytes(step, plan.mesh.ranks):
            need = pushed_bytes(step, plan.mesh.ranks)
            yield PlanError(what=f"{buffer.name} is too small for what is pushed to it", sum=f"{buffer.bytes} < {need}", src=step.src)


def hazards(plan: KernelPlan) -> Found:
    """Between a write to shared memory and a read of it, or a read and the next write, the consumer warps have a barrier."""
    landed: set[str] = set()
    written: dict[str, int] = {}
    read: dict[str, int] = {}
    for i, step in enumerate(plan.steps):
        if step.op in SYNCS or step.op == "mean_square":  # the latter has a barrier inside
            written.clear()
            read.clear()
        if step.op == "wait":
            landed |= set(step.params["fills"])
        writes = set(step.out.split(",")) if step.out else set()
        for name in step.ins:
            if name in written:
                yield PlanError(what=f"{name} is read without a barrier", sum=f"written in step {written[name]}, read in {i}", src=step.src)
            if _buffer(plan, name).peer_written and name not in landed:
                yield PlanError(what=f"{name} is read before it has landed", sum=f"step {i}: {step.text}", src=step.src)
        for name in writes:
            if name in written or name in read:
                before = written.get(name, read.get(name))
                yield PlanError(what=f"{name} is overwritten without a barrier", sum=f"used in step {before}, written in {i}", src=step.src)
        written.update(dict.fromkeys(writes, i))
        read.update(dict.fromkeys(step.ins, i))


def lifetimes(plan: KernelPlan) -> Found:
    """A buffer is live in every step that uses it; buffers that share bytes have a barrier between their lives."""
    for i, step in enumerate(plan.steps):
        used = set(step.ins) | (set(step.out.split(",")) if step.out else set())
        for name in used:
            buffer = _buffer(plan, name)
            if not buffer.first <= i <= buffer.last:
                yield PlanError(what=f"{name} is used outside of its life", sum=f"step {i}, live {buffer.first} to {buffer.last}", src=step.src)
    for n, one in enumerate(plan.buffers):
        for other in plan.buffers[n + 1 :]:
            overlap = one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes
            if overlap and not separated(one, other, plan.steps):
                span = f"[{one.offset}, {one.offset + one.bytes}) and [{other.offset}, {other.offset + other.bytes})"
                yield PlanError(what=f"{one.name} and {other.name} share bytes while both are live", sum=span)


def layout(plan: KernelPlan) -> Found:
    """Ring, barriers and buffers do not overlap, are aligned, and end within the arena."""
    ring_end = plan.ring.offset + plan.ring.bytes if plan.ring else 0
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


def addresses(plan: KernelPlan) -> Found:
    """No CTA reads a weight past its end: the largest row and column of every stream, over all clusters and ranks."""
    shares = {share.name: share for share in plan.shares}
    for step in plan.steps:
        if step.op != "gemv":
            continue
        tiles: RowTiles = step.params["tiles"]
        stream = plan.streams[step.params["stream"]]
        arg = next(a for a in plan.args if a.name == stream.name)
        rows = int(arg.shape[0])
        if tiles.share is not None:
            share = shares[tiles.share]
            last = max(share.bounds(cta)[1] for cta in range(share.ctas))
        else:
            run = tiles.tiles * tiles.rows
            span = (run // tiles.block_rows - 1) * tiles.block_stride + tiles.block_rows if tiles.block_rows else run
            last = max(tiles.row0.at(at) for at in _coordinates(plan)) + span
        col = max(tiles.col0.at(at) for at in _coordinates(plan)) + tiles.cols
        if last > rows or col > tiles.ld:
            yield PlanError(what=f"{stream.name} is read past its end", sum=f"rows to {last} of {rows}, columns to {col} of {tiles.ld}", src=step.src)


def _coordinates(plan: KernelPlan) -> Iterator[dict[str, int]]:
    repeat = max([1, *(step.params["repeat"] for step in plan.steps if step.op == "append")])
    for cluster in range(plan.mesh.clusters):
        for rank in range(plan.mesh.ranks):
            yield {"cluster": cluster, "rank": rank, "kv_head": cluster // repeat}


def shares_cover(plan: KernelPlan) -> Found:
    """A partition over all CTAs has every row once."""
    for share in plan.shares:
        at = 0
        for cta in range(share.ctas):
            first, last = share.bounds(cta)
            if first != at or last - first > share.most:
                yield PlanError(what=f"{share.name} is not a partition", sum=f"CTA {cta} has rows {first} to {last}, the last ended at {at}")
            at = last
        if at != share.rows:
            yield PlanError(what=f"{share.name} is not a partition", sum=f"it ends at row {at} of {share.rows}")


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


def _uses(step: Step, barrier: Barrier) -> bool:
    return step.params.get("mbar") == barrier.name


def _buffer(plan: KernelPlan, name: str) -> Buffer:
    return next(buffer for buffer in plan.buffers if buffer.name == name)


CHECKS: tuple[Callable[[KernelPlan], Found], ...] = (
    ring_geometry, ring_barriers, stream_order, exchange_bytes, rendezvous, landing_places, hazards, lifetimes, layout, addresses,
    shares_cover,
)  # fmt: skip

__all__ = ["CHECKS", "check", "fits", "pushed_bytes"]
