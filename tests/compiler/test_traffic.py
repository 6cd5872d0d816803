"""The cost model's bytes are those that the oracle counts: two walks over one graph, written apart."""

from __future__ import annotations

import pytest

import cfdsl as cf
from cfdsl.compiler.traffic import traffic
from cfdsl.dsl.interpret import count_traffic
from fusions.attention_block import attention_block
from fusions.embedding import embedding
from fusions.ffn_block import ffn_block
from fusions.lm_head import lm_head
from fusions.rms_norm import rms_norm

SIZES = {"tokens": 1000, "positions": 1000}
MESHES = ((9, 4), (32, 4), (64, 2), (32, 1), (1, 8), (8, 16))
CASES = (
    *((attention_block, options) for options in ({}, {"qkv": "rows"}, {"qkv": "split_k"}, {"qkv": "rows", "out": "atomic"})),
    (attention_block, {"residual": False}), (ffn_block, {}), (lm_head, {"out": "both"}), (lm_head, {"out": "token"}), (embedding, {}),
    (rms_norm, {}),
)  # fmt: skip


def legal(fusion: cf.Fusion, options: dict[str, object], model: str) -> list[cf.PlacedGraph]:
    """The fusion on every mesh that it can be placed on."""
    graph, placed = fusion.trace(model, 1, "bf16", **options), []
    for clusters, ranks in MESHES:
        try:
            placed.append(cf.place(graph, cf.Mesh(clusters, ranks)))
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


def test_statistics_of_a_softmax_go_to_every_rank() -> None:
    """32 heads on 32 clusters of 4: of a head's 128 outputs 32 to each of 3 peers, and its (max, sum) to all 3: 3 * (32 * 4 + 8) bytes."""
    placed = cf.place(attention_block.trace("llama-2-7b"), cf.Mesh(32, 4))
    assert traffic(placed, SIZES).dsmem_bytes == 128 * 3 * (32 * 4 + 8)
