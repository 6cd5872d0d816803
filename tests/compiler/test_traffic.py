"""The cost model's bytes are those that the oracle counts and those that a plan's steps move: three walks, written apart."""

from __future__ import annotations

import pytest
from plans import plan_graph

import cfdsl as cf
from cfdsl.compiler.cost.traffic import traffic
from cfdsl.dsl.interpret import count_traffic
from fusions.attention_block import attention_block
from fusions.decoder_layer import decoder_layer
from fusions.embedding import embedding
from fusions.ffn_block import ffn_block
from fusions.lm_head import lm_head
from fusions.rms_norm import rms_norm

SIZES = {"tokens": 1000, "positions": 1000}
MESHES = (
    (9, 4, 1), (32, 4, 1), (64, 2, 1), (32, 1, 1), (1, 8, 1), (8, 16, 1), (4, 16, 1), (132, 1, 1), (64, 2, 2), (64, 2, 8), (24, 4, 3),
    (4, 4, 4),
)  # fmt: skip
CASES = (
    *((attention_block, {"qkv": qkv, "out": out}) for qkv in ("rows", "split_k") for out in ("gather", "atomic")),
    (attention_block, {}), (attention_block, {"residual": False}), (decoder_layer, {}), (decoder_layer, {"qkv": "rows"}), (ffn_block, {}),
    (lm_head, {"out": "both"}), (lm_head, {"out": "token"}), (embedding, {}), (rms_norm, {}),
)  # fmt: skip


def legal(fusion: cf.Fusion, options: dict[str, object], model: str) -> list[cf.PlacedGraph]:
    """The fusion on every mesh that it can be placed on."""
    graph, placed = fusion.trace(model, 1, "bf16", **options), []
    for mesh in MESHES:
        try:
            placed.append(cf.place(graph, cf.Mesh(*mesh)))
        except cf.CfdslError:
            continue
    return placed


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3.1-8b", "smollm2-135m"])
@pytest.mark.parametrize(("fusion", "options"), CASES, ids=lambda value: value.name if isinstance(value, cf.Fusion) else str(value))
def test_the_oracle_counts_the_same(fusion: cf.Fusion, options: dict[str, object], model: str) -> None:
    placed = legal(fusion, options, model)
    assert placed
    for each in placed:
        ours, oracles = traffic(each, SIZES), count_traffic(each, SIZES)
        assert (ours.unique_bytes, ours.dsmem_bytes) == (oracles.hbm_bytes, oracles.dsmem_bytes), each.mesh
        assert ours.grid_bytes == oracles.grid_bytes, each.mesh


@pytest.mark.parametrize("model", sorted(cf.PRESETS))
@pytest.mark.parametrize(("fusion", "options"), CASES, ids=lambda value: value.name if isinstance(value, cf.Fusion) else str(value))
def test_a_plan_moves_the_same(fusion: cf.Fusion, options: dict[str, object], model: str) -> None:
    """Of every exchange, over the launch: what is pushed between ranks, and what goes through global memory."""
    planned = 0
    for placed in legal(fusion, options, model):
        mesh = placed.mesh
        try:
            plan = plan_graph(placed.graph, mesh.clusters, mesh.ranks, splits=mesh.splits, ctas_per_sm=1)
        except (cf.errors.ConfigError, cf.errors.NotLowered):  # slices that cannot be copied or pushed
            continue
        moved = {scope: sum(each.total for each in plan.exchanges if each.scope == scope) for scope in ("cluster", "grid")}
        ours, oracles = traffic(placed, SIZES), count_traffic(placed, SIZES)
        assert (moved["cluster"], moved["grid"]) == (ours.dsmem_bytes, ours.grid_bytes) == (oracles.dsmem_bytes, oracles.grid_bytes), mesh
        planned += 1
    assert planned >= 1


def test_statistics_of_a_softmax_go_to_every_rank() -> None:
    """32 heads on 32 clusters of 4: of a head's 128 outputs 32 to each of 3 peers, and its (max, sum) to all 3: 3 * (32 * 4 + 8) bytes."""
    placed = cf.place(attention_block.trace("llama-2-7b"), cf.Mesh(32, 4))
    assert traffic(placed, SIZES).dsmem_bytes == 128 * 3 * (32 * 4 + 8)


def test_parts_of_many_splits_terms_are_pushed() -> None:
    """llama-3.1-8b, 8 heads x 8 splits of 2 ranks: each rank pushes its half of 4096 outputs to its peer, 8,192 bytes."""
    placed = cf.place(attention_block.trace("llama-3.1-8b"), cf.Mesh(64, 2, 8))
    scatter = 64 * 2 * 4 * (64 + 2) * 4  # of 4 query heads a cluster
    assert traffic(placed, SIZES).dsmem_bytes == scatter + 128 * 8192
