"""A small kernel written by hand in the form of generated source, with the plan that goes with it: y = x * w, and w goes into the cache.

Two arguments of fixed size, one of a named size, an output, a workspace, a cluster, a grid barrier's residency: all that the runtime
deals with, and nothing of the compiler's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cfdsl.compiler.config import Config
from cfdsl.compiler.parts import PARTS, Part
from cfdsl.compiler.plan import Arg, KernelPlan
from cfdsl.dsl.placement import Mesh

sys.path.insert(0, str(Path(__file__).parent))  # `against`, for the tests of this folder

SPEC = Path(__file__)  # the line below stands for a line of a spec
USERS_LINE = "y = cf.mul(x, w)"

SOURCE = """import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from primitives import host


@cute.kernel
def scale(x: cute.Tensor, w: cute.Tensor, cache_k: cute.Tensor, y: cute.Tensor, ws_sync: cute.Tensor):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()
    # src[{spec}:{line}]: y = x * w
    if thread < 64 and block == 0:
        y[0, thread] = (x[0, thread].to(Float32) * w[thread].to(Float32)).to(x.element_type)
        for token in cutlass.range(cache_k.shape[2]):
            cache_k[0, 0, token, thread] = w[thread]
            cache_k[0, 1, token, thread] = w[thread]
    if thread == 0 and block == 0:
        ws_sync[1] = Int32({flags})


scale.set_name_prefix("cfdsl_scale", remove_cutlass_symbol=True, keep_mangled_name=False)

ATTRS = dict(cluster=2, maxnreg={maxnreg})


@cute.jit
def launch(
    x: cute.Tensor, w: cute.Tensor, cache_k: cute.Tensor, y: cute.Tensor, workspace: cute.Tensor, stream: cuda.CUstream
):
    scale(x, w, cache_k, y, host.room(workspace, 0, Int32, 8)).launch(
        grid=[4 * host.gapless(cache_k), 1, 1], block=[64, 1, 1], cluster=[2, 1, 1], stream=stream, use_pdl=True, min_blocks_per_mp=1
    )
"""


@dataclass(frozen=True)
class HandmadeLowered:
    """What `cfdsl.compiler.stages.lower` would give."""

    plan: KernelPlan
    source: str
    part: Part = PARTS["h100-sxm"]
    stages: Mapping[str, str] = field(default_factory=lambda: {"traced": "traced text", "placed": "placed text", "plan": "plan text"})


def make_plan(residency: bool = False) -> KernelPlan:
    args = (
        Arg("x", (1, 64), "bf16", "input"),
        Arg("w", (64,), "bf16", "weight", align=128),
        Arg("cache_k", (1, 2, "tokens", 64), "bf16", "cache", mutated=True),
        Arg("y", (1, 64), "bf16", "output", mutated=True),
        Arg("ws_sync", (8,), "i32", "workspace", mutated=True, align=4),
    )
    config = Config(clusters=2, cluster_size=2, stages=2, warps=2)
    return KernelPlan(
        name="scale", model="handmade", dtype="bf16", mesh=Mesh(2, 2), config=config, args=args, ring=None, streams=(), buffers=(),
        barriers=(), steps=(), exchanges=(), smem_bytes=0, needs_residency=residency,
    )  # fmt: skip


def make_lowered(
    flags: int = 0, maxnreg: int | None = None, broken: str = "", residency: bool = False, stamp: bool = True
) -> HandmadeLowered:
    """The kernel that sets the status word to `flags`; `broken` replaces the assignment under the user's line."""
    line = next(number for number, text in enumerate(SPEC.read_text().splitlines(), 1) if text.startswith("USERS_LINE"))
    text = SOURCE.format(spec=SPEC, line=line, flags=flags, maxnreg=maxnreg)
    if broken:
        text = text.replace("(x[0, thread].to(Float32) * w[thread].to(Float32)).to(x.element_type)", broken)
    plan = make_plan(residency)
    return HandmadeLowered(plan=replace(plan, config=plan.config.with_(stamp_cluster=stamp)), source=text)


@pytest.fixture(scope="session")
def lower() -> Callable[..., HandmadeLowered]:
    """`make_lowered`: test files cannot import this one."""
    return make_lowered


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget the kernels of this process, as a new process would."""
    from cfdsl.runtime import build

    return lambda: monkeypatch.setattr(build, "_kernels", {})


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("CFDSL_CACHE_DIR", str(tmp_path))
    forget()
    return tmp_path
