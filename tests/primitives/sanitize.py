"""Launch every primitive's harness kernel once, and a small attention block: for compute-sanitizer.

    compute-sanitizer --tool memcheck python tests/primitives/sanitize.py
    compute-sanitizer --tool racecheck python tests/primitives/sanitize.py [TEXT]
    compute-sanitizer --tool racecheck python tests/primitives/sanitize.py --every-lane gemv

With --every-lane each lane arrives where a stage of a ring is given back, and not one for its warp: racecheck follows a barrier for the
threads that arrive on it, and no further. Cases only. With TEXT, only kernels whose name contains it.

Results are checked too, on the CPU: what torch runs on the GPU is not what is looked at. The exit status is 1 if any is wrong. What to make
of the tools' reports is in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import cases  # noqa: E402  (first: it says what to compile for, before CuTe DSL is imported)
import cutlass  # noqa: E402
import cutlass.cute as cute  # noqa: E402
import tensors  # noqa: E402
import torch  # noqa: E402
from cutlass import Int32  # noqa: E402

from primitives import cta  # noqa: E402
from primitives import ring as rings  # noqa: E402


def one_case(case: cases.Case) -> None:
    """Compile, launch once, check."""
    variant = case.variants[-1]
    with made_on("cpu"):
        inputs = case.inputs(variant)
    outs = case.run(case.program, [tensor.cuda() for tensor in inputs])
    with made_on("cpu"):
        case.check({name: tensor.cpu() for name, tensor in outs.items()}, variant, inputs, case.name)


@contextlib.contextmanager
def made_on(device: str) -> Iterator[None]:
    """The harness makes its tensors there."""
    before, tensors.DEVICE = tensors.DEVICE, device
    try:
        yield
    finally:
        tensors.DEVICE = before


def alone(case: cases.Case) -> bool:
    """Whether ranks push to themselves, in clusters of one: the hardware does it, and memcheck ends the kernel for it."""
    pushes = case in (*cases.CLUSTER_CASES, *cases.LOOPS) and not any(way in case.name for way in ("multicast", "global"))
    return case.cluster == 1 and pushes


def attention_block() -> None:
    """smollm2-135m on clusters of four, with rows over the grid and with rows over a cluster."""
    import cfdsl
    from fusions.attention_block import attention_block as block

    model = cfdsl.models.resolve("smollm2-135m")
    for qkv in ("grid", "rows"):
        kernel = cfdsl.compile(block, model, cluster_size=4, qkv=qkv)
        tensors = block.example_inputs(model, 1, "bf16", device="cuda", length=100, capacity=128)
        want = block.reference(model, tensors, "f64")["y"]
        kernel(**tensors)
        torch.cuda.synchronize()
        error = float((tensors["y"].double() - want).norm() / want.norm())
        assert error <= 4e-3, f"qkv={qkv}: relative error {error:.2e}"


def collectives() -> None:
    """Softmax terms, one word, and what comes by multicast, each by every algorithm that can."""
    import cfdsl

    heads = (8, 64)
    for kind, op, shape in (("reduce", "lse", heads), ("reduce_scatter", "lse", heads), ("reduce", "sum", (1,)), ("gather", "sum", (64,))):
        for algorithm in cfdsl.collective_algorithms(kind, op=op, shape=shape, cluster=4):
            kernel = cfdsl.collective(kind, op=op, shape=shape, cluster=4, clusters=2, algorithm=algorithm, repeat=3)
            tensors = {a.name: torch.ones(a.shape, device="cuda") for a in kernel.args}
            kernel(**tensors)
            torch.cuda.synchronize()
            y = tensors["y"]
            want = 4.0 if (kind, op) == ("reduce", "sum") else 1.0  # of terms that are all 1, with a sum of 1, the average is 1
            assert bool((y == want).all()), f"{kind} {op} by {algorithm}: {y.flatten()[:4].tolist()}, not {want}"


@cute.jit
def init_for_every_lane(smem: cute.Pointer, ring: cutlass.Constexpr):
    """`ring.init`, but empty barriers count the lanes."""
    for s in cutlass.range_constexpr(ring.stages):
        cute.arch.mbarrier_init(cta.barriers(smem, ring.full) + s, 1)
        cute.arch.mbarrier_init(cta.barriers(smem, ring.empty) + s, 32 * ring.warps)
    if cutlass.const_expr(ring.passed > 0):
        rings.passed(smem, ring, 0)


@cute.jit
def release_by_every_lane(smem: cute.Pointer, ring: cutlass.Constexpr, at: Int32):
    """`ring.release`, by all lanes."""
    cute.arch.mbarrier_arrive(cta.barriers(smem, ring.empty) + at % ring.stages)


def main(*words: str) -> int:
    """Run all that match; the number of failures, at most 1."""
    each = "--every-lane" in words
    text = next((word for word in words if word != "--every-lane"), "")
    if each:
        rings.init, rings.release = init_for_every_lane, release_by_every_lane
    todo = [(case.name, lambda case=case: one_case(case)) for case in cases.ALL_CASES if not alone(case)]
    print("left out, for memcheck refuses pushes in a cluster of one:", *(case.name for case in cases.ALL_CASES if alone(case)), sep="\n  ")
    todo += [] if each else [("attention_block", attention_block), ("collectives", collectives)]
    failed = 0
    for name, launch in todo:
        if text not in name:
            continue
        start = time.perf_counter()
        try:
            launch()
            verdict = "ok"
        except Exception:
            traceback.print_exc()
            verdict, failed = "FAILED", 1
        print(f"{name:64s} {verdict} {time.perf_counter() - start:6.2f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
