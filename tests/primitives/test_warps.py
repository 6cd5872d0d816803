"""What all lanes of a warp do together is not done in a branch that only some of them take: there it may wait for the others for ever."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import cases
import pytest
from cases import Case
from expect import divergent_shuffles, no_shuffle_in_a_branch

import cfdsl as cf

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for places in ("primitives/*.py", "examples/*.py", "tests/primitives/*_kernels.py") for path in ROOT.glob(places))
BY_LANE = re.compile(r"\blane|cta\.thread\(\)")
TOGETHER = re.compile(
    r"cta\.(warp|consumer_sync)|warp\.totals?|over_warp|over_block|cute\.arch\.(shuffle_\w+|sync_\w+|barrier|make_warp_uniform)"
)


def together_in_branches(source: str) -> list[str]:
    """The calls of TOGETHER under an `if` or `while` whose test asks for a lane or a thread."""
    branches = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If | ast.While)]
    lines = [line for branch in branches if BY_LANE.search(ast.unparse(branch.test)) for line in branch.body]
    calls = [call for line in lines for call in ast.walk(line) if isinstance(call, ast.Call)]
    return [f"line {call.lineno}: {ast.unparse(call)}" for call in calls if TOGETHER.fullmatch(ast.unparse(call.func))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_does(path: Path) -> None:
    assert together_in_branches(path.read_text()) == []


def test_a_source_that_does_is_told() -> None:
    assert together_in_branches("if cta.lane() == 0:\n    scratch[cta.warp()] = x") == ["line 2: cta.warp()"]
    assert together_in_branches("while lane < n:\n    y = warp.total(x)") == ["line 2: warp.total(x)"]
    assert together_in_branches("own = cta.warp()\nif cta.lane() == 0:\n    scratch[own] = x") == []


@pytest.mark.compile
@pytest.mark.parametrize("case", [*cases.VECTOR_CASES, *cases.SELECT_CASES], ids=lambda case: case.name)
def test_no_kernel_does(case: Case) -> None:
    no_shuffle_in_a_branch(case.program)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["rms_norm", "attention_block", "ffn_block", "decoder_layer", "lm_head"])
def test_no_shipped_kernel_does(name: str) -> None:
    kernel = cf.compile(getattr(importlib.import_module(f"fusions.{name}"), name), "llama-3.1-8b", part="h100-sxm")
    assert divergent_shuffles(kernel.sass) == []


def test_a_kernel_that_does_is_told() -> None:
    """What the assembler makes of a shuffle that some lanes reach alone, of one by a whole warp, and of a barrier."""
    waits = "        /*0c80*/                   WARPSYNC.COLLECTIVE R31, `(.L_x_16) ;\n        /*0c90*/                   "
    assert divergent_shuffles(f"{waits}SHFL.IDX P0, R29, R34, R35, R36 ;") == ["SHFL.IDX P0, R29, R34, R35, R36 "]
    assert divergent_shuffles("        /*0630*/                   SHFL.IDX PT, R29, R29, RZ, 0x1f ;") == []
    assert divergent_shuffles(f"{waits}NOP ;") == []
