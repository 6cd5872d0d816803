"""Plans compute what the oracle does: those of the shipped fusions, and of random specs, if they are not refused with a line."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import plan_graph
from random_specs import Line, random_spec, random_tensors
from simulate import NOTHING, STEPS, simulate

import cfdsl as cf
from cfdsl.compiler.check import check
from cfdsl.compiler.emit import EMITTERS, emit
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.plan import KernelPlan
from cfdsl.compiler.stages import lower
from cfdsl.dsl.interpret import interpret
from cfdsl.errors import ClustersDoNotDivide, Errors, NothingToSplit, PlanError
from fusions.attention_block import attention_block
from fusions.decoder_layer import decoder_layer
from fusions.embedding import embedding
from fusions.ffn_block import ffn_block
from fusions.lm_head import lm_head
from fusions.rms_norm import rms_norm

TOY = cf.ModelConfig("toy", hidden=128, heads=8, kv_heads=2, head_dim=64, intermediate=256, vocab=777, qkv_bias=True)
LINES = st.lists(st.tuples(*[st.integers(0, 255)] * 4), min_size=1, max_size=10)


def agree(plan: KernelPlan, placed: cf.PlacedGraph, tensors: dict[str, torch.Tensor]) -> None:
    """Both compute in float32, in other orders; a cast or a cache may round to the neighbour."""
    got, want = simulate(plan, tensors), interpret(placed, tensors, precision="f32", round_outputs=False)
    for name, value in {**want.outputs, **want.caches}.items():
        torch.testing.assert_close(got[name].float(), value.float(), rtol=2e-2, atol=2e-2, equal_nan=True)


def test_every_step_is_simulated() -> None:
    assert set(EMITTERS) <= {*STEPS, *NOTHING}


FLOWS = [{"qkv": "grid"}, *({"qkv": qkv, "out": out} for qkv in ("rows", "split_k") for out in ("gather", "atomic"))]
CASES: list[tuple[cf.Fusion, dict[str, Any]]] = [
    *((attention_block, {**flow, "layout": layout}) for flow in FLOWS for layout in ("bhtd", "bthd")),
    (attention_block, {"residual": False}),
    *((decoder_layer, {"qkv": qkv}) for qkv in ("grid", "rows")), (ffn_block, {}), (lm_head, {"out": "both"}), (embedding, {}),
    (rms_norm, {}),
]  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    {"cluster_size": 1}, {"cluster_size": 2, "multicast": True}, {"cluster_size": 4}, {"cluster_size": 8}, {"cluster_size": 2, "splits": 3},
    {"cluster_size": 1, "clusters": 8},
]  # fmt: skip


@pytest.mark.parametrize(("fusion", "options"), CASES, ids=lambda value: value.name if isinstance(value, cf.Fusion) else str(value))
def test_shipped_fusions(fusion: cf.Fusion, options: dict[str, Any]) -> None:
    attends = fusion in (attention_block, decoder_layer)
    sizes: dict[str, Any] = {"length": 130, "capacity": 150} if attends else {}
    tensors = fusion.example_inputs(TOY, 1, "bf16", **sizes, **options)
    ran = 0
    for config in CONFIGS:
        if ("splits" in config or "clusters" in config) and not (attends and options.get("qkv", "grid") == "grid"):
            continue
        lowered = lower(fusion, TOY, 1, "bf16", H100_SXM, config, options)
        agree(lowered.plan, lowered.placed, tensors)
        ran += 1
    assert ran >= 4


@pytest.mark.parametrize("length", [0, 1, 40, 41, -3])
def test_lengths_at_and_past_the_ends(length: int) -> None:
    tensors = attention_block.example_inputs(TOY, 1, "bf16", length=length, capacity=41)
    lowered = lower(attention_block, TOY, 1, "bf16", H100_SXM, {"cluster_size": 2, "splits": 2})
    agree(lowered.plan, lowered.placed, tensors)


def checked(lines: Sequence[Line], block: tuple[int, int], mesh: cf.Mesh, **fields: Any) -> bool:
    """Whether a random spec was compiled, and then computes what the oracle does; else it is refused with a line."""
    first, last = sorted(min(end, len(lines)) for end in block)
    graph = random_spec(lines, (first, last), mesh).trace(TOY)
    try:
        placed = cf.place(graph, mesh)
        plan = plan_graph(graph, mesh.clusters, mesh.ranks, splits=mesh.splits, **fields)
    except cf.CfdslError as error:
        for each in error.errors if isinstance(error, Errors) else (error,):
            assert each.src is not None or isinstance(each, (ClustersDoNotDivide, NothingToSplit)), each
            assert not isinstance(each, PlanError)
        return False
    check(plan, H100_SXM)
    emit(plan)
    agree(plan, placed, random_tensors(graph))
    return True


@pytest.mark.filterwarnings("ignore::cfdsl.dsl.trace.UnusedArgument")
@given(LINES, st.tuples(st.integers(0, 10), st.integers(0, 10)), st.sampled_from((1, 2, 4, 8)), st.sampled_from((1, 2, 4)),
       st.sampled_from((1, 1, 3)), st.booleans(), st.sampled_from((16384, 1024)))  # fmt: skip
def test_a_random_spec_is_refused_with_a_line_or_computes_what_the_oracle_does(
    lines: list[Line], block: tuple[int, int], groups: int, ranks: int, splits: int, multicast: bool, stage_bytes: int
) -> None:
    checked(lines, block, cf.Mesh(groups * splits, ranks, splits), multicast=multicast, stage_bytes=stage_bytes)


@pytest.mark.filterwarnings("ignore::cfdsl.dsl.trace.UnusedArgument")
def test_most_random_specs_are_compiled() -> None:
    """Were they refused, or written in vain, the property above would say little."""
    rng, compiled = random.Random(0), 0
    for _ in range(200):
        lines = [(rng.randrange(256), rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(rng.randint(1, 8))]
        block = (rng.randint(0, len(lines)), rng.randint(0, len(lines)))
        compiled += checked(lines, block, cf.Mesh(rng.choice((1, 2, 4, 8)), rng.choice((1, 2, 4))))
    assert compiled > 100
