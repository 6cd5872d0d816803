"""The layout of a generated module: imports, constants, the kernel (shared memory, producer, consumers), the launch."""

from __future__ import annotations

import os
import re
import textwrap
from dataclasses import replace

from cfdsl.compiler.emit.attention import head_base, holder
from cfdsl.compiler.emit.context import DTYPES, Context, capacity, fold
from cfdsl.compiler.emit.marks import CONSUMER, END, PRODUCER, START, TRACE_WORDS, Mark
from cfdsl.compiler.emit.steps import emit_step, tiles_of
from cfdsl.compiler.geometry import MOST_REGISTERS, RowTiles, thread_registers
from cfdsl.compiler.names import MODULES
from cfdsl.compiler.names import identifier as name
from cfdsl.compiler.plan import TRACE_ARG, Arg, Buffer, KernelPlan, Ring, Step
from cfdsl.dsl.graph import Src

WIDTH = 140
PREDECESSOR = ("griddepcontrol_wait", "the kernel before has finished")


def emit(plan: KernelPlan) -> str:
    """The source of a module with the kernel, `launch` (a `cute.jit` function of `plan.args` in order and a stream) and `ATTRS`."""
    c = Context(plan)
    kernel = _kernel(c)
    body = "\n".join(f"    {part}" if part else "" for line in kernel for part in fold(line, WIDTH - 4))
    parts = [_header(plan), _imports("\n".join([body, *c.constants.values()])), _constants(c), _kernel_def(c) + body, _launch(c)]
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
    producer = _producer(c) if c.plan.ring else []
    branches = _branches(c.plan, producer, _consumers(c))
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
    lines += ["", f"from primitives import {', '.join(names)}"]
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
    return f"@cute.kernel\ndef kernel(\n{_wrap(params)}\n):\n"


def _wrap(params: list[str]) -> str:
    glued = ", ".join(param.replace(" ", "\0") for param in params) + ","
    return textwrap.fill(glued, WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False).replace("\0", " ")


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
    if _has(plan, "rendezvous"):
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


def _branches(plan: KernelPlan, producer: list[str], consumers: list[str]) -> list[str]:
    if not plan.ring:
        return consumers
    indent = [f"    {line}" if line else "" for line in producer]
    return ["if cta.warp() == WARPS:  # the producer warp: the load stream", *indent, "else:"] + [
        f"    {line}" if line else "" for line in consumers
    ]


def _producer(c: Context) -> list[str]:
    """The whole load stream, in the order of the consumers' steps; waits for the predecessor only before it reads the cache."""
    plan = c.plan
    lines, waited = ["at = Int32(0)", *c.mark(PRODUCER, "set up", "barriers")], not plan.config.pdl
    policy = "" if plan.config.evict_first else ", None"
    behind = 0  # grid barriers before the step
    for step in plan.steps:
        p = step.params
        behind += step.op == "grid_barrier"
        ring = f"RING.behind({behind})" if behind and plan.ring and plan.ring.early else "RING"
        if step.op == "gemv":
            weight = plan.streams[p["stream"]].name
            tiles: RowTiles = p["tiles"]
            call = f"{c.rows(weight, tiles)}, {tiles.row0}, {tiles.col0}, {tiles_of(c, tiles)}"
            lines.append(f"at = stream.rows(smem, {ring}, at, {name(weight)}, {call}{policy})")
            lines += _streamed(c, weight, p["stream"], step)
        if step.op == "decode":
            cache, length = p["cache"], _length_name(plan, p["tokens"])
            if not waited:
                lines.append("cute.arch.griddepcontrol_wait()  # the cache may be the predecessor's work")
                lines += c.mark(PRODUCER, *PREDECESSOR)
                waited = True
            shape = c.constant("TOKENS", f"stream.Tokens(tokens={p['tokens_per_tile']}, dim={p['dim']}, stride={p['stride']})")
            room = capacity(c, cache.name, cache.layout)
            clamped = f"{p['tokens']} = cutlass.max(cutlass.min({name(length)}[0], {room}), Int32(0))"
            if clamped not in lines:
                lines.append(clamped)
            split = ", ".join(holder(p))
            base = head_base(c, cache, p["head"])
            pair = f"{name(cache.name + '_k')}, {name(cache.name + '_v')}"
            lines.append(f"at = stream.tokens(smem, {ring}, at, {pair}, {shape}, {base}, {p['tokens']}, {split})")
            lines += _streamed(c, cache.name, p["stream"], step)
    if _has(plan, "rendezvous"):
        lines += ["cute.arch.cluster_wait()", *c.mark(PRODUCER, "rendezvous", "every rank of the cluster has initialised its barriers")]
    return lines + c.mark(PRODUCER, END)


def _streamed(c: Context, what: str, index: int, step: Step) -> list[str]:
    """The mark behind one run of the load stream: its last copy is issued."""
    stream = c.plan.streams[index]
    count = "tiles by KV length, each" if stream.tiles is None else f"{stream.tiles} tiles"
    sources = (step.src,) if step.src is not None else ()
    return c.mark(PRODUCER, f"stream {what}", f"{count} of {stream.tile_bytes} B issued", sources)


def _length_name(plan: KernelPlan, variable: str) -> str:
    return next(s.params["length"] for s in plan.steps if s.op == "length" and s.params["out"] == variable)


def _consumers(c: Context) -> list[str]:
    plan = c.plan
    lines = ["at = Int32(0)"] if plan.ring else []
    lines += [_view(buffer) for buffer in plan.buffers]
    lines += c.mark(CONSUMER, "set up", "barriers")
    last: Src | None = None
    done: list[Step] = []  # since the last mark
    for i, step in enumerate(plan.steps):
        if plan.config.pdl and i == plan.early_steps:
            lines += [*_stepped(c, done), "cute.arch.griddepcontrol_wait()", *c.mark(CONSUMER, *PREDECESSOR)]
            done = []
        if i == plan.early_steps and _has(plan, "grid_barrier"):
            lines.append("phase = grid.phase(ws_sync)")
        made = emit_step(c, step)
        if made and done and not _together(done[-1], step):
            lines += _stepped(c, done)
            done = []
        if step.src is not None and step.src != last:
            lines.insert(len(lines) if made else -1, _comment(step))  # no code of its own: the call before does this line's work too
            last = step.src
        lines += made
        done.append(step)
    return [*lines, *_stepped(c, done), *c.mark(CONSUMER, END)]


def _together(before: Step, step: Step) -> bool:
    """Whether one mark stands behind both steps: short ones of a kind (a mark between fetches would only be in their way)."""
    return before.op == step.op and "stream" not in step.params


def _stepped(c: Context, done: list[Step]) -> list[str]:
    """The mark behind the steps that were done since the last one."""
    sources = tuple(dict.fromkeys(step.src for step in done if step.src is not None))
    return c.mark(CONSUMER, done[0].op, "; ".join(step.text for step in done), sources) if done else []


def _view(buffer: Buffer) -> str:
    shape = str(buffer.shape[0]) if len(buffer.shape) == 1 else str(buffer.shape)
    return f"{buffer.name} = cta.view(smem, {buffer.offset}, {DTYPES[buffer.dtype]}, {shape})"


def _comment(step: Step) -> str:
    """The user's line, which error messages translate back to."""
    assert step.src is not None
    return f"# src[{os.path.basename(step.src.file)}:{step.src.line}]: {step.src.code}"[: WIDTH - 8]


def _has(plan: KernelPlan, op: str) -> bool:
    return any(step.op == op for step in plan.steps)


def _launch(c: Context) -> str:
    plan = c.plan
    params = [f"{name(arg.name)}: cute.Tensor" for arg in plan.args] + ["stream: cuda.CUstream"]
    args = [f"flat({name(arg.name)})" for arg in plan.args]
    args += [f"Int32({name(arg)}.shape[{dim}])" for arg, dim in _symbols(plan).values()]
    call = textwrap.fill(", ".join(args), WIDTH, initial_indent="        ", subsequent_indent="        ", break_long_words=False)
    return (
        f'kernel.set_name_prefix("cfdsl_{plan.name}", remove_cutlass_symbol=True, keep_mangled_name=False)\n\n\n'
        "def flat(tensor: cute.Tensor) -> cute.Tensor:\n"
        "    return cute.make_tensor(tensor.iterator, cute.make_layout(cute.size(tensor)))\n\n\n"
        f"@cute.jit\ndef launch(\n{_wrap(params)}\n):\n"
        f"    kernel(\n{call},\n    ).launch(\n"
        f"        grid=[CTAS, 1, 1], block=[{plan.threads}, 1, 1], cluster=[RANKS, 1, 1], stream=stream, use_pdl={plan.config.pdl},\n"
        f"        min_blocks_per_mp=1,\n    )"
    )
