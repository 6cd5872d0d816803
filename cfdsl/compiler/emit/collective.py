"""The source of a collective's kernel: bring the payload into shared memory, exchange it `repeat` times, write the result."""

from __future__ import annotations

import re
from math import prod

from cfdsl.compiler.collective.design import Design
from cfdsl.compiler.emit.context import DTYPES
from cfdsl.compiler.emit.launch import launch
from cfdsl.compiler.plan import KernelPlan

MODULES = ("channel", "collectives", "cta", "host", "offchip", "staging")
_CALLS = {
    "reduce": "cluster_reduce", "reduce_scatter": "cluster_reduce_scatter", "gather": "cluster_gather", "broadcast": "cluster_broadcast",
}  # fmt: skip
_OFFCHIP = {"reduce": "grid_reduce", "reduce_scatter": "grid_reduce", "gather": "grid_gather", "broadcast": "grid_broadcast"}


def emit_collective(plan: KernelPlan, design: Design) -> str:
    """A module with the kernel, `launch` (a `cute.jit` function of `launch_args` and a stream) and `ATTRS`."""
    request = design.request
    body = [*_prologue(design), *_bring(design), *_exchange(design), *_take(design)]
    constants = [
        f"RANKS, CTAS, WARPS, THREADS = {request.cluster}, {request.clusters * request.cluster}, {design.warps}, {32 * design.warps}",
        f"REPEAT = {request.repeat}",
        route_text(design) if design.offchip else channel_text(design),
        f"ATTRS = dict(cluster={request.cluster}, maxnreg=None)",
    ]
    params = ", ".join(f"{arg.name}: cute.Tensor" for arg in plan.args)
    text = "\n".join(["@cute.kernel", f"def kernel({params}):", *(f"    {line}" for line in body)])
    start = launch(plan.name, plan.args, threads=plan.threads)
    names = [module for module in MODULES if re.search(rf"\b{module}\.", "\n".join([text, start, *constants]))]
    title = f"{request.text}, by {design.algorithm}: {request.clusters} clusters, {design.smem_bytes} B of shared memory."
    head = f'"""{title}\n\nWritten by cfdsl.\n"""'
    imports = [
        "import cuda.bindings.driver as cuda", "import cutlass", "import cutlass.cute as cute",
        "from cutlass import BFloat16, Float16, Float32, Int32", "", f"from primitives import {', '.join(names)}",
    ]  # fmt: skip
    return "\n\n".join([head, "\n".join(imports), "\n".join(constants)]) + "\n\n\n" + "\n\n\n".join([text, start]) + "\n"


def _at(design: Design, name: str) -> int:
    return design.protocol.place(name).offset


def channel_text(design: Design) -> str:
    """The place in the arena, as a constant of the module: every number is the protocol's."""
    request, protocol, names = design.request, design.protocol, {place.name for place in design.protocol.places}
    box = protocol.place("pairs" if "pairs" in names else "box") if names & {"pairs", "box"} else None
    fields = [
        f'algorithm="{design.algorithm}"', f"ranks={request.cluster}", f"warps={design.warps}", f"n={design.sent}",
        f"dtype={DTYPES[design.sent_dtype]}", f"tx={protocol.tx}", f"sets={protocol.sets}", "mbar=0",
        f"box={box.offset if box else 0}", f"set_bytes={box.nbytes if box else 0}",
    ]  # fmt: skip
    if "out" in names:
        fields += [f"out={_at(design, 'out')}", f"out_n={design.result_piece}", f"out_dtype={DTYPES[request.held]}"]
    if request.folds:
        fields += [f'op="{request.op}"'] + ([f"dim={request.dim}"] if request.lse else [])
    fields += [f"{name}={_at(design, name)}" for name in ("mid", "ack") if name in names]
    fields += ["stays=True"] if design.stays else []
    return _folded("CHANNEL = channel.Channel(", fields)


def route_text(design: Design) -> str:
    """The way through device memory, as a constant of the module."""
    request = design.request
    fields = [
        f"groups={request.clusters}", f"members={request.cluster}", f"warps={design.warps}", f"n={design.sent}",
        f"dtype={DTYPES[design.sent_dtype]}", f"pieces={design.source_pieces}",
    ]  # fmt: skip
    return _folded("ROUTE = offchip.Route(", fields)


def _folded(start: str, fields: list[str], width: int = 140) -> str:
    """A call over as many lines as it takes."""
    lines, line = [], start
    for n, field in enumerate(fields):
        part = field + (", " if n + 1 < len(fields) else ")")
        if len(line + part) > width:
            lines.append(line.rstrip())
            line = "    "
        line += part
    return "\n".join([*lines, line])


def _prologue(design: Design) -> list[str]:
    """Barriers, the cluster's rendezvous, and the wait for the kernel before: from there on memory may be read and written."""
    lines = [f"smem = cta.arena({design.smem_bytes})", "bid, _, _ = cute.arch.block_idx()", "rank = cute.arch.block_idx_in_cluster()"]
    if not design.offchip:
        lines += ["if cta.thread() == 0:", "    channel.init(smem, CHANNEL)", "cute.arch.sync_threads()"]
    if not design.offchip or design.request.timed:  # off chip only so that all clocks start together
        lines.append("cute.arch.cluster_arrive_relaxed()")
    lines += ["cute.arch.griddepcontrol_launch_dependents()", "cute.arch.griddepcontrol_wait()"]
    return lines


def _bring(design: Design) -> list[str]:
    request = design.request
    n = request.payload
    dtype = DTYPES[request.held]
    if design.scalar:
        return ["value = x[bid]"]
    if design.algorithm == "multicast":
        first = "bid // RANKS" if request.kind == "gather" else "bid // RANKS * RANKS"
        return [f"whole = staging.part(x, {first} * {design.sent}, {design.sent})"]
    lines = [f"src = staging.place(smem, {_at(design, 'src')}, {dtype})"]
    if request.lse:
        return [*lines, f"staging.load_terms(x, ml, bid, src, {request.heads}, {request.dim}, THREADS)"]
    pieces, each, apart = design.source_pieces, design.sent, design.sent_stride
    if design.algorithm in ("scatter_gather", "doubling"):  # one run of elements: pieces are whole vectors, or there is one
        pieces, each, apart = 1, n, design.source_stride
    return [*lines, f"staging.load(x, bid * {n}, src, {pieces}, {each}, {apart}, THREADS)"]


def _exchange(design: Design) -> list[str]:
    request = design.request
    clock = ["cta.consumer_sync(WARPS)", "began = cute.arch.clock64()"] if request.timed else []
    if design.offchip:
        start = [f"out = staging.place(smem, {_at(design, 'out')}, {DTYPES[request.held]})"]
        start.append("started = offchip.start(ws_sync, bid // RANKS)")
        op = f' "{request.op}", {request.dim},' if request.folds else ""
        call = f"offchip.{_OFFCHIP[request.kind]}(ws_rows, ws_sync, ROUTE, i, src, out,{op} started, bid // RANKS, rank)"
        start += ["cute.arch.cluster_wait()"] if request.timed else []
    else:
        start = ["cute.arch.cluster_wait()"]
        call = f"collectives.{_CALLS[request.kind]}(smem, CHANNEL, i, src, rank)"
        if design.algorithm == "multicast":
            call = "collectives.multicast_gather(smem, CHANNEL, i, whole, rank)"
        if design.scalar:
            start = ["total = Float32(0.0)", f"kept = cta.view(smem, {_at(design, 'kept')}, Float32, 1)", *start]
            call = "total = collectives.cluster_reduce_scalar(smem, CHANNEL, i, value, rank)\n        kept[0] = total"
    lines = [*start, *clock, "for i in cutlass.range(REPEAT, unroll=1):", f"    {call}"]
    if design.protocol.ending:
        lines.append("collectives.broadcast_end(smem, CHANNEL, REPEAT, rank)")
    return lines


def _take(design: Design) -> list[str]:
    request = design.request
    lines = ["cta.consumer_sync(WARPS)"]
    if request.timed:
        lines += ["if cta.thread() == 0:", "    cycles[bid] = Int32(cute.arch.clock64() - began)"]
    if design.scalar:
        return [*lines, "if cta.thread() == 0:", "    y[bid] = total"]
    result = "out" if design.offchip else "channel.result(smem, CHANNEL, Int32(REPEAT - 1))"
    pieces, each, apart, n = design.result_pieces, design.result_piece, design.result_stride, prod(request.result_shape)
    if design.algorithm in ("scatter_gather", "multicast"):
        pieces, each, apart = 1, n, design.run_stride(n)
    lines.append(f"staging.store(y, bid * {n}, {result}, {pieces}, {each}, {apart}, THREADS)")
    if design.protocol.closes:
        lines += ["cute.arch.cluster_arrive_relaxed()", "cute.arch.cluster_wait()"]
    return lines
