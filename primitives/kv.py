"""The KV cache as the kernel sees it: how long it is, and where the new token goes."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64

from primitives import cta

LENGTH_CLAMPED = 1  # status bits in word 1 of the sync workspace
POSITION_CLAMPED = 2
BARRIER_TIMED_OUT = 4
TOKEN_CLAMPED = 8


def clamp(value: Int32, low: Int32, high: Int32) -> Int32:
    """`value` if it lies in [low, high], else the nearer end. No branch: nothing waits for the value until it is used."""
    return cutlass.max(cutlass.min(value, high), low)


@cute.jit
def flag(status: cute.Pointer, bit: cutlass.Constexpr, wrong):
    """Set a status bit in global memory if `wrong`; the first thread of each CTA does it. Goes last: nothing waits for it."""
    if wrong & (cta.thread() == 0):
        cute.arch.atomic_or(status, Int32(bit), sem="relaxed", scope="gpu")


@cute.jit
def append(
    keys: cute.Tensor, values: cute.Tensor, k: cute.Tensor, v: cute.Tensor, heads: cutlass.Constexpr, dim: cutlass.Constexpr, base: Int64,
    head_stride: Int64, threads: cutlass.Constexpr,
):
    """Write the new token's `heads` x `dim` keys and values (f32 in shared memory) to both caches, rounded to their type.

    `threads` consumer threads of one CTA; `k`, `v` f32 (heads * dim,) synchronised before. The caller makes sure that there is room.
    `base` is the element offset of (first head, new token); heads lie `head_stride` elements apart.
    """
    for i in cutlass.range(cta.thread(), heads * dim, threads, unroll=1):
        offset = base + Int64(i // dim) * head_stride + i % dim
        keys[offset] = k[i].to(keys.element_type)
        values[offset] = v[i].to(values.element_type)
