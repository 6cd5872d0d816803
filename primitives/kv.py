"""The KV cache as the kernel sees it: how long it is, and where the new token goes."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64

from primitives import cta

LENGTH_CLAMPED = 1  # status bits in word 1 of the sync workspace
POSITION_CLAMPED = 2
BARRIER_TIMED_OUT = 4


@cute.jit
def clamp(value: Int32, low: Int32, high: Int32, flag: cutlass.Constexpr, status: cute.Pointer) -> Int32:
    """`value` if it lies in [low, high], else the nearer end; then status bit `flag` is set (by the grid's first thread)."""
    kept = cutlass.max(cutlass.min(value, high), low)
    if kept != value:
        bidx, _, _ = cute.arch.block_idx()
        if (bidx == 0) & (cta.thread() == 0):
            cute.arch.atomic_or(status, Int32(flag), sem="relaxed", scope="gpu")
    return kept


@cute.jit
def append(
    keys: cute.Tensor, values: cute.Tensor, k: cute.Tensor, v: cute.Tensor, heads: cutlass.Constexpr, dim: cutlass.Constexpr, base: Int64,
    head_stride: Int64, threads: cutlass.Constexpr,
):
    """Write the new token's `heads` x `dim` keys and values (f32 in shared memory) to both caches, rounded to their type.

    `base` is the element offset of (first head, new token); heads lie `head_stride` elements apart.
    """
    for i in cutlass.range(cta.thread(), heads * dim, threads, unroll=1):
        offset = base + Int64(i // dim) * head_stride + i % dim
        keys[offset] = k[i].to(keys.element_type)
        values[offset] = v[i].to(values.element_type)
