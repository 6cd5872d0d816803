"""Harness kernels of what finds an index."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
import harness
from cutlass import Int32
from harness import THREADS, WARPS

from primitives import argmax, cta, grid


@cute.kernel
def greatest(
    late: cute.Tensor, x: cute.Tensor, sync: cute.Tensor, pairs: cute.Tensor, out: cute.Tensor, each: cute.Tensor,
    ctas: cutlass.Constexpr, n: cutlass.Constexpr,
):
    """out (1,): the index of the greatest of x (ctas * n,), of which each CTA has n; each (ctas, 2): the lowest and highest index that
    threads of a CTA found in its own part."""
    nbytes = cutlass.const_expr(128)
    smem = cta.arena(nbytes)
    harness.enter(smem, nbytes, THREADS)
    harness.meet(late)
    block, _, _ = cute.arch.block_idx()
    scratch = cta.view(smem, 0, Int32, (WARPS, 2))
    best, at = argmax.nothing()
    for i in cutlass.range(cta.thread(), n, THREADS, unroll=1):
        best, at = argmax.better(best, at, argmax.order(x[block * n + i]), block * n + i)
    best, at = argmax.over_block(best, at, scratch, WARPS)
    if cta.thread() == 0:
        each[block, 0] = at
    if cta.thread() == THREADS - 1:
        each[block, 1] = at
    argmax.publish(pairs, best, at)
    grid.barrier(sync, grid.phase(sync), ctas, WARPS)
    argmax.store_best(out, pairs, ctas)
    harness.leave()
