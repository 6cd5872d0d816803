"""The collectives of a cluster in a loop, with other data in each call, every result looked at in the kernel."""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
import harness
from cutlass import BFloat16, Float16, Float32, Int32

from cfdsl.compiler.collective.design import Design
from cfdsl.compiler.emit.collective import channel_text, route_text
from primitives import channel, collectives, cta, fold, offchip

LEVELS = 16  # values are whole numbers below: sums over 16 ranks are exact, in bf16 too
DTYPES = {"f32": Float32, "bf16": BFloat16, "f16": Float16}


def constant(design: Design) -> Any:
    """The Channel or Route that generated code would have."""
    text = route_text(design) if design.offchip else channel_text(design)
    names = {"channel": channel, "offchip": offchip, "Float32": Float32, "BFloat16": BFloat16, "Float16": Float16}
    return eval(text.split(" = ", 1)[1], names)


@cute.jit
def value(i: Int32, rank: Int32, element: Int32) -> Float32:
    """Element `element` of the payload of `rank` in call `i`."""
    return Float32((i * 7 + rank * 5 + element * 3) & (LEVELS - 1))


@cute.jit
def wanted(i: Int32, rank: Int32, element: Int32, design: cutlass.Constexpr) -> Float32:
    """Element `element` of the result of `rank` in call `i`."""
    request = cutlass.const_expr(design.request)
    if cutlass.const_expr(request.kind == "gather"):
        acc = value(i, element // request.payload, element % request.payload)
    elif cutlass.const_expr(request.kind == "broadcast"):
        acc = value(i, Int32(0), element)
    else:
        at = element
        if cutlass.const_expr(request.kind == "reduce_scatter"):
            at = element + rank * (request.payload // request.cluster)
        acc = value(i, Int32(0), at)
        for p in cutlass.range_constexpr(1, request.cluster):
            acc = fold.two(request.op, acc, value(i, Int32(p), at))
    return acc


@cute.jit
def exchange_once(smem: cute.Pointer, how: cutlass.Constexpr, i: Int32, src: cute.Pointer, rank: Int32, kind: cutlass.Constexpr):
    """One call."""
    if cutlass.const_expr(kind == "reduce"):
        collectives.cluster_reduce(smem, how, i, src, rank)
    elif cutlass.const_expr(kind == "reduce_scatter"):
        collectives.cluster_reduce_scatter(smem, how, i, src, rank)
    elif cutlass.const_expr(kind == "gather"):
        collectives.cluster_gather(smem, how, i, src, rank)
    else:
        collectives.cluster_broadcast(smem, how, i, src, rank)


def sources(design: Design) -> tuple[int, int, int]:
    """(how many sources are used in turn, the offset of the first, bytes from one to the next); the arena ends with the last.

    Bulk copies may still read a source in the next call, and in a broadcast in the one after it; see `collectives`.
    """
    count = 3 if design.request.kind == "broadcast" and design.algorithm == "bulk" else 2
    return count, -(-design.smem_bytes // 128) * 128, -(-design.protocol.place("src").nbytes // 128) * 128


@cute.kernel
def looped(late: cute.Tensor, length: cute.Tensor, wrong: cute.Tensor, design: cutlass.Constexpr, how: cutlass.Constexpr):
    """`length[0]` calls; wrong (CTAs, 2): how many elements of all results were not what they should be, and how many were looked at."""
    request = cutlass.const_expr(design.request)
    turns, first, span = cutlass.const_expr(sources(design))
    nbytes = cutlass.const_expr(first + turns * span)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, how.threads)
    rank = cute.arch.block_idx_in_cluster()
    block, _, _ = cute.arch.block_idx()
    if cta.thread() == 0:
        channel.init(smem, how)
    harness.meet(late)
    cute.arch.griddepcontrol_launch_dependents()
    cute.arch.griddepcontrol_wait()
    bad = Int32(0)
    looked = Int32(0)
    calls = length[0]
    mirrored = how.threads - 1 - cta.thread()  # who writes or reads an element is not who sends or folds it
    for i in cutlass.range(calls, unroll=1):
        src = cute.recast_ptr((smem + (first + i % turns * span)).align(16), dtype=DTYPES[request.dtype])
        each = cutlass.const_expr(request.payload // max(1, design.source_pieces) if request.kind == "reduce_scatter" else request.payload)
        apart = cutlass.const_expr(design.sent_stride if request.kind == "reduce_scatter" else 0)
        for e in cutlass.range(mirrored, request.payload, how.threads, unroll=1):
            (src + (e // each * apart + e % each)).store(value(i, rank, e).to(DTYPES[request.dtype]))
        exchange_once(smem, how, i, src, rank, request.kind)
        cta.consumer_sync(how.warps)
        got = channel.result(smem, how, i)
        run = cutlass.const_expr(request.payload if request.kind == "gather" else 1 << 30)
        for e in cutlass.range(mirrored, _results(design), how.threads, unroll=1):
            seen = (got + (e // run * how.stride + e % run)).load().to(Float32)
            if seen != wanted(i, rank, e, design):
                bad += 1
            looked += 1
    if cutlass.const_expr(request.kind == "broadcast"):
        collectives.broadcast_end(smem, how, calls, rank)
    cute.arch.red(wrong.iterator + block * 2, bad, op="add", dtype=Int32, sem="relaxed", scope="gpu")
    cute.arch.red(wrong.iterator + block * 2 + 1, looked, op="add", dtype=Int32, sem="relaxed", scope="gpu")
    harness.leave()


@cute.kernel
def looped_offchip(
    late: cute.Tensor, length: cute.Tensor, sync: cute.Tensor, ws: cute.Tensor, wrong: cute.Tensor, design: cutlass.Constexpr,
    how: cutlass.Constexpr,
):
    """As `looped`, by way of device memory: CTAs that follow each other are a group, whether they are a cluster or not."""
    request = cutlass.const_expr(design.request)
    smem = cta.arena(design.smem_bytes)
    harness.enter(smem, design.smem_bytes, how.threads)
    block, _, _ = cute.arch.block_idx()
    group = block // request.cluster
    rank = block % request.cluster
    harness.meet(late)
    src = cute.recast_ptr((smem + design.protocol.place("src").offset).align(16), dtype=DTYPES[request.dtype])
    out = cute.recast_ptr((smem + design.protocol.place("out").offset).align(16), dtype=DTYPES[request.dtype])
    cute.arch.griddepcontrol_launch_dependents()
    cute.arch.griddepcontrol_wait()
    started = offchip.start(sync, group)
    bad = Int32(0)
    looked = Int32(0)
    mirrored = how.threads - 1 - cta.thread()
    for i in cutlass.range(length[0], unroll=1):
        each = cutlass.const_expr(request.payload // design.source_pieces)
        for e in cutlass.range(mirrored, request.payload, how.threads, unroll=1):
            (src + (e // each * how.stride + e % each)).store(value(i, rank, e).to(DTYPES[request.dtype]))
        if cutlass.const_expr(request.folds):
            offchip.grid_reduce(ws, sync, how, i, src, out, request.op, 0, started, group, rank)
        elif cutlass.const_expr(request.kind == "gather"):
            offchip.grid_gather(ws, sync, how, i, src, out, started, group, rank)
        else:
            offchip.grid_broadcast(ws, sync, how, i, src, out, started, group, rank)
        cta.consumer_sync(how.warps)
        run = cutlass.const_expr(request.payload if request.kind == "gather" else 1 << 30)
        for e in cutlass.range(mirrored, _results(design), how.threads, unroll=1):
            if (out + (e // run * how.stride + e % run)).load().to(Float32) != wanted(i, rank, e, design):
                bad += 1
            looked += 1
    cute.arch.red(wrong.iterator + block * 2, bad, op="add", dtype=Int32, sem="relaxed", scope="gpu")
    cute.arch.red(wrong.iterator + block * 2 + 1, looked, op="add", dtype=Int32, sem="relaxed", scope="gpu")
    harness.leave()


def _results(design: Design) -> int:
    n = 1
    for dim in design.request.result_shape:
        n *= dim
    return n
