"""A CuTe kernel written by hand, with the collectives of `primitives`: rows scaled to length 1, each row spread over a cluster.

Nothing of the language or the compiler is used. A cluster takes several rows, one after another: so it exchanges in a loop, and the number
of the row is the number of the call, from which the collective knows which of its barriers it is at.

    python examples/07_by_hand.py
"""

from __future__ import annotations

import os

os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")  # CuTe DSL reads it when it is first imported; without a GPU it would assume another

import tempfile
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
import torch
from cutlass import Float32
from cutlass.cute.runtime import load_module, make_fake_compact_tensor, make_fake_stream

from primitives import channel, collectives, cta, warp

RANKS, CLUSTERS, WARPS = 4, 8, 8
ROWS, COLS = 64, 16384
THREADS = 32 * WARPS
EACH = COLS // RANKS // THREADS  # elements of a row in a thread's registers

# The place of the all-reduce in shared memory: two barriers, then two landing places of one word from each rank. 4 bytes from each rank
# arrive at each barrier. After it, a word for each warp.
SUM = channel.Channel(
    algorithm="push", ranks=RANKS, warps=WARPS, n=1, dtype=Float32, tx=(4 * RANKS,), sets=2, mbar=0, box=16, set_bytes=16, op="sum"
)
WARP_SUMS, ARENA = 64, 128


@cute.kernel
def unit_rows(x: cute.Tensor, y: cute.Tensor):
    """y = x / |x| by rows, f32 (ROWS, COLS) flat; cluster c takes rows c, c + CLUSTERS, ..."""
    smem = cta.arena(ARENA)
    rank = cute.arch.block_idx_in_cluster()
    block, _, _ = cute.arch.block_idx()
    if cta.thread() == 0:
        channel.init(smem, SUM)
    cute.arch.sync_threads()
    cute.arch.cluster_arrive_relaxed()  # every rank's barriers exist before anybody pushes
    cute.arch.cluster_wait()
    warp_sums = cta.view(smem, WARP_SUMS, Float32, WARPS)
    mine = cute.make_rmem_tensor(EACH, Float32)
    for i in cutlass.range(ROWS // CLUSTERS, unroll=1):
        start = (block // RANKS + i * CLUSTERS) * COLS + rank * (COLS // RANKS) + cta.thread()
        acc = Float32(0.0)
        for j in cutlass.range_constexpr(EACH):
            mine[j] = x[start + j * THREADS]
            acc += mine[j] * mine[j]
        acc = warp.total(acc)
        own = cta.warp()  # by all lanes: it is a shuffle
        if cta.lane() == 0:
            warp_sums[own] = acc
        cta.consumer_sync(WARPS)
        term = warp_sums[0]
        for w in cutlass.range_constexpr(1, WARPS):
            term += warp_sums[w]
        # Its barrier at the start also keeps the next row's warp sums from overwriting these.
        total = collectives.cluster_reduce_scalar(smem, SUM, i, term, rank)
        scale = cute.math.rsqrt(total)
        for j in cutlass.range_constexpr(EACH):
            y[start + j * THREADS] = mine[j] * scale


@cute.jit
def launch(x: cute.Tensor, y: cute.Tensor, stream: cuda.CUstream):
    """All clusters at once."""
    unit_rows(x, y).launch(grid=[RANKS * CLUSTERS, 1, 1], block=[THREADS, 1, 1], cluster=[RANKS, 1, 1], stream=stream)


def compiled(folder: str) -> Any:
    """The kernel, compiled for sm_90a; needs no GPU."""
    flat = make_fake_compact_tensor(Float32, (ROWS * COLS,), assumed_align=16)
    options = f"--enable-tvm-ffi --keep-ptx --keep-cubin --gpu-arch sm_90a --dump-dir={folder}"
    return cute.compile(launch, flat, flat, make_fake_stream(use_tvm_ffi_env_stream=True), options=options)


def main() -> None:
    """Compile it, look for the exchange in its PTX, and run it where there is a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(folder)
        print(f"{ROWS} rows of {COLS}, each spread over {RANKS} CTAs. The exchange, in PTX:\n")
        wanted = ("st.async", "mbarrier.try_wait", "mbarrier.arrive.expect_tx", "barrier.cluster.arrive")
        for line in program.artifacts.PTX.splitlines():
            if line.strip().startswith(wanted):
                print(f"  {line.strip()}")
        if not (torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9):
            print("\nNo GPU of compute capability 9.0 here: compiled, not launched.")
            return
        program.export_to_c(f"{folder}/unit_rows.o", "unit_rows")
        run = load_module(f"{folder}/unit_rows.o", enable_tvm_ffi=True).unit_rows
        x = torch.randn(ROWS, COLS, device="cuda")
        y = torch.empty_like(x)
        run(x.view(-1), y.view(-1))
        want = torch.nn.functional.normalize(x.double(), dim=1)
        print(f"\nOn the GPU: relative error {float((y - want).norm() / want.norm()):.1e}")


if __name__ == "__main__":
    main()
