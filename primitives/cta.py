"""A CTA of a fused kernel: consumer warps 0..W-1, then one producer warp; one flat shared-memory arena."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int8, Int32
from cutlass.memory import SmemAllocator

ARENA_ALIGN = 1024
CONSUMER_BARRIER = 1  # named barrier 0 is __syncthreads


def arena(nbytes: int) -> cute.Pointer:
    """All shared memory of the CTA, `nbytes` long and 1024-byte aligned, at the same address in every CTA of a cluster."""
    return SmemAllocator().allocate_tensor(Int8, cute.make_layout(nbytes), ARENA_ALIGN).iterator


def view(smem: cute.Pointer, offset: int, dtype: type, shape: tuple[int, ...] | int) -> cute.Tensor:
    """A row-major tensor of `dtype` and static `shape` at byte `offset` (a multiple of 16) of the arena. Nothing is initialised."""
    pointer = cute.recast_ptr((smem + offset).align(16), dtype=dtype)
    if isinstance(shape, int):
        return cute.make_tensor(pointer, cute.make_layout(shape))
    strides, stride = [], 1
    for dim in reversed(shape):
        strides.insert(0, stride)
        stride *= dim
    return cute.make_tensor(pointer, cute.make_layout(tuple(shape), stride=tuple(strides)))


def barriers(smem: cute.Pointer, offset: int) -> cute.Pointer:
    """A pointer to the mbarriers, 8 bytes each, at byte `offset` (a multiple of 8) of the arena."""
    return cute.recast_ptr((smem + offset).align(8), dtype=cutlass.Int64)


def thread() -> Int32:
    """This thread's number in its CTA; consumers are 0 .. 32 * W - 1."""
    tidx, _, _ = cute.arch.thread_idx()
    return tidx


def warp() -> Int32:
    """This warp's number in its CTA, known to the compiler to be the same in all lanes.

    All 32 lanes call it: it is a shuffle, and in a branch that only some of them take it may wait for the others for ever.
    """
    return cute.arch.make_warp_uniform(cute.arch.warp_idx())


def lane() -> Int32:
    """This thread's number in its warp."""
    return cute.arch.lane_idx()


def consumer_sync(warps: int) -> None:
    """Barrier among the `warps` consumer warps; the producer warp takes no part and is never held up.

    What a consumer thread wrote to shared memory before, all consumer threads see after. Every consumer thread must call it, as often as
    the others; it may be called any number of times.
    """
    if warps == 1:
        cute.arch.sync_warp()
        return
    cute.arch.barrier(barrier_id=CONSUMER_BARRIER, number_of_threads=32 * warps)


def piece(vector: cute.Tensor, offset: int, size: int) -> cute.Tensor:
    """`size` elements of a shared-memory vector from element `offset`."""
    return cute.make_tensor(vector.iterator + offset, cute.make_layout(size))


def row(tensor: cute.Tensor) -> cute.Tensor:
    """The tensor with one more dimension in front, of size 1."""
    return cute.make_tensor(tensor.iterator, cute.prepend(tensor.layout, cute.make_layout(1)))
