"""The layout of a generated module: imports, constants, the kernel (shared memory, producer, consumers), the launch."""

from __future__ import annotations

import re
from dataclasses import replace

from cfdsl.compiler.emit.context import WIDTH, Context, fold
from cfdsl.compiler.emit.lanes import consumers, has_step, producer
from cfdsl.compiler.emit.launch import launch, wrapped
from cfdsl.compiler.emit.marks import CONSUMER, PRODUCER, START, TRACE_WORDS, Mark
from cfdsl.compiler.geometry import MOST_REGISTERS, thread_registers
from cfdsl.compiler.names import MODULES
from cfdsl.compiler.names import identifier as name
from cfdsl.compiler.plan import TRACE_ARG, Arg, KernelPlan, Ring


def emit(plan: KernelPlan) -> str:
    """The source of a module with the kernel, `launch` (a `cute.jit` function of `launch_args` and a stream) and `ATTRS`."""
    c = Context(plan)
    kernel = _kernel(c)
    body = "\n".join(f"    {part}" if part else "" for line in kernel for part in fold(line, WIDTH - 4))
    start = _launch(c)
    parts = [_header(plan), _imports("\n".join([body, *c.constants.values(), start])), _constants(c), _kernel_def(c) + body, start]
    return "\n\n".join(parts[:3]) + "\n\n\n" + "\n\n\n".join(parts[3:]) + "\n"


def marks(plan: KernelPlan) -> tuple[Mark, ...]:
    """What a traced kernel notes the time of, by number; nothing for one that is not traced."""
    c = Context(plan)
    _kernel(c)
    return tuple(c.marks)


def with_marks(plan: KernelPlan) -> KernelPlan:
    """The plan, with memory for the marks of every CTA if it is to be traced."""
    if not plan.config.trace:
        return plan
    shape = (plan.mesh.ctas, len(marks(plan)), TRACE_WORDS)
    return replace(plan, args=(*plan.args, Arg(TRACE_ARG, shape, "i32", "workspace", mutated=True)))


def _kernel(c: Context) -> list[str]:
    """The lines of the kernel."""
    started = [line for lane in (CONSUMER, PRODUCER)[: 2 if c.plan.ring else 1] for line in c.mark(lane, START)]
    loads = producer(c) if c.plan.ring else []
    branches = _branches(c.plan, loads, consumers(c))
    return [*_prologue(c, "\n".join(branches), started), *branches]


def _header(plan: KernelPlan) -> str:
    ring = f", ring {plan.ring.stages} x {plan.ring.stage_bytes} B" if plan.ring else ""
    model = f" for {plan.model}" if plan.model else ""
    return (
        f'"""{plan.name}{model}, {plan.dtype}: {plan.mesh}, {plan.smem_bytes} B of shared memory{ring}.\n\n'
        f'Written by cfdsl: change the spec, not this file.\n"""'
    )


def _imports(body: str) -> str:
    names = [module for module in MODULES if f"{module}." in body or module == "cta"]
    lines = ["import cuda.bindings.driver as cuda", "import cutlass", "import cutlass.cute as cute"]
    lines.append("from cutlass import BFloat16, Float16, Float32, Int32, Int64")
    primitives = f"from primitives import {', '.join(names)}"
    lines += ["", primitives if len(primitives) <= WIDTH else f"from primitives import (\n{wrapped(names)}\n)"]
    return "\n".join(lines + (["from primitives import ring as rings"] if "rings." in body or "RING" in body else []))


def _constants(c: Context) -> str:
    plan = c.plan
    lines = [f"RANKS, CTAS, WARPS, THREADS = {plan.mesh.ranks}, {plan.mesh.ctas}, {c.warps}, {32 * c.warps}"]
    if plan.ring:
        full, empty = (next(b.offset for b in plan.barriers if b.kind == kind) for kind in ("full", "empty"))
        lines.append(
            f"RING = rings.Ring(stages={plan.ring.stages}, stage_bytes={plan.ring.stage_bytes}, warps={c.warps}, data={plan.ring.offset}, "
            f"full={full}, empty={empty}, window={plan.ring.window}{_early(plan.ring)})"
        )
    lines += [f"{constant} = {text}" for constant, text in c.constants.items()]
    lines += [f"MARKS = {len(c.marks)}"] * bool(c.marks)
    lines.append(f"ATTRS = dict(cluster={plan.mesh.ranks}, maxnreg={_maxnreg(plan)})")
    return "\n".join(lines)


def _early(ring: Ring) -> str:
    return f", early={ring.early}, passed={ring.passed}" if ring.early else ""


def _maxnreg(plan: KernelPlan) -> int | None:
    """The register cap that lets `ctas_per_sm` CTAs share an SM; None if one CTA has it to itself."""
    if plan.config.ctas_per_sm == 1:
        return None
    each = thread_registers(plan.threads // 32, plan.config.ctas_per_sm)
    return each if each < MOST_REGISTERS else None


def _symbols(plan: KernelPlan) -> dict[str, tuple[str, int]]:
    """Sizes known at launch: symbol -> (argument, dimension) that it is read from."""
    found: dict[str, tuple[str, int]] = {}
    for arg in plan.args:
        for i, dim in enumerate(arg.shape):
            if isinstance(dim, str):
                found.setdefault(dim, (arg.name, i))
    return found


def _kernel_def(c: Context) -> str:
    params = [f"{name(arg.name)}: cute.Tensor" for arg in c.plan.args] + [f"n_{symbol}: Int32" for symbol in _symbols(c.plan)]
    return f"@cute.kernel\ndef kernel(\n{wrapped(params)}\n):\n"


def _exchange_barriers(plan: KernelPlan) -> list[tuple[str, int, int]]:
    return [(b.name, b.offset, b.tx_bytes) for b in plan.barriers if b.kind == "exchange"]


def _prologue(c: Context, body: str, started: list[str]) -> list[str]:
    """Who am I; make and arm the barriers; let the successor start."""
    plan = c.plan
    lines = [f"smem = cta.arena({plan.smem_bytes})"] if plan.smem_bytes else []
    lines += ["tidx = cta.thread()", *started, "bid, _, _ = cute.arch.block_idx()"]
    coordinates = _coordinates(plan)
    used = {name for name, _ in coordinates if re.search(rf"\b{name}\b", "\n".join([body, *(text for _, text in coordinates)]))}
    lines += [f"{name} = {text}" for name, text in coordinates if name in used]
    lines += [f"{mbar} = cta.barriers(smem, {offset})" for mbar, offset, _ in _exchange_barriers(plan)]
    init = ["rings.init(smem, RING)"] if plan.ring else []
    init += [f"exchange.init({mbar}, {nbytes})" for mbar, _, nbytes in _exchange_barriers(plan)]
    if init:
        init.append("cute.arch.mbarrier_init_fence()")
        init += [f"exchange.arm({mbar}, {nbytes})" for mbar, _, nbytes in _exchange_barriers(plan)]
        lines += ["if tidx == 0:", *(f"    {line}" for line in init), "cute.arch.sync_threads()"]
    if has_step(plan, "rendezvous"):
        lines.append("cute.arch.cluster_arrive_relaxed()")
    if plan.config.pdl:
        lines.append("cute.arch.griddepcontrol_launch_dependents()")
    return lines


def _coordinates(plan: KernelPlan) -> list[tuple[str, str]]:
    coordinates = [("rank", "cute.arch.block_idx_in_cluster()"), ("cluster", "bid // RANKS")]
    for n in plan.slices:
        coordinates.append((f"slice{n}", f"cluster // {plan.mesh.clusters // n}  # neighbouring clusters share one of {n} slices"))
    if plan.mesh.splits > 1:
        coordinates.append(("group", f"cluster // {plan.mesh.splits}"))
        coordinates.append(("split", f"cluster % {plan.mesh.splits}"))
        coordinates.append(("holder", "split * RANKS + rank  # of those that share a head's tokens"))
    for share in plan.shares:
        if share.even:
            each = share.granules // plan.mesh.ctas
            coordinates.append((share.symbol, "bid" if each == 1 else f"bid * {each}"))
        else:
            coordinates.append((share.symbol, f"bid * {share.granules} // CTAS"))
            coordinates.append((share.name, f"((bid + 1) * {share.granules} // CTAS - {share.symbol}) * {share.granule}"))
    return coordinates


def _branches(plan: KernelPlan, loads: list[str], steps: list[str]) -> list[str]:
    if not plan.ring:
        return steps
    indent = [f"    {line}" if line else "" for line in loads]
    return ["if cta.warp() == WARPS:  # the producer warp: the load stream", *indent, "else:"] + [
        f"    {line}" if line else "" for line in steps
    ]


def _launch(c: Context) -> str:
    plan = c.plan
    sizes = [f"Int32({name(arg)}.shape[{dim}])" for arg, dim in _symbols(plan).values()]
    return launch(plan.name, plan.args, threads=plan.threads, sizes=sizes, pdl=plan.config.pdl)
