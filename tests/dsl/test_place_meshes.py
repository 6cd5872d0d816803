"""Placing: meshes that a spec does not go with."""

from __future__ import annotations

from typing import Any

import pytest
from held import MODEL, Held

import cfdsl as cf

DIVIDE: dict[str, tuple[Any, int, int, str]] = {
    "linear out": (
        lambda v: cf.linear(v.x, cf.weight("u", (24, 64)), shard="out"), 2, 16,
        "linear cannot shard dimension 1 of size 24 over 16 ranks.\n"
        "remedy: choose a cluster size that divides it, or shard another dimension.",
    ),
    "linear out of a grid slice": (
        lambda v: cf.linear(v.x, v.w[v.axis], shard="out"), 8, 8,
        "linear cannot shard dimension 1 of size 4 over 8 ranks.\n"
        "remedy: choose a cluster size that divides it, or shard another dimension.",
    ),
    "linear in": (
        lambda v: cf.linear(cf.input("z", (2, 36)), cf.weight("u", (64, 36)), shard="in"), 2, 8,
        "linear cannot shard dimension 1 of size 36 over 8 ranks.\n"
        "remedy: choose a cluster size that divides it, or shard another dimension.",
    ),
    "shard": (
        lambda v: cf.shard(v.x, 0), 2, 4,
        "shard cannot shard dimension 0 of size 2 over 4 ranks.\n"
        "remedy: choose a cluster size that divides it, or shard another dimension.",
    ),
    "reduce-scatter": (
        lambda v: cf.cluster_reduce_scatter(v.term, dim=0), 2, 4,
        "cluster_reduce_scatter cannot shard dimension 0 of size 2 over 4 ranks.\n"
        "remedy: choose a cluster size that divides it, or shard another dimension.",
    ),
    "split heads through a head": (
        lambda v: cf.split_heads(v.cols, 4), 2, 8,
        "split_heads cannot shard dimension 1 of size 4 over 8 ranks.\n"
        "remedy: choose a cluster size that divides it, or shard another dimension.",
    ),
    "clusters through a head": (
        lambda v: cf.split_heads(v.units, 4), 8, 1,
        "split_heads cannot shard dimension 1 of size 4 over 8 clusters.\n"
        "remedy: its slices would cut through heads: choose a number of clusters that divides it.",
    ),
    "slice": (
        lambda v: cf.input("z", (6, 64))[v.axis], 4, 1,
        "x[axis] cannot shard dimension 0 of size 6 over 4 clusters.\n"
        "remedy: choose a number of clusters that divides it or is a multiple of it.",
    ),
    "merge of shared heads": (
        lambda v: cf.merge_heads(v.heads), 8, 1,
        "merge_heads cannot shard dimension 1 of size 4 over 8 clusters.\n"
        "remedy: several clusters would hold the same head: choose a number of clusters that divides it.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIVIDE)
def test_shards_that_do_not_divide(name: str) -> None:
    make, clusters, ranks, message = DIVIDE[name]

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=2) as axis:
            bad = make(Held(axis))
        return cf.outputs(bad=bad)

    graph = cf.fusion(spec).trace(MODEL, batch=2)
    with pytest.raises(cf.errors.ShardDoesNotDivide) as caught:
        cf.place(graph, cf.Mesh(clusters, ranks))
    assert f"{caught.value.message}\nremedy: {caught.value.remedy}" == message


def test_terms_of_slices_that_two_clusters_share_are_refused() -> None:
    """Eight clusters over a contraction of four: each slice would be added twice."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=4) as axis:
            term = cf.linear(cf.input("x", (batch, 4))[:, axis], cf.weight("w", (64, 4))[:, axis])
        return cf.outputs(y=cf.grid_reduce(term))

    graph = spec.trace(MODEL)
    assert str(cf.place(graph, cf.Mesh(4, 1)).of(graph.outputs[0][1])) == "[R, R]"
    with pytest.raises(cf.errors.ShardDoesNotDivide) as caught:
        cf.place(graph, cf.Mesh(8, 1))
    assert caught.value.message == "linear cannot shard dimension 1 of size 4 over 8 clusters."
    assert caught.value.remedy == "a slice held twice would be added twice: choose a number of clusters that divides it."


@pytest.mark.parametrize("ranks", [0, 17, 32])
def test_a_cluster_size_out_of_range(ranks: int, block: cf.Fusion) -> None:
    with pytest.raises(cf.errors.ClusterSizeUnsupported) as caught:
        cf.place(block.trace(MODEL), cf.Mesh(2, ranks))
    assert str(caught.value) == f"a cluster of {ranks} CTAs is not supported.\n  remedy: use a cluster size of 1, 2, 4, 8 or 16."


def test_a_launch_without_clusters(block: cf.Fusion) -> None:
    with pytest.raises(cf.errors.ArgumentError) as caught:
        cf.place(block.trace(MODEL), cf.Mesh(0, 4))
    assert caught.value.message == "argument 'clusters' must be a positive number of clusters, got 0."


def test_clusters_that_do_not_go_with_the_units(block: cf.Fusion) -> None:
    with pytest.raises(cf.errors.ClustersDoNotDivide) as caught:
        cf.place(block.trace("llama-2-7b"), cf.Mesh(30, 4))
    assert str(caught.value) == (
        "32 work units cannot be spread over 30 clusters: neither number divides the other.\n"
        "  remedy: use a number of clusters that divides 32, or a multiple of 32."
    )
