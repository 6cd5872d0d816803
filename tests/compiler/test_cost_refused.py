"""The reasons that the cost model refuses candidates for, and overrides that are none."""

from __future__ import annotations

import pytest
from costs import LLAMA, table

import cfdsl as cf
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import choose, weighed
from cfdsl.compiler.parts import B200, H100_SXM, RTX_PRO_6000
from cfdsl.errors import ArgumentError, ClusterSizeUnsupported, ConfigError, Errors, NoLegalConfig
from fusions.attention_block import attention_block
from fusions.ffn_block import ffn_block
from fusions.rms_norm import rms_norm


def test_sizes_that_there_are_not() -> None:
    """What the estimate has a default for is no mistake where nothing has that name; anything else is."""
    for sizes, says in (
        ({"tokenz": 5}, "argument 'sizes' must be numbers for positions or tokens, got one for 'tokenz'."),
        ({"tokens": -5}, "argument 'sizes' must be positive numbers by name, got tokens=-5."),
        ({"tokens": 1.5}, "argument 'sizes' must be positive numbers by name, got tokens=1.5."),
        ([5], "argument 'sizes' must be numbers by name, such as {\"tokens\": 4096}, got [5]."),
    ):
        with pytest.raises(ArgumentError) as caught:
            choose(LLAMA, H100_SXM, {}, sizes)  # type: ignore[arg-type]
        assert caught.value.message == says
    assert choose(rms_norm.trace("llama-2-7b"), H100_SXM, {}, {"tokens": 7}).sizes == (("tokens", 7),)
    with pytest.raises(Errors, match="^3 mistakes"):
        choose(LLAMA, H100_SXM, {"warps": 3}, {"tokens": 0, "a": 1})


def test_not_resident() -> None:
    assert table()[32, 4, 1].refused == ("not resident: 32 clusters of 4 at 1 CTA/SM, h100-sxm holds 30; the grid barrier would deadlock",)
    assert table()[32, 4, 2].estimate


def test_without_a_grid_barrier_more_clusters_run_in_waves() -> None:
    rows = table(rms_norm.trace("llama-2-7b", 512))
    assert rows[512, 1, 1].estimate.waves == 4  # 132 at once


def test_unknown_residency_is_refused_only_where_it_matters() -> None:
    rows = table(part=B200)
    assert rows[32, 2, 2].refused == (
        "residency unknown: how many clusters of 2 at 2 CTAs/SM b200 holds; the grid barrier needs all: ask the device",
    )
    assert rows[32, 1, 2].estimate
    assert table(rms_norm.trace("llama-2-7b", 1), B200)[1, 4, 1].estimate


def test_cluster_limit() -> None:
    assert "rtx-pro-6000 has clusters of at most 8" in table(part=RTX_PRO_6000)[2, 16, 1].refused


def test_slices_that_bulk_copies_cannot_move() -> None:
    """smollm2: 576 columns over 16 ranks are 36 elements, 72 bytes; over 8 ranks 144 = 9 x 16."""
    split = attention_block.trace("smollm2-135m", qkv="split_k")
    rows = table(split)
    assert "a rank's slice of a row of wq is 72 bytes, not a multiple of 16" in rows[3, 16, 1].refused
    assert not any("bytes" in reason for reason in rows[3, 8, 1].refused)


def test_rows_that_no_stage_holds() -> None:
    with pytest.raises(NoLegalConfig, match="a row of wq is 8,192 bytes, a ring stage 384: up to 16 equal pieces do not fit"):
        choose(LLAMA, H100_SXM, {"stage_bytes": 384})


def test_vectors_that_no_thread_can_hold() -> None:
    """28 KB rows come in pieces; two CTAs on an SM have 96 registers a thread, too few for the vector that such rows meet."""
    graph = ffn_block.trace("llama-3.1-8b")
    assert choose(graph, H100_SXM).config.ctas_per_sm == 1
    with pytest.raises(NoLegalConfig, match="the vector that rows of w_down meet takes about 140 registers of a thread, of 96"):
        choose(graph, H100_SXM, {"ctas_per_sm": 2})


def test_placement_errors_become_reasons() -> None:
    graph = cf.fusion(odd_ranks).trace("llama-2-7b")
    assert table(graph)[2, 16, 1].refused == ("shard cannot shard dimension 1 of size 40 over 16 ranks",)


def odd_ranks(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    with cf.clusters(over=2):
        return cf.outputs(y=cf.shard(cf.input("x", (batch, 40)), 1))


def test_repeated_work_is_refused() -> None:
    with pytest.raises(NoLegalConfig, match="64 clusters for 32 slices of work: some would repeat others"):
        choose(LLAMA, H100_SXM, {"clusters": 64, "cluster_size": 1})


def test_a_reason_names_the_shapes_it_is_said_of_where_there_are_several() -> None:
    reasons = []
    for given in ({"stages": 4, "ctas_per_sm": 1}, {}):
        with pytest.raises(NoLegalConfig) as caught:
            choose(LLAMA, H100_SXM, {"clusters": 64, "cluster_size": 1, **given})
        reasons.append(caught.value.reasons)
    said = "64 clusters for 32 slices of work: some would repeat others"
    assert reasons == [(said,), (f"{said} (64x1)",)]


def test_all_reasons_of_a_config_are_kept() -> None:
    given = {"clusters": 32, "cluster_size": 4, "ctas_per_sm": 1, "stages": 12, "stage_bytes": 32768}
    (row,) = weighed(LLAMA, H100_SXM, given, {})
    assert [reason.split(":")[0] for reason in row.refused] == ["not resident", "shared memory"]


# ---- overrides


def test_fields_are_checked_together() -> None:
    with pytest.raises(Errors) as caught:
        choose(LLAMA, H100_SXM, {"cluster_size": 3, "stages": 1, "warps": 3, "pdl": 1, "cluster": 4, "clusters": True})
    assert [type(error) for error in caught.value.errors] == [ClusterSizeUnsupported, *[ConfigError] * 5]
    assert "use a cluster size of 1, 2, 4, 8 or 16." in str(caught.value)
    assert "the config has stages=1, it must be a number from 2 to 12." in str(caught.value)
    assert "the config has pdl=1, it must be true or false." in str(caught.value)


def test_unknown_field_lists_the_fields() -> None:
    with pytest.raises(ConfigError, match=r"the config has ranks=4, it must be one of the fields clusters, cluster_size, stages, "):
        choose(LLAMA, H100_SXM, {"ranks": 4})


def test_reasons_of_the_shared_memory_callable_are_kept() -> None:
    def refuses(config: Config) -> int:
        raise ConfigError(name="warps", value=8, expected="7")

    with pytest.raises(NoLegalConfig, match="the config has warps=8, it must be 7"):
        choose(LLAMA, H100_SXM, smem_of=refuses)
