"""Placing: who holds what, for every op."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from held import MODEL, Held

import cfdsl as cf
from cfdsl.dsl.place_rules import PLACE_RULES, Site
from cfdsl.dsl.placement import shard_bounds
from cfdsl.dsl.type_rules import TYPE_RULES

R, S, P = cf.Replicate(), cf.Shard, cf.Partial


def test_every_op_has_both_rules() -> None:
    assert {*PLACE_RULES, "item"} == set(TYPE_RULES)  # an item has its own result of the node it belongs to


# ---- the flagship ------------------------------------------------------------------------------------------------------------------


def clusters_of(model: cf.ModelConfig) -> list[int]:
    """One cluster per KV head, fewer (each loops), and more (several share one)."""
    fewer = [n for n in range(1, model.kv_heads) if model.kv_heads % n == 0]
    return [*fewer, *(model.kv_heads * times for times in (1, 2, model.group) if model.heads % (model.kv_heads * times) == 0)]


@pytest.mark.parametrize("model", cf.PRESETS.values(), ids=cf.PRESETS)
def test_the_attention_block_is_placed_for_every_model_and_mesh(model: cf.ModelConfig, block: cf.Fusion) -> None:
    for qkv, out in itertools.product(("rows", "splitk"), ("gather", "atomic")):
        graph = cf.verify(block.trace(model, qkv=qkv, out=out))
        for clusters, ranks in itertools.product(clusters_of(model), (1, 2, 4, 8, 16)):
            placed = cf.place(graph, cf.Mesh(clusters, ranks))
            assert placed.of(dict(graph.outputs)["y"]) == cf.Placement(S(1), S(1))


def test_the_placements_of_the_attention_block(block: cf.Fusion) -> None:
    placed = cf.place(block.trace(MODEL, out="atomic"), cf.Mesh(2, 4))
    found = [(node.op, *map(str, placed.placements[node])) for node in placed.graph.nodes if node.op not in ("input", "weight", "item")]
    assert found == [
        ("add", "[R, R]"),
        ("rms_norm", "[R, R]"),
        *[("split_heads", "[R, R]"), ("slice_grid", "[S(0), R]"), ("linear", "[S(1), S(2)]")] * 3,
        ("cluster_gather", "[S(1), R]", "[S(1), R]", "[S(1), R]"),
        ("rope", "[S(1), R]"),
        ("rope", "[S(1), R]"),
        ("kv_cache", "[R, R]"),
        ("slice_grid", "[S(1), R]"),
        ("append", "[S(1), R]"),
        ("attend", "[S(1), P(lse)]"),
        ("cluster_reduce", "[S(1), R]"),
        ("merge_heads", "[S(1), R]"),
        ("slice_grid", "[S(1), R]"),
        ("linear", "[P(sum), S(1)]"),
        ("grid_reduce_scatter", "[S(1), S(1)]"),
        ("add", "[S(1), S(1)]"),
    ]


@pytest.mark.parametrize("clusters", [1, 2, 4, 6, 12])
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_a_launch_wide_shard_is_cut_the_same_way_cluster_by_cluster(clusters: int, ranks: int) -> None:
    """[S(d), S(d)]: slices c * ranks + r of all CTAs, put together for one cluster, are the slice of the cluster."""
    for size in (64, 96, 576, 4096):
        for cluster in range(clusters):
            first, last = (shard_bounds(size, clusters * ranks, cluster * ranks + rank) for rank in (0, ranks - 1))
            assert (first[0], last[1]) == shard_bounds(size, clusters, cluster)


# ---- single ops --------------------------------------------------------------------------------------------------------------------


def placed(make: Any, ranks: int = 4, clusters: int = 2) -> tuple[str, ...]:
    """The placements of the values that `make(held)` returns."""
    kept: list[Any] = []

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=2) as axis:
            held = Held(axis)
            made = make(held)
            kept.extend(made if isinstance(made, tuple) else (made,))
        return cf.outputs(**{f"z{i}": value for i, value in enumerate(kept)})

    graph = cf.fusion(spec).trace(MODEL, batch=2)
    placements = _place_all(graph, cf.Mesh(clusters, ranks))
    return tuple(str(placements[value.node][0]) for value in kept)


def _place_all(graph: cf.Graph, mesh: cf.Mesh) -> Any:
    """The placements of all nodes; unlike place() this leaves outputs alone, which may be Partial here."""
    placements: Any = {}
    for node in graph.nodes:
        args = tuple(placements[arg][0] for arg in node.args)
        if node.op == "item":
            placements[node] = (placements[node.args[0]][node.attr("index")],)
        else:
            placements[node] = PLACE_RULES[node.op](Site(node, args, mesh, graph.over))
    return placements


PLACED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "leaves and slices": (
        lambda v: (v.x, v.rows, v.units, v.cols, v.both),
        ("[R, R]", "[S(0), R]", "[S(1), R]", "[R, S(1)]", "[S(1), S(1)]"),
    ),
    "terms": (lambda v: (v.term, v.grid_term, v.softmax), ("[R, P(sum)]", "[P(sum), R]", "[S(1), P(lse)]")),
    "R meets S": (lambda v: (v.x + v.cols, v.units * v.x, v.x + v.both), ("[R, S(1)]", "[S(1), R]", "[S(1), S(1)]")),
    "R meets S on each axis": (lambda v: v.rows + v.cols, ("[S(0), S(1)]",)),
    "a bias is aligned at the last dimension": (
        lambda v: (v.heads + cf.weight("b", (64,)).split_heads(4)[v.axis], v.cols + cf.weight("b1", (64,))),
        ("[S(1), R]", "[R, S(1)]"),
    ),
    "sums add term by term": (lambda v: (v.term + v.term, v.term * v.whole), ("[R, P(sum)]", "[R, P(sum)]")),
    "non-linear": (lambda v: (cf.silu(v.cols), cf.gelu(v.rows), cf.cast(v.units, "f16")), ("[R, S(1)]", "[S(0), R]", "[S(1), R]")),
    "linear out": (lambda v: cf.linear(v.rows, v.w, shard="out"), ("[S(0), S(1)]",)),
    "linear out, by heads": (lambda v: cf.linear(v.x, v.wh[v.axis], shard="out"), ("[S(1), S(2)]",)),
    "linear out, rows of w on the grid": (lambda v: cf.linear(v.x, v.w[v.axis], shard="out"), ("[S(1), S(1)]",)),
    "linear in": (lambda v: (cf.linear(v.cols, v.w, shard="in"), cf.linear(v.x, v.wh, shard="in")), ("[R, P(sum)]", "[R, P(sum)]")),
    "linear in on both axes": (lambda v: cf.linear(v.both, v.w[:, v.axis], shard="in"), ("[P(sum), P(sum)]",)),
    "linear with a bias": (
        lambda v: cf.linear(v.x, v.wh[v.axis], cf.weight("b", (64,)).split_heads(4)[v.axis], shard="out"),
        ("[S(1), S(2)]",),
    ),
    "mean square": (
        lambda v: (cf.mean_square(v.cols), cf.mean_square(v.rows), cf.mean_square(v.units)),
        ("[R, P(sum)]", "[S(0), R]", "[P(sum), R]"),
    ),
    "norm of a sharded row": (
        lambda v: cf.rms_norm(v.cols, cf.weight("n", (64,)), 1e-5, cf.cluster_reduce(cf.mean_square(v.cols))),
        ("[R, S(1)]",),
    ),
    "views of heads": (
        lambda v: (v.wh, v.wh[v.axis], cf.split_heads(v.cols, 4), cf.split_heads(v.units, 4), cf.merge_heads(v.heads)),
        ("[R, R]", "[S(0), R]", "[R, S(1)]", "[S(1), R]", "[S(1), R]"),
    ),
    "split and concat keep other shards": (lambda v: (*cf.split(v.rows, (32, 32), 1), cf.concat([v.rows, v.x], 1)), ("[S(0), R]",) * 3),
    "concat of terms": (lambda v: cf.concat([v.term, v.term], 1), ("[R, P(sum)]",)),
    "reshape": (lambda v: (cf.reshape(v.rows, (2, 8, 8)), cf.reshape(v.x, (128,))), ("[S(0), R]", "[R, R]")),
    "rope": (lambda v: cf.rope(v.heads, v.table, v.table, v.length), ("[S(1), R]",)),
    "attend, whole": (lambda v: cf.attend(v.heads, v.cache[v.axis], v.length), ("[S(1), R]",)),
    "cluster moves": (
        lambda v: (
            cf.cluster_reduce(v.term),
            cf.cluster_gather(v.both),
            cf.cluster_reduce_scatter(v.term, dim=1),
            cf.cluster_reduce(v.softmax),
        ),
        ("[R, R]", "[S(1), R]", "[R, S(1)]", "[S(1), R]"),
    ),
    "several values, one exchange": (lambda v: cf.cluster_reduce(v.term, v.softmax), ("[R, R]", "[S(1), R]")),
    "grid moves": (
        lambda v: (
            cf.grid_gather(v.both),
            cf.grid_gather(v.cols),
            cf.grid_reduce(v.grid_term),
            cf.grid_reduce_scatter(v.grid_term, dim=-1),
        ),
        ("[R, R]", "[R, R]", "[R, R]", "[S(1), S(1)]"),
    ),
}


@pytest.mark.parametrize("name", PLACED)
def test_placed(name: str) -> None:
    make, expected = PLACED[name]
    assert placed(make) == expected


def test_a_linear_outside_of_a_block_is_sharded_over_the_whole_launch_even_unevenly() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 64))
        by_heads = cf.linear(x, cf.weight("v", (64, 64)).split_heads(4), shard="out")
        return cf.outputs(y=cf.linear(x, cf.weight("w", (90, 64)), shard="out"), z=by_heads)

    graph = spec.trace(MODEL)
    done = cf.place(graph, cf.Mesh(7, 4))
    assert [str(done.of(node)) for _, node in graph.outputs] == ["[S(1), S(1)]", "[S(2), S(2)]"]
