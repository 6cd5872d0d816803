"""Vectors that are too long for the registers are multiplied in turns, each with a part of every row."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from plans import plan_graph, steps_of, with_params
from random_specs import random_tensors
from simulate import simulate

import cfdsl as cf
from cfdsl.compiler.affine import Affine
from cfdsl.compiler.check import check
from cfdsl.compiler.cost import choose
from cfdsl.compiler.emit import emit
from cfdsl.compiler.geometry import column_turns
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.plan import KernelPlan
from cfdsl.dsl.interpret import interpret
from cfdsl.errors import NoLegalConfig, PlanError
from fusions.ffn_block import ffn_block

QWEN, LLAMA_70B = 18944, 28672  # feed-forward sizes
ROWS = 24


@pytest.mark.parametrize(
    ("cols", "stage_bytes", "warps", "ctas_per_sm", "turns"),
    [
        (14336, 16384, 8, 1, 1),
        (QWEN, 16384, 8, 1, 2),  # in one: 4 pieces of 3 chunks, (96 + 24) * 11 / 8 + 8 = 173 registers of 168; in two: 107
        (LLAMA_70B, 16384, 8, 1, 2),  # 8 chunks and 4 in each of two tiles: 140
        (53248, 16384, 8, 1, 4),  # in two: 217 registers; 53248 = 2^12 * 13 has no third
        (QWEN, 16384, 8, 2, 0),  # two CTAs share the registers: nothing that turns should mend
        (8 * 13 * 1021, 16384, 8, 1, 0),  # no half of it is made of whole chunks of 8, nor a third, nor a quarter
    ],
)
def test_how_many(cols: int, stage_bytes: int, warps: int, ctas_per_sm: int, turns: int) -> None:
    assert column_turns(cols, 2, stage_bytes, warps, ctas_per_sm) == turns


def test_what_is_too_long_for_all_turns() -> None:
    graph = ffn_block.trace(cf.PRESETS["llama-2-7b"].with_(intermediate=80_000))
    with pytest.raises(NoLegalConfig, match=r"rows of w_down meet takes about \d+ registers of a thread in each of 4 turns, of 168 \("):
        choose(graph, H100_SXM)


def product(cols: int, shard: str = "out", bias: bool = False) -> cf.Fusion:
    """y = silu(x) w^T: the vector is computed, so that each turn computes its part."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, cols)), cf.weight("w", (ROWS, cols))
        b = cf.weight("b", (ROWS,)) if bias else None
        if shard == "out":
            return cf.outputs(y=cf.linear(cf.silu(x), w, b, shard="out"))
        with cf.clusters(over=1):
            y = cf.cluster_reduce(cf.linear(cf.silu(x), w, shard="in"))
        return cf.outputs(y=y)

    return spec


def planned(spec: cf.Fusion, clusters: int, ranks: int) -> KernelPlan:
    return plan_graph(spec.trace("llama-2-7b"), clusters, ranks, ctas_per_sm=1, stage_bytes=16384)


@pytest.mark.parametrize(
    ("cols", "shard", "bias", "clusters", "ranks"),
    [(QWEN, "out", False, 3, 1), (QWEN, "out", True, 4, 2), (LLAMA_70B, "out", False, 3, 2), (2 * QWEN, "in", False, 1, 2)],
)
def test_the_sum_of_all_turns(cols: int, shard: str, bias: bool, clusters: int, ranks: int) -> None:
    spec = product(cols, shard, bias)
    graph, plan = spec.trace("llama-2-7b"), planned(spec, clusters, ranks)
    check(plan, H100_SXM)
    assert [plan.steps[i].params["turn"] for i in steps_of(plan, "gemv")] == [0, 1]
    tensors = random_tensors(graph)
    want = interpret(cf.place(graph, cf.Mesh(clusters, ranks)), tensors, precision="f32", round_outputs=False).outputs["y"]
    torch.testing.assert_close(simulate(plan, tensors)["y"], want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


PLAN = planned(product(QWEN), 3, 1)
FIRST, SECOND = steps_of(PLAN, "gemv")
HALF = QWEN // 2


def same_fragment() -> KernelPlan:
    return with_params(PLAN, SECOND, value=PLAN.steps[FIRST].params["value"])


def same_columns() -> KernelPlan:
    return with_params(PLAN, SECOND, tiles=replace(PLAN.steps[SECOND].params["tiles"], col0=Affine()))


def one_turn() -> KernelPlan:
    """As if the second were a product of its own."""
    return with_params(PLAN, SECOND, turn=0)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (same_fragment, f"rows of w meet another part of the vector: columns from {HALF}, of the vector silu"),
        (same_columns, f"rows of w do not meet the whole vector once: 2 x {HALF} columns, of {QWEN}"),
        (one_turn, f"rows of w do not meet the whole vector once: 1 x {HALF} columns, of {QWEN}"),
    ],
)
def test_planted_errors(damaged: Callable[[], KernelPlan], message: str) -> None:
    with pytest.raises((PlanError, cf.errors.Errors), match=re.escape(message)):
        check(damaged(), H100_SXM)


def test_the_plan_says_which_columns_a_turn_has() -> None:
    first, second = PLAN.steps[FIRST].text, PLAN.steps[SECOND].text
    assert f"rows of {HALF}] . " in first
    assert f"rows of {HALF} from column {HALF}] . " in second


def test_the_source_streams_and_adds_both_parts() -> None:
    source = emit(PLAN)
    assert f"W = stream.Rows(cols={HALF}, ld={QWEN}, rows=1, warps_per_row=8, pieces=2, warps=8)" in source
    assert len(re.findall(rf"stream\.rows\(smem, RING, at, w, W, \w+, (?:0|{HALF}), ", source)) == 2
    assert "gemv.total(w_terms, i, 8) + gemv.total(w_terms2, i, 8)" in source
