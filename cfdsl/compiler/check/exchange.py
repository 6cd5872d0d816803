"""Proofs about exchanges: bytes, phases, and where and when what peers push may land."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cfdsl.compiler.check.multicast import multicast_bytes
from cfdsl.compiler.plan import Barrier, KernelPlan, Step
from cfdsl.dsl.exchange import PUSH
from cfdsl.errors import CfdslError, PlanError

PUSHES = ("gather_push", "reduce_push", "scatter_push", "lse_push", "scalar_push", "multicast", "terms_push")
VECTOR_PUSHES = ("gather_push", "reduce_push", "scatter_push", "terms_push")
Found = Iterator[CfdslError]


def exchange_bytes(plan: KernelPlan) -> Found:
    """The bytes that a barrier is armed with are exactly those that the ranks push to it, and somebody waits for them, once."""
    for barrier in (b for b in plan.barriers if b.kind == "exchange"):
        pushes = {i: pushed_bytes(step, plan.mesh.ranks) for i, step in enumerate(plan.steps) if step.op in PUSHES and _uses(step, barrier)}
        waits = [i for i, step in enumerate(plan.steps) if step.op == "wait" and _uses(step, barrier)]
        total = sum(pushes.values())
        if total != barrier.tx_bytes:
            spelled = " + ".join(map(str, pushes.values())) or "nothing"
            yield PlanError(what=f"{barrier.name} is armed with {barrier.tx_bytes} bytes, but {total} arrive", sum=f"{spelled} = {total}")
        if len(waits) != 1:
            total_waits = f"{len(waits)} waits: a rank that does not wait may leave while peers write to it"
            yield PlanError(what=f"{barrier.name} has one phase", sum=total_waits)
        elif pushes and max(pushes) > waits[0]:
            yield PlanError(what=f"{barrier.name} is waited for before the last push to it", sum=f"step {waits[0]} < step {max(pushes)}")


def exchange_records(plan: KernelPlan) -> Found:
    """Every barrier of an exchange serves one exchange alone, whose record says how many bytes it gets."""
    armed = {b.name: b.tx_bytes for b in plan.barriers if b.kind == "exchange"}
    served = Counter(exchange.barrier for exchange in plan.exchanges if exchange.barrier is not None)
    for name, count in served.items():
        if count > 1:
            users = ", ".join(exchange.name for exchange in plan.exchanges if exchange.barrier == name)
            yield PlanError(what=f"{name} is used by {count} exchanges and has one phase", sum=users)
    for name in armed.keys() - served.keys():
        yield PlanError(what=f"{name} belongs to no exchange", sum=f"armed with {armed[name]} bytes")
    for exchange in plan.exchanges:
        if exchange.barrier is None:
            continue
        if exchange.received_bytes != armed.get(exchange.barrier):
            got = f"{exchange.received_bytes} bytes, {exchange.barrier} is armed with {armed.get(exchange.barrier)}"
            yield PlanError(what=f"{exchange.name} gets other bytes than its barrier counts", sum=got, src=exchange.src)
        ranks = plan.mesh.ranks  # who all send alike
        if exchange.algorithm == "push" and exchange.sent_bytes * ranks != exchange.received_bytes * (ranks - 1):
            sent = f"{exchange.sent_bytes} to {ranks - 1} peers, of whom each gets {exchange.received_bytes} from {ranks} ranks"
            yield PlanError(what=f"{exchange.name} sends other bytes than it gets", sum=sent, src=exchange.src)


def pushed_bytes(step: Step, ranks: int) -> int:
    """Bytes that arrive at one rank from all ranks through one push step."""
    p = step.params
    if step.op == "multicast":
        return multicast_bytes(step)
    if step.op == "scalar_push":
        return 4 * ranks
    if step.op == "lse_push":
        return 8 * int(p["heads"]) * ranks
    return 4 * int(p["n"]) * ranks


def rendezvous(plan: KernelPlan) -> Found:
    """No rank pushes before every peer has initialised its barriers; the cluster meets once."""
    met = [i for i, step in enumerate(plan.steps) if step.op == "rendezvous"]
    if len(met) > 1:
        yield PlanError(what="a second rendezvous waits for arrivals that never come", sum=f"steps {', '.join(map(str, met))}")
    for i, step in enumerate(plan.steps):
        if step.op in PUSHES and not (met and met[0] < i):
            yield PlanError(what="a push before the cluster's rendezvous", sum=f"step {i}: {step.text}", src=step.src)


def landing_places(plan: KernelPlan) -> Found:
    """What peers write into is reserved until it has been waited for, large enough, and named by the wait.

    Reserved from the start, or from a grid barrier before the push: nobody pushes before all CTAs are done with what was there.
    """
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    fills = {step.params["mbar"]: step.params["fills"] for step in plan.steps if step.op == "wait"}
    for i, step in enumerate(plan.steps):
        if step.op not in PUSHES:
            continue
        buffer, need = buffers[step.params.get("dst") or step.params["box"]], pushed_bytes(step, plan.mesh.ranks)
        met = 0 < buffer.first <= i and plan.steps[buffer.first - 1].op == "grid_barrier"
        if not buffer.peer_written or not (buffer.first == 0 or met):
            reserved = f"but is reserved from step {buffer.first}" if buffer.first else "but is not marked so"
            yield PlanError(what=f"{buffer.name} is written by peers at any time", sum=reserved, src=step.src)
        if buffer.bytes < need:
            yield PlanError(what=f"{buffer.name} is too small for what is pushed to it", sum=f"{buffer.bytes} < {need}", src=step.src)
        if buffer.name not in fills.get(step.params["mbar"], (buffer.name,)):
            named = ", ".join(fills[step.params["mbar"]])
            yield PlanError(what=f"{buffer.name} lands on {step.params['mbar']}", sum=f"whose wait names {named}", src=step.src)
        block = step.params["block"] if step.op in VECTOR_PUSHES else 0
        if block % PUSH:
            total = f"{block} % {PUSH} = {block % PUSH}"
            yield PlanError(what=f"blocks pushed to {buffer.name} are not multiples of 16 bytes", sum=total, src=step.src)


def _uses(step: Step, barrier: Barrier) -> bool:
    return step.params.get("mbar") == barrier.name
