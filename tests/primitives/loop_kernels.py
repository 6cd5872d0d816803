"""The collectives of a cluster in a loop, with other data in each call, every result looked at in the kernel."""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
import harness
import loop_values
from cutlass import BFloat16, Float16, Float32, Int32
from loop_values import DTYPES

from cfdsl.compiler.collective.design import Design
from cfdsl.compiler.emit.collective import channel_text, route_text
from primitives import channel, collectives, cta, offchip, staging


def constant(design: Design) -> Any:
    """The Channel or Route that generated code would have."""
    text = route_text(design) if design.offchip else channel_text(design)
    names = {"channel": channel, "offchip": offchip, "Float32": Float32, "BFloat16": BFloat16, "Float16": Float16}
    return eval(text.split(" = ", 1)[1], names)


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


@cute.jit
def report(wrong: cute.Tensor, bad: Int32, looked: Int32):
    """Each thread's counts, to those of its CTA: wrong (CTAs, 2)."""
    block, _, _ = cute.arch.block_idx()
    cute.arch.red(wrong.iterator + block * 2, bad, op="add", dtype=Int32, sem="relaxed", scope="gpu")
    cute.arch.red(wrong.iterator + block * 2 + 1, looked, op="add", dtype=Int32, sem="relaxed", scope="gpu")


@cute.jit
def begin(smem: cute.Pointer, nbytes: cutlass.Constexpr, late: cute.Tensor, how: cutlass.Constexpr):
    """Every thread: the arena full of NaN, the channel made, the cluster met, and the kernel before this one finished."""
    harness.enter(smem, nbytes, how.threads)
    if cta.thread() == 0:
        channel.init(smem, how)
    harness.meet(late)
    cute.arch.griddepcontrol_launch_dependents()
    cute.arch.griddepcontrol_wait()


@cute.kernel
def looped(late: cute.Tensor, length: cute.Tensor, wrong: cute.Tensor, design: cutlass.Constexpr, how: cutlass.Constexpr):
    """`length[0]` calls; wrong (CTAs, 2): how many elements of all results were not what they should be, and how many were looked at."""
    request = cutlass.const_expr(design.request)
    turns, first, span = cutlass.const_expr(sources(design))
    nbytes = cutlass.const_expr(first + turns * span)
    smem = cta.arena(nbytes)
    begin(smem, nbytes, late, how)
    rank = cute.arch.block_idx_in_cluster()
    bad = Int32(0)
    looked = Int32(0)
    calls = length[0]
    mirrored = how.threads - 1 - cta.thread()  # who writes or reads an element is not who sends or folds it
    for i in cutlass.range(calls, unroll=1):
        src = cute.recast_ptr((smem + (first + i % turns * span)).align(16), dtype=DTYPES[request.held])
        loop_values.bring(src, i, rank, mirrored, design.sent_stride, design, how.threads)
        exchange_once(smem, how, i, src, rank, request.kind)
        cta.consumer_sync(how.warps)
        got = channel.result(smem, how, i)
        counts = loop_values.count(got, i, rank, mirrored, how.stride, design, how.threads)
        bad += counts[0]
        looked += counts[1]
    if cutlass.const_expr(request.kind == "broadcast"):
        collectives.broadcast_end(smem, how, calls, rank)
    report(wrong, bad, looked)
    harness.leave()


@cute.kernel
def looped_scalar(late: cute.Tensor, length: cute.Tensor, wrong: cute.Tensor, design: cutlass.Constexpr, how: cutlass.Constexpr):
    """As `looped`, of one f32 in a register, which every thread looks at; nothing but calls in between, not even a barrier."""
    smem = cta.arena(design.smem_bytes)
    begin(smem, design.smem_bytes, late, how)
    rank = cute.arch.block_idx_in_cluster()
    bad = Int32(0)
    calls = length[0]
    for i in cutlass.range(calls, unroll=1):
        got = collectives.cluster_reduce_scalar(smem, how, i, loop_values.value(i, rank, Int32(0)), rank)
        bad += loop_values.wrong(got, i, rank, Int32(0), design)
    report(wrong, bad, calls)
    harness.leave()


@cute.kernel
def looped_multicast(
    late: cute.Tensor, length: cute.Tensor, x: cute.Tensor, wrong: cute.Tensor, design: cutlass.Constexpr, how: cutlass.Constexpr
):
    """As `looped`, of what lies in device memory: x (LEVELS, elements), a row for each call in turn. Results are read where they landed,
    with no barrier before or behind."""
    smem = cta.arena(design.smem_bytes)
    begin(smem, design.smem_bytes, late, how)
    rank = cute.arch.block_idx_in_cluster()
    bad = Int32(0)
    looked = Int32(0)
    mirrored = how.threads - 1 - cta.thread()
    for i in cutlass.range(length[0], unroll=1):
        whole = staging.part(x, i % loop_values.LEVELS * design.sent, design.sent)
        collectives.multicast_gather(smem, how, i, whole, rank)
        got = channel.result(smem, how, i)
        counts = loop_values.count(got, i, rank, mirrored, design.request.payload, design, how.threads)
        bad += counts[0]
        looked += counts[1]
    report(wrong, bad, looked)
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
    src = cute.recast_ptr((smem + design.protocol.place("src").offset).align(16), dtype=DTYPES[request.held])
    out = cute.recast_ptr((smem + design.protocol.place("out").offset).align(16), dtype=DTYPES[request.held])
    cute.arch.griddepcontrol_launch_dependents()
    cute.arch.griddepcontrol_wait()
    started = offchip.start(sync, group)
    bad = Int32(0)
    looked = Int32(0)
    mirrored = how.threads - 1 - cta.thread()
    for i in cutlass.range(length[0], unroll=1):
        loop_values.bring(src, i, rank, mirrored, how.stride, design, how.threads)
        if cutlass.const_expr(request.folds):
            offchip.grid_reduce(ws, sync, how, i, src, out, request.op, request.dim, started, group, rank)
        elif cutlass.const_expr(request.kind == "gather"):
            offchip.grid_gather(ws, sync, how, i, src, out, started, group, rank)
        else:
            offchip.grid_broadcast(ws, sync, how, i, src, out, started, group, rank)
        cta.consumer_sync(how.warps)
        counts = loop_values.count(out, i, rank, mirrored, how.stride, design, how.threads)
        bad += counts[0]
        looked += counts[1]
    report(wrong, bad, looked)
    harness.leave()
