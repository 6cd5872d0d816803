from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import cfdsl as cf
from cfdsl.cli.request import Request, resolve
from cfdsl.cli.selfcheck import oracle_check, scaled_down, smallest_share
from cfdsl.runtime.measure import relative_error
from fusions.attention_block import attention_block


def request(fusion: str = "attention_block", model: str = "llama-2-7b", **rest: object) -> Request:
    return resolve(fusion=fusion, model=model, part="h100-sxm", **rest)  # type: ignore[arg-type]


def test_a_large_model_is_scaled_down_and_the_result_says_so() -> None:
    found = oracle_check(request(), cf.Mesh(32, 2))
    assert found is not None
    assert found["ok"]
    assert found["reduced"]
    assert found["relative_error"] < 1e-6
    assert found["note"].startswith(
        "Checked on a scaled-down model, to take seconds: hidden 256 for 4096, 2 query and 2 KV heads for 32 and 32;"
    )
    assert found["mesh"] == {"clusters": 2, "ranks": 2, "splits": 1}
    assert set(found["errors"]) == {"y", "cache_k", "cache_v"}


def test_a_small_model_is_checked_as_it_is() -> None:
    found = oracle_check(request(model="smollm2-135m"), cf.Mesh(3, 2))
    assert found is not None
    assert not found["reduced"]
    assert found["note"].startswith("Checked at full size on 3 clusters x 2 ranks, 37 cached tokens, every rank of every cluster in turn")


def test_tokens_are_told_of_caches_only() -> None:
    found = oracle_check(request(fusion="embedding", model="smollm2-135m"), cf.Mesh(1, 2))
    assert found is not None
    assert "cached tokens" not in found["note"]


def test_dataflows_are_checked_as_asked() -> None:
    found = oracle_check(request(option=["qkv=split_k", "out=atomic"]), cf.Mesh(32, 4))
    assert found is not None
    assert found["ok"]


def test_scaling_keeps_grouping_head_dim_ranks_and_clusters_per_head() -> None:
    model = request(model="llama-3.1-8b").model
    for clusters in (8, 16, 32):
        small, mesh = scaled_down(model, attention_block.trace(model), cf.Mesh(clusters, 4))
        assert (small.group, small.head_dim, mesh.ranks) == (4, 128, 4)
        assert mesh.clusters / small.kv_heads == clusters / model.kv_heads
        assert small.hidden % 64 == 0


def test_clusters_that_share_a_head_stay_together() -> None:
    found = oracle_check(request(option=["qkv=grid"]), cf.Mesh(64, 2, 2))
    assert found is not None
    assert found["ok"]
    assert "on 4 clusters (2 groups of 2 splits) x 2 ranks" in found["note"]


@pytest.mark.parametrize(
    ("kv_heads", "clusters", "ways"), [(32, 32, 16), (8, 32, 4), (8, 4, 2), (3, 3, 1), (1, 8, 1), (32, 1, 1), (5, 5, 1)]
)
def test_how_far_heads_and_clusters_can_both_shrink(kv_heads: int, clusters: int, ways: int) -> None:
    assert smallest_share(kv_heads, clusters) == ways


def test_a_wrong_reference_is_seen() -> None:
    broken = cf.Fusion(attention_block.fn)

    @broken.example_inputs
    def inputs(*args: object, **kwargs: object) -> object:
        return attention_block.example_inputs(*args, **kwargs)

    @broken.reference
    def reference(*args: object, **kwargs: object) -> dict:
        want = attention_block.reference(*args, **kwargs)
        return {**want, "y": want["y"] * 1.001}

    found = oracle_check(replace(request(model="smollm2-135m"), fusion=broken), cf.Mesh(3, 2))
    assert found is not None
    assert not found["ok"]
    assert found["relative_error"] == pytest.approx(1e-3, rel=0.01)


def test_a_fusion_without_a_reference_is_left_out() -> None:
    bare = cf.Fusion(attention_block.fn)
    assert oracle_check(replace(request(), fusion=bare), cf.Mesh(32, 2)) is None


@pytest.mark.parametrize("fusion", ["ffn_block", "lm_head", "embedding"])
def test_fusions_without_heads_are_scaled_down_too(fusion: str) -> None:
    """Every CTA stays, and the weights have a few million elements."""
    asked = request(fusion, model="llama-3.1-8b")
    graph = asked.fusion.trace(asked.model)
    small, mesh = scaled_down(asked.model, graph, cf.Mesh(132, 1))
    assert mesh == cf.Mesh(132, 1)
    leaves = asked.fusion.trace(small).leaves("weight")
    assert sum(int(leaf.type.shape[0]) * int(leaf.type.shape[-1]) for leaf in leaves) < 6_000_000
    found = oracle_check(asked, cf.Mesh(1, 1) if fusion == "embedding" else cf.Mesh(132, 1))
    assert found is not None
    assert found["ok"]
    assert "to take seconds: hidden" in found["note"]


def test_what_cannot_be_scaled_is_said_to_be_of_full_size() -> None:
    found = oracle_check(request(fusion="decoder_layer", model="smollm2-135m"), cf.Mesh(9, 2, 3))
    assert found is not None
    assert not found["reduced"]
    assert found["note"].startswith("Checked at full size on 9 clusters (3 groups of 3 splits) x 2 ranks, 37 cached tokens,")


def test_a_fusion_without_weights_is_as_it_is_on_any_number_of_ctas() -> None:
    @cf.fusion
    def twice(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        return cf.outputs(y=x + x)

    model = request().model
    assert scaled_down(model, twice.trace(model), cf.Mesh(132, 1)) == (model, cf.Mesh(132, 1))


def test_an_index_is_right_or_wrong() -> None:
    index = torch.tensor([5], dtype=torch.int32)
    assert relative_error(index, index.clone()) == 0.0
    assert relative_error(index, index + 1) == float("inf")
