"""Run a primitive in a small kernel of its own: the frame around it, its compilation and its launch.

A harness kernel is a `@cute.kernel` whose parameters are `late` (see `meet`), tensors, and constants. `build` compiles it, which needs
no GPU; calling the result launches it. In all of them shared memory is full of NaN before the primitive runs, so that what is read
before it is written shows in the result.
"""

from __future__ import annotations

import os

os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")  # CuTe DSL reads it when it is first imported

import functools
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream
from stress import NONE, hold, settle

from primitives import cta

WARPS = 8  # consumer warps; a kernel with a ring has a producer warp after them
THREADS = 32 * WARPS
DTYPES = {"bf16": cutlass.BFloat16, "f16": cutlass.Float16, "f32": cutlass.Float32, "i32": cutlass.Int32}

Tensors = Sequence[tuple[str, tuple[int, ...]]]  # (dtype, shape) of each, row-major


@cute.jit
def enter(smem: cute.Pointer, nbytes: cutlass.Constexpr, block: cutlass.Constexpr):
    """Every thread, first: NaN, as f32, f16 and bf16, in all of shared memory. Initialise barriers after it, then `meet`."""
    words = cta.view(smem, 0, Int32, nbytes // 4)
    for i in cutlass.range(cta.thread(), nbytes // 4, block, unroll=1):
        words[i] = Int32(-1)
    cute.arch.fence_proxy("async.shared", space="cta")  # bulk copies come after these stores
    cute.arch.sync_threads()


@cute.jit
def meet(late: cute.Tensor):
    """Every thread, after thread 0 made the barriers: all CTAs of the cluster are ready for pushes; then the late ones fall behind.

    `late` is i32 (2,): the CTA and the warp that `stress` holds up, here and after each consumer barrier and exchange.
    """
    cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()
    hold(late)


def leave() -> None:
    """Every thread, last: nobody exits while a peer may still push to it, nor (in a broken kernel) while a copy is on its way."""
    settle()
    cute.arch.cluster_arrive_relaxed()
    cute.arch.cluster_wait()


@cute.jit
def _launch(
    tensors, stream: cuda.CUstream, kernel: cutlass.Constexpr, constants: cutlass.Constexpr,
    grid: cutlass.Constexpr, cluster: cutlass.Constexpr, block: cutlass.Constexpr, pdl: cutlass.Constexpr,
):
    kernel(*tensors, *constants).launch(
        grid=[grid, 1, 1], block=[block, 1, 1], cluster=[cluster, 1, 1], stream=stream, use_pdl=pdl, min_blocks_per_mp=1
    )


@dataclass
class Program:
    """A compiled harness kernel. Call it with its tensors; `late` = (CTA, warp) matters only if it was built under `stress`."""

    compiled: Any
    _function: Any = field(default=None, repr=False)

    @property
    def ptx(self) -> str:
        return str(self.compiled.artifacts.PTX).rstrip("\0")

    @property
    def cubin(self) -> bytes:
        return bytes(self.compiled.artifacts.CUBIN)

    def __call__(self, *tensors: Any, late: tuple[int, int] = (NONE, NONE)) -> None:
        """Launch on torch's current stream and wait."""
        import torch

        self.start(torch.tensor(late, dtype=torch.int32, device="cuda"), *tensors)
        torch.cuda.synchronize()

    def start(self, who: Any, *tensors: Any) -> None:
        """Launch on torch's current stream; `who` is `late` as a tensor."""
        if self._function is None:
            symbol = f"harness_{next(_numbers)}"
            self.compiled.export_to_c(f"{_folder().name}/{symbol}.o", symbol)
            self._function = getattr(cute.runtime.load_module(f"{_folder().name}/{symbol}.o", enable_tvm_ffi=True), symbol)
        self._function((who, *tensors))


_numbers = itertools.count()


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cfdsl-primitives-")




def build(
    kernel: Any, tensors: Tensors, *constants: Any, grid: int = 1, cluster: int = 1, block: int = THREADS, pdl: bool = False
) -> Program:
    """Compile `kernel(late, *tensors, *constants)` for `grid` CTAs of `block` threads in clusters of `cluster`."""
    fake = [_fake("i32", (2,)), *(_fake(dtype, shape) for dtype, shape in tensors)]
    compiled = cute.compile(
        _launch, tuple(fake), make_fake_stream(use_tvm_ffi_env_stream=True), kernel, constants, grid, cluster, block, pdl,
        options=f"--enable-tvm-ffi --keep-ptx --keep-cubin --gpu-arch sm_90a --dump-dir={_folder().name}",
    )  # fmt: skip
    return Program(compiled)


def _fake(dtype: str, shape: tuple[int, ...]) -> Any:
    return make_fake_compact_tensor(DTYPES[dtype], shape, stride_order=tuple(reversed(range(len(shape)))), assumed_align=16)
