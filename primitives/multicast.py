"""A vector that every rank of a cluster needs whole: each rank asks the L2 for 1/N of it, and the copy engine delivers that to all N.

Only global memory can be the source of a multicast. What ranks have computed travels by `cluster_gather`.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from primitives import cta, stream

CHUNK = 16  # bytes: bulk copies move multiples of this, from and to multiples of it


def copy_to_all(dst: cute.Pointer, src: cute.Pointer, nbytes: Int32, mbar: cute.Pointer, ranks: int) -> None:
    """One thread: `nbytes` (a multiple of 16, not 0) from global memory to the same offset in every rank's shared memory.

    `dst` and `mbar` are local addresses; every rank, this one included, gets the bytes counted on its own barrier at `mbar`'s offset.
    """
    everybody = (1 << ranks) - 1  # written out: as an Int16 operand, 16 ranks would be -1, which some ptxas refuse
    code = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [{$r0}], [{$r1}], {$r2}, [{$r3}], "
    cute.arch.inline_ptx(f"{code}{everybody};", read_only_args=[dst.toint(), src.toint(), Int32(nbytes), mbar.toint()])


@cute.jit
def gather(src: cute.Tensor, dst: cute.Tensor, n: cutlass.Constexpr, mbar: cute.Pointer, rank: Int32, ranks: cutlass.Constexpr):
    """Bring `src[0:n]` of global memory into `dst` of every rank; all consumer threads of all ranks call it, thread 0 issues one copy.

    Before: the cluster has met once (every rank's barrier exists and no rank is missing), `mbar` is armed on each rank with n x itemsize
    bytes (`exchange.arm`), and what wrote `src` is complete: after griddepcontrol.wait, unless no kernel writes it. After
    `exchange.wait`: `dst` (n,), of the type of `src`, 16-byte aligned and at the same offset in every rank, is the whole vector.
    Bytes on each rank's `mbar`: n x itemsize, a multiple of 16. Several vectors may share `mbar`; buffer and barrier serve one launch.

    Rank r asks for chunks r x chunks / ranks up to those of rank r + 1: pieces of 16-byte chunks that differ by one at most. One rank
    alone gets an ordinary bulk copy, which is the faster path for a mask of one.
    """
    width = cutlass.const_expr(src.element_type.width // 8)
    chunks = cutlass.const_expr(n * width // CHUNK)
    per_chunk = cutlass.const_expr(CHUNK // width)
    if cutlass.const_expr(n * width % CHUNK != 0):
        raise ValueError(f"{n} elements of {width} bytes are not a multiple of {CHUNK} bytes")
    if cta.thread() == 0:
        if cutlass.const_expr(ranks == 1):
            stream.copy_bulk(dst.iterator, src.iterator, n * width, mbar, None)
        elif cutlass.const_expr(chunks % ranks == 0):
            first = rank * (chunks // ranks * per_chunk)
            copy_to_all(dst.iterator + first, src.iterator + first, chunks // ranks * CHUNK, mbar, ranks)
        else:
            first = rank * chunks // ranks
            mine = (rank + 1) * chunks // ranks - first
            if mine > 0:  # a vector of fewer chunks than ranks
                copy_to_all(dst.iterator + first * per_chunk, src.iterator + first * per_chunk, mine * CHUNK, mbar, ranks)
