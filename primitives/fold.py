"""Terms of a Partial, one under another in shared memory or device memory, combined in float32 and in the order of the rows.

The operator is a constant: SUM, MAX, MIN (a NaN loses against a number), or LSE, the online softmax. An LSE term of `heads` heads of
`dim` is f32 (heads, dim + 4): the unnormalised outputs o, then the base-2 maximum m of the scores, the sum l of their powers, and
two words that are not used, so that heads start at multiples of 16 bytes.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import cta

SUM, MAX, MIN, LSE = "sum", "max", "min", "lse"
OPERATORS = (SUM, MAX, MIN, LSE)
TAIL = 4  # f32 after the outputs of a head in an LSE term: m, l, and padding


def two(op: str, a: Float32, b: Float32) -> Float32:
    """`a` op `b`; not for LSE."""
    if op == SUM:
        return a + b
    return cute.arch.fmax(a, b) if op == MAX else cute.arch.fmin(a, b)


@cute.jit
def rows(
    src: cute.Pointer, stride: cutlass.Constexpr, count: cutlass.Constexpr, dst: cute.Pointer, n: cutlass.Constexpr, op: cutlass.Constexpr,
    threads: cutlass.Constexpr,
):
    """`dst[i]` = op over `count` rows of `src[row * stride + i]`, first row first, rounded once to the type of `dst`; SUM, MAX or MIN.

    `threads` consumer threads, from 0; the rows have landed. Rows and `dst` start at multiples of 16 bytes, and are read and written in
    whole vectors of 16 bytes of their own type (8 bytes of a `dst` of half the width): up to 7 elements past `n`, which must be there and
    mean nothing. Synchronise before reading `dst`.
    """
    each = cutlass.const_expr(128 // src.dtype.width)
    run = cutlass.const_expr(min(each, 128 // dst.dtype.width))  # elements of a store: 16 bytes, as rows start at multiples of no more
    got = cute.make_rmem_tensor((each, count), src.dtype)
    out = cute.make_rmem_tensor((run, each // run), dst.dtype)
    for v in cutlass.range(cta.thread(), -(-n // each), threads, unroll=1):
        for p in cutlass.range_constexpr(count):
            cute.autovec_copy(cute.make_tensor((src + (p * stride + v * each)).align(16), cute.make_layout(each)), got[(None, p)])
        for j in cutlass.range_constexpr(each):
            acc = got[j, 0].to(Float32)
            for p in cutlass.range_constexpr(1, count):
                acc = two(op, acc, got[j, p].to(Float32))
            out[j % run, j // run] = acc.to(dst.dtype)
        for part in cutlass.range_constexpr(each // run):
            at = v * each + part * run
            if (part == 0) | (at < n):  # what lies behind a row of the wider type may be a peer's
                there = (dst + at).align(run * dst.dtype.width // 8)
                cute.autovec_copy(out[(None, part)], cute.make_tensor(there, cute.make_layout(run)))


@cute.jit
def _weights(src: cute.Pointer, stride: cutlass.Constexpr, count: cutlass.Constexpr, tail: Int32, weight: cute.Tensor):
    """(m, l) of one head over all rows; `weight[p]` becomes the factor of row p's outputs."""
    top = (src + tail).load()
    for p in cutlass.range_constexpr(1, count):
        top = cute.arch.fmax(top, (src + (p * stride + tail)).load())
    total = Float32(0.0)
    for p in cutlass.range_constexpr(count):
        weight[p] = cute.math.exp2((src + (p * stride + tail)).load() - top, fastmath=True)
        total += weight[p] * (src + (p * stride + tail + 1)).load()
    return top, total


@cute.jit
def softmax(
    src: cute.Pointer, stride: cutlass.Constexpr, count: cutlass.Constexpr, dst: cute.Pointer, heads: cutlass.Constexpr,
    dim: cutlass.Constexpr, last: cutlass.Constexpr, threads: cutlass.Constexpr,
):
    """LSE over `count` terms (heads, dim + 4), `stride` f32 apart, first term first. `dim` is a multiple of 4.

    `last`: `dst` f32 (heads, dim) is the normalised output, and at least one term had a token. Otherwise `dst` is a term again.
    Threads and barriers as in `rows`.

    With M the maximum of the m_p: m = M, l = sum_p 2^(m_p - M) l_p, o = sum_p 2^(m_p - M) o_p, and o / l at the last.
    """
    each = cutlass.const_expr(dim // 4)
    weight = cute.make_rmem_tensor(count, Float32)
    got = cute.make_rmem_tensor((4, count), Float32)
    out = cute.make_rmem_tensor(4, Float32)
    for i in cutlass.range(cta.thread(), heads * each, threads, unroll=1):
        h = i // each
        at = h * (dim + TAIL) + (i % each) * 4
        top, total = _weights(src, stride, count, h * (dim + TAIL) + dim, weight)
        for p in cutlass.range_constexpr(count):
            cute.autovec_copy(cute.make_tensor((src + (p * stride + at)).align(16), cute.make_layout(4)), got[(None, p)])
        inverse = Float32(1.0)
        if cutlass.const_expr(last):
            inverse = 1.0 / total
        for j in cutlass.range_constexpr(4):
            acc = weight[0] * got[j, 0]
            for p in cutlass.range_constexpr(1, count):
                acc += weight[p] * got[j, p]
            out[j] = acc * inverse
        if cutlass.const_expr(last):
            cute.autovec_copy(out, cute.make_tensor((dst + (h * dim + (i % each) * 4)).align(16), cute.make_layout(4)))
        else:
            cute.autovec_copy(out, cute.make_tensor((dst + at).align(16), cute.make_layout(4)))
            if i % each == 0:
                (dst + (h * (dim + TAIL) + dim)).store(top)
                (dst + (h * (dim + TAIL) + dim + 1)).store(total)


@cute.jit
def terms(
    src: cute.Pointer, stride: cutlass.Constexpr, count: cutlass.Constexpr, dst: cute.Pointer, n: cutlass.Constexpr, op: cutlass.Constexpr,
    dim: cutlass.Constexpr, last: cutlass.Constexpr, threads: cutlass.Constexpr,
):
    """`rows`, or for LSE `softmax` of terms of `n` f32 with heads of `dim`."""
    if cutlass.const_expr(op == LSE):
        softmax(src, stride, count, dst, n // (dim + TAIL), dim, last, threads)
    else:
        rows(src, stride, count, dst, n, op, threads)
