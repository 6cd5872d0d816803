"""Generated source: parses, names only known primitives, says where it comes from, and is always the same."""

from __future__ import annotations

import ast
import importlib
import keyword
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import plans
import pytest
from plans import block, norm, plan_graph

import cfdsl as cf
from cfdsl.compiler.emit import EMITTERS, PRIMITIVES, emit
from cfdsl.compiler.emit.module import _maxnreg
from cfdsl.compiler.launch import launch_args
from cfdsl.compiler.names import MODULES, identifier, reserved
from cfdsl.compiler.plan import KernelPlan, Step
from cfdsl.errors import DuplicateName, PlanError

SHIPPED = dict(plans.shipped())


@pytest.fixture(params=SHIPPED.values(), ids=list(SHIPPED))
def plan(request: pytest.FixtureRequest) -> KernelPlan:
    made: KernelPlan = request.param
    return made


def named(source: str) -> set[str]:
    """Every `module.name` of the primitives in a source."""
    tree = ast.parse(source)
    pairs = {(n.value.id, n.attr) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    return {f"{module}.{name}" for module, name in pairs if module in (*MODULES, "rings")}


def bound(source: str) -> list[str]:
    """The parameters of the kernel and the names that it assigns."""
    tree = ast.parse(source)
    kernel = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "kernel")
    stored = [n.id for n in ast.walk(kernel) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return [*(a.arg for a in kernel.args.args), *dict.fromkeys(stored)]


def test_source_parses_and_names_known_primitives_only(plan: KernelPlan) -> None:
    source = emit(plan)
    assert named(source) <= set(PRIMITIVES)
    imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.module == "primitives"]
    imported = {alias.name for n in imports for alias in n.names}
    assert {used.split(".")[0].replace("rings", "ring") for used in named(source)} <= imported


def test_every_line_of_the_spec_that_has_steps_is_named(plan: KernelPlan) -> None:
    source, sources = emit(plan), [step.src for step in plan.steps if step.src is not None]
    assert sources
    for src in sources:
        assert f"# src[{Path(src.file).name}:{src.line}]: {src.code[:40]}" in source


def test_source_is_short_and_narrow(plan: KernelPlan) -> None:
    lines = emit(plan).splitlines()
    heads = len(plans.steps_of(plan, "decode"))  # of a cluster; each adds its own calls
    phases = len(plans.steps_of(plan, "grid_barrier"))  # a whole layer is two blocks long
    assert len(lines) <= 200 + 15 * max(0, heads - 1) + 15 * max(0, phases - 2)
    assert max(map(len, lines)) <= 140


def test_source_is_the_same_in_every_process() -> None:
    """The cache's key is made of it: what is looped over must have an order of its own, which sets of strings have not."""
    code = "from plans import layer; from cfdsl.compiler.emit import emit; print(emit(layer('llama-3.2-1b', 64, 2, splits=8)))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(plans.__file__).parent), *sys.path])}
    run = [sys.executable, "-c", code]
    made = [subprocess.run(run, env={**env, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout for seed in "12"]
    assert made[0] == made[1]
    assert "def kernel(" in made[0]


def test_names_do_not_collide(plan: KernelPlan) -> None:
    names = bound(emit(plan))
    params = [identifier(arg.name) for arg in plan.args]
    assert len(params) == len(set(params))
    assert not set(params) & {*(b.name for b in plan.buffers), *(b.name for b in plan.barriers), *MODULES}
    assert len(names) == len(set(names))


def test_the_launch_takes_the_plans_arguments_in_order() -> None:
    plan = block()
    tree = ast.parse(emit(plan))
    launch = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "launch")
    assert [a.arg for a in launch.args.args] == [*(arg.name for arg in launch_args(plan.args)), "stream"]


def constants(source: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z_0-9]+) = (.*)$", source, re.MULTILINE))


def test_constants() -> None:
    found = constants(emit(block(stages=6)))
    assert found["RING"].startswith("rings.Ring(stages=6, stage_bytes=16384, warps=8, data=0, full=98304, empty=98352")
    assert found["WQ"] == "stream.Rows(cols=4096, ld=4096, rows=2, warps_per_row=8, warps=8)"
    assert found["ATTRS"] == "dict(cluster=4, maxnreg=96)"
    assert "WK" not in found  # one constant per geometry


@pytest.mark.parametrize(
    ("plan", "registers"),
    [
        # 65536 registers in 4 partitions: 16384. Two CTAs of 9 warps are 18: 5 in one partition: 16384 / 5 / 32 = 102, in units of 8: 96
        (block(), 96),
        (norm(), 128),  # 2 x 8 warps: 4 in each: 16384 / 4 / 32
        (block(warps=4), 168),  # 2 x 5: 3 in one: 16384 / 3 / 32 = 170
        (norm(warps=16), 64),  # 2 x 16: 8 in each
        (block(ctas_per_sm=1), None),
        (norm(warps=2), None),  # 2 x 2 warps: 512 each, more than a thread can have
    ],
)
def test_register_cap(plan: KernelPlan, registers: int | None) -> None:
    assert _maxnreg(plan) == registers


def test_config_switches_reach_the_source() -> None:
    assert "griddepcontrol" in emit(block())
    quiet = emit(block(pdl=False))
    assert "griddepcontrol" not in quiet
    assert "use_pdl=False" in quiet
    assert emit(block(evict_first=False)).count(", None)") == 4  # the four weights


def test_tiles_for_behind_a_grid_barrier_are_asked_for_as_such() -> None:
    """The producer must not fill the ring with them ahead of the barrier, and the consumers say when they have passed it."""
    plan = block("llama-3.1-8b", 24, 4, splits=3, qkv="grid", window=3, early=2)
    found = re.findall(r"at = stream\.(?:rows|tokens)\(smem, (.*?), at, (\w+)", emit(plan))
    assert found == [("RING", "wq"), ("RING", "wk"), ("RING", "wv"), ("RING.behind(1)", "cache_k"), ("RING.behind(2)", "wo")]
    lines = [line.strip() for line in emit(plan).splitlines()]
    barriers = [i for i, line in enumerate(lines) if line == "phase = grid.barrier(ws_sync, phase, CTAS, WARPS)"]
    assert [lines[i + 1] for i in barriers] == ["rings.passed(smem, RING, 1)", "rings.passed(smem, RING, 2)"]
    assert "behind" not in emit(block("llama-3.1-8b", 24, 4, splits=3, qkv="grid", window=3))


def test_uneven_shares_count_their_rows() -> None:
    source = emit(plan_graph(_rows().trace("llama-2-7b"), 66, 2))  # 2048 granules of 2 rows over 132 CTAs
    assert "granule4096 = bid * 2048 // CTAS" in source
    assert "rows4096 = ((bid + 1) * 2048 // CTAS - granule4096) * 2" in source
    assert "rows4096 // 2" in source


def _rows() -> cf.Fusion:
    @cf.fusion
    def rows(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        return cf.outputs(y=cf.linear(x, cf.weight("w", (m.hidden, m.hidden)), shard="out"))

    return rows


# ---- names


def test_identifiers() -> None:
    assert identifier("wq") == "wq"
    for name in ("stream", "norm_", "at", "lambda", "i", "Float32", "WARPS", "n_tokens", "rows4096", "granule64", "mb_x", "tiles2"):
        assert identifier(name) == f"{name}_"
    assert not reserved("norm")
    names = ("at", "at_", "at__", "stream", "stream_")
    assert len({identifier(name) for name in names}) == len(names)


COLLIDING = (
    "stream", "at", "at_", "rank", "cluster", "smem", "i", "kernel", "launch", "host", "workspace", "rings", "ring", "gemv", "frag",
    "attention", "tiles", "split", "group", "holder", "status", "bid", "tidx", "cute", "cutlass", "cuda", "RANKS", "Int32", "ranks",
    "n_tokens", "rows64", "granule64", "position", "q", "k", "my_rows", "scratch", "x_frag", "mean", "rstd", "lambda_", "row", "w1", "self",
    "locals",
)  # fmt: skip


def awkward(name: str) -> cf.Fusion:
    """A fusion whose weight, input and output are called so."""

    @cf.fusion
    def fused(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input(f"{name}x", (batch, m.hidden))
        scale = cf.weight(f"{name}", (m.hidden,))
        with cf.clusters(over=m.kv_heads) as head:
            w = cf.weight(f"w{name}", (m.hidden, m.hidden)).split_heads(m.kv_heads)[head]
            h = cf.cluster_gather(cf.linear(cf.rms_norm(x, scale, 1e-5), w, shard="out"))
        y = cf.grid_gather(cf.merge_heads(h))
        return cf.outputs(**{f"{name}y": cf.linear(y, cf.weight(f"{name}o", (m.hidden, m.hidden)), shard="out") + x})

    return fused


@pytest.mark.parametrize("name", COLLIDING)
def test_names_that_mean_something_in_generated_code(name: str) -> None:
    plan = plan_graph(awkward(name).trace("llama-2-7b"), 32, 4)
    source = emit(plan)
    assert named(source) <= set(PRIMITIVES)
    names = bound(source)
    assert len(names) == len(set(names))
    params = [identifier(arg.name) for arg in plan.args]
    assert names[: len(params)] == params
    own = {*MODULES, "rings", "cute", "cutlass", "cuda", "Int32", "Float32", "RANKS", "CTAS", "WARPS", "THREADS", "RING", "workspace"}
    assert not set(names) & own
    assert not any(keyword.iskeyword(n) for n in names)
    tops = [n.targets[0].id for n in ast.parse(source).body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    assert len(tops) == len(set(tops))
    assert "ATTRS" in tops


def test_weights_whose_names_mean_a_constant() -> None:
    """One as the module has itself, and two that differ by their case alone: a constant each."""

    @cf.fusion
    def fused(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, z = cf.input("x", (batch, 64)), cf.input("z", (batch, 128))
        a, b = cf.linear(x, cf.weight("ranks", (640, 64)), shard="out"), cf.linear(z, cf.weight("Ranks", (640, 128)), shard="out")
        return cf.outputs(a=a, b=b)

    found = constants(emit(plan_graph(fused.trace("llama-2-7b"), 8, 2)))
    assert {name: text.split(",")[0] for name, text in found.items() if name.startswith("RANKS")} == {
        "RANKS_2": "stream.Rows(cols=64", "RANKS_3": "stream.Rows(cols=128",
    }  # fmt: skip


def test_the_kernels_own_workspace_cannot_be_an_argument() -> None:
    @cf.fusion
    def fused(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.silu(cf.input("ws_sync", (batch, m.hidden))))

    with pytest.raises(DuplicateName, match="'ws_sync' is taken"):
        plan_graph(fused.trace("llama-2-7b"), 1, 1)


def test_a_step_without_an_emitter() -> None:
    plan = plans.with_step(norm(), 0, lambda step: Step("dance", "nobody knows how"))
    with pytest.raises(PlanError, match="no emitter for step 'dance'"):
        emit(plan)


def test_every_step_op_of_a_shipped_plan_has_an_emitter() -> None:
    ops = {step.op for plan in SHIPPED.values() for step in plan.steps}
    assert ops - set(EMITTERS) <= {"mean_square"}


# ---- with CuTe DSL


@pytest.mark.compile
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_primitives_exist(primitive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_90a")
    module, name = primitive.split(".")
    assert hasattr(importlib.import_module(f"primitives.{'ring' if module == 'rings' else module}"), name)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["self", "locals", "Ellipsis"])
def test_names_that_mean_something_to_the_toolchain(name: str) -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.silu(cf.input(name, (batch, 64))))

    kernel = cf.compile(spec, "smollm2-135m", part="h100-sxm")
    assert [arg.name for arg in kernel.args] == [name, "y"]


@pytest.mark.compile
@pytest.mark.parametrize("multicast", [False, True])
def test_ptx(tmp_path: Path, multicast: bool) -> None:
    from cfdsl.runtime import toolchain
    from cfdsl.runtime.cache import KernelCache

    plan = block(clusters=32, cluster_size=2, multicast=multicast)
    path = KernelCache(tmp_path).source("attention_block", emit(plan))
    built: Any = toolchain.build(path, plan, "sm_90a", f"test_emit_{multicast}")
    ptx = built.ptx.decode()
    assert "st.async" in ptx
    copies = [line for line in ptx.splitlines() if "cp.async.bulk.shared::cluster.global" in line]
    assert any("L2::cache_hint" in line for line in copies)
    assert "griddepcontrol.launch_dependents" in ptx
    assert "griddepcontrol.wait" in ptx
    assert re.search(r"\.reqnctapercluster\s+2", ptx)
    assert re.search(r"\.maxnreg\s+96", ptx)
    assert len(re.findall(r"barrier\.cluster\.arrive", ptx)) == 1  # exchanges count bytes; the cluster meets once, at the start
    assert len(re.findall(r"barrier\.cluster\.wait", ptx)) == 2  # consumers, and the producer before it leaves
    assert ("multicast::cluster" in ptx) is multicast
