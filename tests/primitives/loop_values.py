"""What ranks bring in a loop of collectives and what must come of it, computed in the kernel: other data in each call, and for each rank.

Whole numbers below LEVELS, so that sums over 16 ranks are exact in every type, and what a call left behind is no call's after it.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float16, Float32, Int32

from cfdsl.compiler.collective.design import Design
from primitives import fold

LEVELS = 16
EPSILON = 1e-4  # of a softmax's average, which is below LEVELS: far below what one stale term or statistic would make of it
DTYPES = {"f32": Float32, "bf16": BFloat16, "f16": Float16}


@cute.jit
def value(i: Int32, rank: Int32, element: Int32) -> Float32:
    """Element `element` of the payload of `rank` in call `i`."""
    return Float32((i * 7 + rank * 5 + element * 3) & (LEVELS - 1))


@cute.jit
def top(i: Int32, rank: Int32, head: Int32) -> Float32:
    """LSE: the base-2 maximum of a head of a rank's term. Weights are powers of two."""
    return Float32((i * 3 + rank * 5 + head) & 3)


@cute.jit
def total(i: Int32, rank: Int32, head: Int32) -> Float32:
    """LSE: the sum of a head of a rank's term."""
    return Float32(1 + ((i + rank * 3 + head) & 7))


@cute.jit
def bring(
    src: cute.Pointer, i: Int32, rank: Int32, first: Int32, apart: cutlass.Constexpr, design: cutlass.Constexpr,
    threads: cutlass.Constexpr,
):
    """The payload of `rank` in call `i`, to `src`: pieces `apart` elements apart, LSE terms as `fold` wants them. Thread `first` begins."""
    request = cutlass.const_expr(design.request)
    if cutlass.const_expr(request.lse):
        wide = cutlass.const_expr(request.dim + fold.TAIL)
        for e in cutlass.range(first, request.payload, threads, unroll=1):
            (src + (e // request.dim * wide + e % request.dim)).store(value(i, rank, e))
        for h in cutlass.range(first, request.heads, threads, unroll=1):
            (src + (h * wide + request.dim)).store(top(i, rank, h))
            (src + (h * wide + request.dim + 1)).store(total(i, rank, h))
    else:
        each = cutlass.const_expr(request.payload // request.cluster if request.kind == "reduce_scatter" else request.payload)
        for e in cutlass.range(first, request.payload, threads, unroll=1):
            (src + (e // each * apart + e % each)).store(value(i, rank, e).to(DTYPES[request.dtype]))


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
        if cutlass.const_expr(request.lse):
            acc = average(i, at, at // request.dim, request.cluster)
        else:
            acc = value(i, Int32(0), at)
            for p in cutlass.range_constexpr(1, request.cluster):
                acc = fold.two(request.op, acc, value(i, Int32(p), at))
    return acc


@cute.jit
def average(i: Int32, at: Int32, head: Int32, ranks: cutlass.Constexpr) -> Float32:
    """LSE: sum of 2^(m - M) o over the ranks, over that of 2^(m - M) l."""
    highest = top(i, Int32(0), head)
    for p in cutlass.range_constexpr(1, ranks):
        highest = cute.arch.fmax(highest, top(i, Int32(p), head))
    above = Float32(0.0)
    below = Float32(0.0)
    for p in cutlass.range_constexpr(ranks):
        weight = cute.math.exp2(top(i, Int32(p), head) - highest)
        above += weight * value(i, Int32(p), at)
        below += weight * total(i, Int32(p), head)
    return above / below


@cute.jit
def wrong(seen: Float32, i: Int32, rank: Int32, element: Int32, design: cutlass.Constexpr) -> Int32:
    """1 if `seen` is not what element `element` of the result of `rank` in call `i` must be; NaN never is."""
    off = seen - wanted(i, rank, element, design)
    most = cutlass.const_expr(EPSILON if design.request.lse else 0.0)
    bad = Int32(1)
    if (off <= most) & (off >= -most):
        bad = Int32(0)
    return bad


@cute.jit
def count(
    got: cute.Pointer, i: Int32, rank: Int32, first: Int32, stride: cutlass.Constexpr, design: cutlass.Constexpr,
    threads: cutlass.Constexpr,
):
    """(elements that are wrong, elements that were looked at) of a result, by one thread; `first` begins.

    Rows of a gather are `stride` elements apart.
    """
    request = cutlass.const_expr(design.request)
    run = cutlass.const_expr(request.payload if request.kind == "gather" else 1 << 30)
    bad = Int32(0)
    looked = Int32(0)
    for e in cutlass.range(first, results(design), threads, unroll=1):
        bad += wrong((got + (e // run * stride + e % run)).load().to(Float32), i, rank, e, design)
        looked += 1
    return bad, looked


def results(design: Design) -> int:
    """Elements of a rank's result."""
    n = 1
    for dim in design.request.result_shape:
        n *= dim
    return n
