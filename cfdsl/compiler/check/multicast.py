"""Proofs about launch arguments that come by multicast: the right bytes, at the right time, read as what they are."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from cfdsl.compiler.check.memory import corners
from cfdsl.compiler.geometry import COPY_BYTES
from cfdsl.compiler.plan import Arg, KernelPlan, Step
from cfdsl.dsl.graph import ITEMSIZE
from cfdsl.errors import CfdslError, PlanError

Found = Iterator[CfdslError]


def multicast_bytes(step: Step) -> int:
    """Bytes that arrive at one rank through one multicast step: every rank's piece of whole chunks."""
    return int(step.params["n"]) * int(step.params["itemsize"]) // COPY_BYTES * COPY_BYTES


def whole_vectors(plan: KernelPlan) -> Found:
    """A multicast moves a whole launch argument, in whole chunks, to a buffer of its type and size."""
    args = {arg.name: arg for arg in plan.args}
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    for step in plan.steps:
        if step.op != "multicast":
            continue
        p = step.params
        arg, buffer = args.get(p["arg"]), buffers.get(p["dst"])
        if arg is None or arg.role not in ("input", "weight") or arg.mutated:
            yield PlanError(what=f"{p['arg']} is multicast", sum="but is no input or weight of the launch", src=step.src)
            continue
        if buffer is None or (buffer.dtype, buffer.shape) != (arg.dtype, (p["n"],)):
            landing = f"{buffer.shape} {buffer.dtype}" if buffer else "nothing"
            yield PlanError(what=f"{arg.name} does not land in its like", sum=f"{p['n']} {arg.dtype} into {landing}", src=step.src)
        nbytes = _elements(arg) * ITEMSIZE[arg.dtype]
        if p["n"] != _elements(arg) or p["itemsize"] != ITEMSIZE[arg.dtype]:
            total = f"{p['n']} x {p['itemsize']} B of {_elements(arg)} x {ITEMSIZE[arg.dtype]} B"
            yield PlanError(what=f"{arg.name} is not multicast as it is", sum=total, src=step.src)
        if nbytes % COPY_BYTES or arg.align % COPY_BYTES:
            total = f"{nbytes} % {COPY_BYTES} = {nbytes % COPY_BYTES}, aligned to {arg.align}"
            yield PlanError(what=f"{arg.name} cannot be cut into pieces of whole chunks", sum=total, src=step.src)


def early_requests(plan: KernelPlan) -> Found:
    """What runs ahead of the wait for the kernel before comes first of all, and reads nothing that that kernel may write."""
    args = {arg.name: arg for arg in plan.args}
    for i, step in enumerate(plan.steps):
        if not step.params.get("early"):
            continue
        if i >= plan.early_steps:
            yield PlanError(what="an early step comes late", sum=f"step {i}, but {plan.early_steps} steps run early", src=step.src)
        reads = {"multicast": step.params.get("arg"), "fetch_fragment": getattr(step.params.get("tree"), "name", None)}.get(step.op)
        harmless = step.op == "rendezvous" or (reads in args and args[reads].role == "weight")
        if not harmless:
            yield PlanError(what=f"step {i} runs before the kernel ahead has finished", sum=f"{step.op}: {step.text}", src=step.src)


def buffers_as_they_are(plan: KernelPlan) -> Found:
    """Expressions read shared memory in the type that lies there, and fragments do not read past a buffer's end."""
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    for step in plan.steps:
        for expr in step.params["tree"].walk() if "tree" in step.params else ():
            if expr.kind != "smem":
                continue
            buffer = buffers[expr.name]
            if expr.dtype != buffer.dtype:
                yield PlanError(what=f"{expr.name} is read as {expr.dtype}", sum=f"it holds {buffer.dtype}", src=step.src)
            last = max(expr.offset.at(at) for at in corners(plan)) + step.params["tiles"].cols if "tiles" in step.params else 0
            if last > prod(buffer.shape):
                yield PlanError(what=f"{expr.name} is read past its end", sum=f"{last} of {prod(buffer.shape)}", src=step.src)


def _elements(arg: Arg) -> int:
    return prod(dim if isinstance(dim, int) else 0 for dim in arg.shape)
