"""The toolchain, without a GPU: keys, compiling, errors, and what the compiled function checks of its arguments by itself."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cfdsl.errors import CompileFailed
from cfdsl.runtime import artifacts, toolchain
from cfdsl.runtime.cache import KernelCache
from cfdsl.runtime.preload import Standin
from cfdsl.runtime.spec_line import spec_line


def test_the_key_depends_on_everything_that_the_object_depends_on(lower: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = lower().plan
    keys = [
        toolchain.cache_key("a", plan, "sm_90a"),
        toolchain.cache_key("b", plan, "sm_90a"),
        toolchain.cache_key("a", plan, "sm_100a"),
    ]
    moved = (dataclasses.replace(plan.args[0], align=32), *plan.args[1:])
    for changes in ({"args": moved}, {"config": plan.config.with_(stamp_cluster=False)}, {"model": "other"}, {"name": "other"}):
        keys.append(toolchain.cache_key("a", dataclasses.replace(plan, **changes), "sm_90a"))
    for name, value in [
        ("OPTIONS", ("--enable-tvm-ffi",)),
        ("VERSION", 99),
        ("_version", str),
        ("primitives_fingerprint", lambda: "edited"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(toolchain, name, value)
            keys.append(toolchain.cache_key("a", plan, "sm_90a"))
    assert len(set(keys)) == len(keys)
    assert toolchain.cache_key("a", plan, "sm_90a") == keys[0]


def test_the_fingerprint_is_of_the_primitives_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint() -> str:
        return toolchain.primitives_fingerprint.__wrapped__()

    package = tmp_path / "primitives"
    package.mkdir()
    (package / "__init__.py").write_text("")
    spec = dataclasses.make_dataclass("Spec", ["submodule_search_locations"])([str(package)])
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: spec)
    seen = {fingerprint()}
    (package / "ring.py").write_text("a = 1")
    seen.add(fingerprint())
    (package / "ring.py").write_text("a = 2")
    seen.add(fingerprint())
    (package / "ring.py").rename(package / "wheel.py")
    seen.add(fingerprint())
    assert len(seen) == 4


def test_a_generated_line_leads_back_to_the_spec(tmp_path: Path) -> None:
    spec = tmp_path / "my: spec.py"
    spec.write_text("one\n  y = x + 1  \n")
    generated = f"import x\n# src[{spec}:2]: y = x + 1\nbad()\nworse()\n# src[{spec}:1]: one\n"
    found = spec_line(generated, 4)
    assert found is not None
    assert (found.file, found.line, found.code) == (str(spec), 2, "y = x + 1")
    assert spec_line(generated, 1) is None


@pytest.fixture(scope="module")
def build(lower: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., toolchain.Built]:
    cache = KernelCache(tmp_path_factory.mktemp("toolchain"))

    def build(symbol: str = "scale", **how: Any) -> toolchain.Built:
        lowered = lower(**how)
        return toolchain.build(cache.source("scale", lowered.source), lowered.plan, "sm_90a", symbol)

    return build


@pytest.mark.compile
def test_what_comes_out(build: Callable[..., toolchain.Built], tmp_path: Path) -> None:
    built = build()
    binary = artifacts.read_cubin(built.cubin)
    assert binary.kernel == "cfdsl_scale_0"
    assert (binary.stack, built.log) == (0, "")
    assert b".target sm_90a" in built.ptx
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(built.cubin)
    assert "EXIT" in artifacts.disassemble(cubin)


@pytest.mark.compile
def test_a_kernel_with_a_stack_is_asked_what_it_spills(monkeypatch: pytest.MonkeyPatch, build: Callable[..., toolchain.Built]) -> None:
    """By a second compilation, which keeps the assembler's remarks."""
    monkeypatch.setattr(toolchain, "read_cubin", lambda cubin: dataclasses.replace(artifacts.read_cubin(cubin), stack=8))
    built = build()
    assert f"Used {artifacts.read_cubin(built.cubin).registers} registers" in built.log
    assert artifacts.spill_bytes(built.log) == 0


@pytest.mark.compile
@pytest.mark.parametrize("stamp", [True, False])
def test_the_cluster_size_is_stamped_on_the_kernel_if_the_config_says_so(build: Callable[..., toolchain.Built], stamp: bool) -> None:
    assert (b".reqnctapercluster 2" in build(stamp=stamp).ptx) is stamp


@pytest.mark.compile
def test_the_register_limit_is_stamped(build: Callable[..., toolchain.Built]) -> None:
    assert b".maxnreg" not in build().ptx
    assert b".maxnreg 24" in build(maxnreg=24).ptx


@pytest.mark.compile
@pytest.mark.parametrize(
    ("broken", "detail"),
    [
        ("undefined_name", "NameError"),  # Python, while tracing
        ("undefined() if thread > 3 else 1", "undefined"),  # the tracer, in a branch
        ("cute.arch.no_such_function(x)", "no_such_function"),
    ],
)
def test_errors_point_to_the_users_line(build: Callable[..., toolchain.Built], broken: str, detail: str) -> None:
    with pytest.raises(CompileFailed, match=detail) as caught:
        build(broken=broken)
    assert caught.value.src is not None
    assert caught.value.src.file.endswith("conftest.py")
    assert caught.value.src.code.startswith("USERS_LINE")
    assert "cfdsl_scale_" in caught.value.source
    assert "(line " in caught.value.source


@pytest.mark.compile
def test_gpu_arch_governs_even_if_cutlass_was_imported_for_another_part(tmp_path: Path) -> None:
    script = f"""
import sys, runpy, pathlib
import cutlass
from cfdsl.runtime import toolchain
from cfdsl.runtime.cache import KernelCache
lower = runpy.run_path({str(Path(__file__).with_name("conftest.py"))!r})["make_lowered"]()
path = KernelCache(pathlib.Path({str(tmp_path)!r})).source("scale", lower.source)
built = toolchain.build(path, lower.plan, "sm_90a", "scale")
print([line for line in built.ptx.decode().splitlines() if line.startswith(".target")])
"""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "CUTE_DSL_ARCH": "sm_100a", "PYTHONPATH": os.pathsep.join((root, os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert done.stdout.strip() == "['.target sm_90a']", done.stderr[-2000:]


def test_default_arch_leaves_a_choice_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cutlass", raising=False)
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_100a")
    toolchain.default_arch("sm_90a")
    assert os.environ["CUTE_DSL_ARCH"] == "sm_100a"
    monkeypatch.delenv("CUTE_DSL_ARCH")
    toolchain.default_arch("sm_90a")
    assert os.environ["CUTE_DSL_ARCH"] == "sm_90a"


# ---- what the compiled function checks, and what it does not: the reason for each line of `Kernel._launch` ----

ADDRESS = 1 << 20  # never read: without a GPU, a call that passes all checks ends in an error of the CUDA runtime


def call(function: Callable[..., None], leave_out: int = 0, **changes: Any) -> None:
    described = {
        "x": Standin((1, 64), "bf16", ADDRESS),
        "w": Standin((64,), "bf16", ADDRESS),
        "cache_k": Standin((1, 2, 7, 64), "bf16", ADDRESS),
        "y": Standin((1, 64), "bf16", ADDRESS),
        "workspace": Standin((32,), "i32", ADDRESS),
    }
    given = list({**described, **changes}.values())
    function(*(made.value if isinstance(made, Standin) else made for made in given[: len(given) - leave_out]))


@pytest.fixture(scope="module")
def function(build: Callable[..., toolchain.Built], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    if torch.cuda.is_available():
        pytest.skip("here the calls would be launched")
    path = tmp_path_factory.mktemp("object") / "kernel.o"
    path.write_bytes(build("my_symbol").object)
    return toolchain.load(path, "my_symbol")


@pytest.mark.compile
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": Standin((1, 65), "bf16", ADDRESS)}, "x.shape"),
        ({"x": Standin((64,), "bf16", ADDRESS)}, "expected ndim=2"),
        ({"w": Standin((64,), "f16", ADDRESS)}, "expected dtype=bfloat16"),
        ({"w": Standin((64,), "bf16", ADDRESS + 64)}, "expected data alignment=128"),
        ({"w": Standin((64,), "bf16", ADDRESS, strides=(2,))}, "w.strides"),
        ({"w": Standin((64,), "bf16", ADDRESS, index=1)}, "expected to match x.device.index"),
        ({"w": torch.zeros(64, dtype=torch.bfloat16)}, "expected device_type=cuda|Misaligned"),
        ({"w": None}, "expected Tensor"),
    ],
)
def test_checked_by_the_compiled_function(function: Callable[..., None], changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(function, **changes)
    with pytest.raises(TypeError, match="Expects 5 parameters"):
        call(function, leave_out=1)


@pytest.mark.compile
def test_what_is_left_to_the_launch_and_to_cuda(function: Callable[..., None]) -> None:
    """Gaps that only strides tell: the grid is empty then, which on a GPU is an error of its own."""
    gap = Standin((1, 2, 7, 64), "bf16", ADDRESS, strides=(2 * 9 * 64, 9 * 64, 64, 1))
    for changes in ({}, {"cache_k": gap}):
        with pytest.raises(RuntimeError, match="(?i)cuda"):
            call(function, **changes)
