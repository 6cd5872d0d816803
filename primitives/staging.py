"""A payload between device memory, where it is dense, and shared memory, where its pieces start at multiples of 16 bytes."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import fold, transfer
from primitives.fold import TAIL


def place(smem: cute.Pointer, offset: int, dtype: type) -> cute.Pointer:
    """Byte `offset` (a multiple of 16) of the arena, as elements of `dtype`."""
    return cute.recast_ptr((smem + offset).align(16), dtype=dtype)


def part(tensor: cute.Tensor, offset: Int32, n: int) -> cute.Tensor:
    """`n` elements of a flat tensor from element `offset`, which is a multiple of 16 bytes."""
    return cute.make_tensor((tensor.iterator + offset).align(16), cute.make_layout(n))


@cute.jit
def load(
    src: cute.Tensor, offset: Int32, dst: cute.Pointer, pieces: cutlass.Constexpr, n: cutlass.Constexpr, stride: cutlass.Constexpr,
    threads: cutlass.Constexpr,
):
    """`pieces` pieces of `n` adjacent elements each, from element `offset` of device memory to `dst`, `stride` elements apart.

    `threads` consumer threads, from 0. Whole vectors where the pieces are made of such. Synchronise before others read `dst`.
    """
    if cutlass.const_expr(n == stride):
        nbytes = cutlass.const_expr(pieces * n * src.element_type.width // 8)
        transfer.copy(transfer.words(src.iterator + offset), transfer.words(dst), nbytes, threads)
    else:
        for i in cutlass.range(cute.arch.thread_idx()[0], pieces * n, threads, unroll=1):
            (dst + (i // n * stride + i % n)).store(src[offset + i])


@cute.jit
def store(
    dst: cute.Tensor, offset: Int32, src: cute.Pointer, pieces: cutlass.Constexpr, n: cutlass.Constexpr, stride: cutlass.Constexpr,
    threads: cutlass.Constexpr,
):
    """The way back of `load`; `src` synchronised before. What is f32 there is rounded once to the type of `dst`.

    Then pieces without gaps are multiples of 4 elements, and `offset` is one.
    """
    if cutlass.const_expr(n == stride and src.dtype is not dst.element_type):
        fold.rows(src, 0, 1, dst.iterator + offset, pieces * n, fold.SUM, threads)
    elif cutlass.const_expr(n == stride):
        nbytes = cutlass.const_expr(pieces * n * dst.element_type.width // 8)
        transfer.copy(transfer.words(src), transfer.words(dst.iterator + offset), nbytes, threads)
    else:
        for i in cutlass.range(cute.arch.thread_idx()[0], pieces * n, threads, unroll=1):
            dst[offset + i] = (src + (i // n * stride + i % n)).load().to(dst.element_type)


@cute.jit
def load_terms(
    o: cute.Tensor, ml: cute.Tensor, cta_index: Int32, dst: cute.Pointer, heads: cutlass.Constexpr, dim: cutlass.Constexpr,
    threads: cutlass.Constexpr,
):
    """A rank's softmax term: `o` (ctas, heads, dim) and `ml` f32 (ctas, heads, 2), flat, to `dst` in f32 as `fold` wants it."""
    for i in cutlass.range(cute.arch.thread_idx()[0], heads * dim, threads, unroll=4):
        (dst + (i // dim * (dim + TAIL) + i % dim)).store(o[cta_index * (heads * dim) + i].to(Float32))
    for i in cutlass.range(cute.arch.thread_idx()[0], heads * 2, threads, unroll=1):
        (dst + (i // 2 * (dim + TAIL) + dim + i % 2)).store(ml[cta_index * (heads * 2) + i])
