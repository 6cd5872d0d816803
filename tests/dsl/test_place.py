"""Placing: who holds what, for every op; and what is said where a spec needs communication that it does not state."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

import cfdsl as cf
from cfdsl.dsl.place_rules import PLACE_RULES, Site
from cfdsl.dsl.placement import shard_bounds
from cfdsl.dsl.type_rules import TYPE_RULES

MODEL = cf.ModelConfig("toy", hidden=64, heads=4, kv_heads=2, head_dim=16)
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


class Held:
    """Makes values of chosen placements inside a clusters(over=2) block. A name says [grid, cluster]."""

    def __init__(self, axis: Any) -> None:
        self.axis = axis
        self.x = cf.input("x", (2, 64))  # [R, R]
        self.rows = self.x[axis]  # [S(0), R]
        self.units = self.x[:, axis]  # [S(1), R]
        self.cols = cf.shard(self.x, -1)  # [R, S(1)]
        self.both = cf.shard(self.units, 1)  # [S(1), S(1)]
        self.w = cf.weight("w", (32, 64))
        self.term = cf.linear(self.x, self.w, shard="in")  # [R, P(sum)]
        self.grid_term = cf.linear(self.units, self.w[:, axis])  # [P(sum), R]
        self.whole = cf.linear(self.x, self.w)  # [R, R], f32
        self.wh = cf.weight("wh", (64, 64)).split_heads(4)  # (4, 16, 64)
        self.heads = cf.linear(self.x, self.wh[axis])  # [S(1), R] (2, 4, 16)
        self.length = cf.input("length", (2,), "i32")
        self.cache = cf.kv_cache("kv", 2, 2, "tokens", 16)
        self.softmax = cf.attend(self.heads, self.cache[axis], self.length, shard="tokens")  # [S(1), P(lse)]
        self.table = cf.input("table", ("positions", 8), "f32")


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


# ---- mistakes ----------------------------------------------------------------------------------------------------------------------

REDUCE = "remedy: needs cluster_reduce: call cluster_reduce on the result of linear before this line."
REFUSED: dict[str, tuple[Any, type[cf.CfdslError], str]] = {
    "silu of a term": (
        lambda v: cf.silu(v.term),
        cf.errors.NeedsReduce,
        "silu needs a value, but the result of linear is P(sum) on the cluster axis: each holder has only a term of it.\n" + REDUCE,
    ),
    "cast of a term": (
        lambda v: cf.cast(v.term, "f16"),
        cf.errors.NeedsReduce,
        "cast needs a value, but the result of linear is P(sum) on the cluster axis: each holder has only a term of it.\n" + REDUCE,
    ),
    "term + value": (
        lambda v: v.term + v.whole,
        cf.errors.NeedsReduce,
        "add needs a value, but the result of linear is P(sum) on the cluster axis: each holder has only a term of it.\n" + REDUCE,
    ),
    "term * term": (
        lambda v: v.term * v.term,
        cf.errors.NeedsReduce,
        "mul needs a value, but the result of linear is P(sum) on the cluster axis: each holder has only a term of it.\n" + REDUCE,
    ),
    "linear of a grid term": (
        lambda v: cf.linear(v.grid_term, cf.weight("u", (8, 32))),
        cf.errors.NeedsReduce,
        "linear needs a value, but the result of linear is P(sum) on the grid axis: each holder has only a term of it.\n"
        "remedy: needs grid_reduce: call grid_reduce on the result of linear before this line.",
    ),
    "norm of terms": (
        lambda v: cf.rms_norm(v.cols, cf.weight("n", (64,)), 1e-5, cf.mean_square(v.cols)),
        cf.errors.NeedsReduce,
        "rms_norm needs a value, but the result of mean_square is P(sum) on the cluster axis: each holder has only a term of it.\n"
        "remedy: needs cluster_reduce: call cluster_reduce on the result of mean_square before this line.",
    ),
    "view of an open softmax": (
        lambda v: cf.reshape(v.softmax, (2, 64)),
        cf.errors.NeedsReduce,
        "reshape needs a value, but the result of attend is P(lse) on the cluster axis: each holder has only a term of it.\n"
        "remedy: needs cluster_reduce: call cluster_reduce on the result of attend before this line.",
    ),
    "norm of a sharded row": (
        lambda v: cf.rms_norm(v.cols, cf.weight("n", (64,)), 1e-5),
        cf.errors.PlacementMismatch,
        "rms_norm: the last dimension of the result of shard [R, S(1)] is sharded on the cluster axis, so nobody has "
        "the mean of its squares.\n"
        "remedy: call cluster_gather on it first, or pass mean_square=cluster_reduce(mean_square(x)).",
    ),
    "norm of a row that clusters share": (
        lambda v: cf.rms_norm(v.units, cf.weight("n", (64,)), 1e-5),
        cf.errors.PlacementMismatch,
        "rms_norm: the last dimension of the result of x[axis] [S(1), R] is sharded on the grid axis, so nobody has "
        "the mean of its squares.\n"
        "remedy: call grid_gather on it first, or pass mean_square=grid_reduce(mean_square(x)).",
    ),
    "contraction sharded on one side": (
        lambda v: cf.linear(v.units, v.w),
        cf.errors.PlacementMismatch,
        "linear: the result of x[axis] [S(1), R] has its contraction sharded on the grid axis, but w [R, R] has not.\n"
        "remedy: call grid_gather on the activation, or slice both with the axis of the clusters block.",
    ),
    "contraction sharded on the cluster": (
        lambda v: cf.linear(v.cols, v.w, shard="out"),
        cf.errors.PlacementMismatch,
        "linear: the result of shard [R, S(1)] has its contraction sharded on the cluster axis.\n"
        "remedy: call cluster_gather on it first, or say shard='in' and reduce the result.",
    ),
    "rows and batch on one axis": (
        lambda v: cf.linear(v.rows, v.w[v.axis]),
        cf.errors.PlacementMismatch,
        "linear: the result of x[axis] [S(0), R] and the result of x[axis] [S(0), R] are both sharded on the grid axis.\n"
        "remedy: call grid_gather on the activation first.",
    ),
    "a weight sharded by hand": (
        lambda v: cf.linear(v.x, cf.shard(v.w, 0)),
        cf.errors.PlacementMismatch,
        "linear: the weight the result of shard [R, S(0)] is sharded on the cluster axis.\n"
        "remedy: leave it whole and say linear(..., shard=).",
    ),
    "bias of terms": (
        lambda v: cf.linear(v.x, v.w, cf.weight("b", (32,)), shard="in"),
        cf.errors.PlacementMismatch,
        "linear: its result is P(sum) on the cluster axis, so a bias would be added once per term.\n"
        "remedy: call linear without its bias, then cluster_reduce, then add the bias.",
    ),
    "bias sliced otherwise": (
        lambda v: cf.linear(v.x, v.w, cf.weight("b", (32,))[v.axis]),
        cf.errors.PlacementMismatch,
        "linear: the bias the result of x[axis] [S(0), R] is not placed like the result [R, R].\n"
        "remedy: slice the bias as the weight is sliced.",
    ),
    "different shards": (
        lambda v: v.rows + v.units,
        cf.errors.PlacementMismatch,
        "add: the result of x[axis] [S(0), R] and the result of x[axis] [S(1), R] are sharded along different "
        "dimensions on the grid axis.\n"
        "remedy: call grid_gather on one of them.",
    ),
    "ranks cut what clusters cut first": (
        lambda v: v.units + v.cols,
        cf.errors.PlacementMismatch,
        "add: the result of shard [R, S(1)] is cut over the ranks alone, and the result [S(1), S(1)] over the clusters first.\n"
        "remedy: leave it whole: it is sliced like the result in passing.",
    ),
    "split of a shard": (
        lambda v: cf.split(v.cols, (32, 32), 1)[0],
        cf.errors.PlacementMismatch,
        "split: the result of shard [R, S(1)] is sharded along dimension 1 on the cluster axis, which this op needs whole.\n"
        "remedy: call cluster_gather on it first.",
    ),
    "merge of sharded heads": (
        lambda v: cf.merge_heads(cf.shard(v.heads, 2)),
        cf.errors.PlacementMismatch,
        "merge_heads: the result of shard [S(1), S(2)] is sharded along dimension 2 on the cluster axis, which this op needs whole.\n"
        "remedy: call cluster_gather on it first.",
    ),
    "rope of sharded heads": (
        lambda v: cf.rope(cf.linear(v.x, v.wh, shard="out"), v.table, v.table, v.length),
        cf.errors.PlacementMismatch,
        "rope: the result of linear [R, S(2)] is sharded along dimension 2 on the cluster axis, which this op needs whole.\n"
        "remedy: call cluster_gather on it first.",
    ),
    "attend, heads apart": (
        lambda v: cf.attend(v.heads, v.cache, v.length),
        cf.errors.PlacementMismatch,
        "attend: the result of linear [S(1), R] and kv [R, R] are placed differently on the grid axis.\n"
        "remedy: slice both with the axis of the clusters block, by heads.",
    ),
    "append, heads apart": (
        lambda v: v.cache.append(cf.input("k", (2, 2, 16))[:, v.axis], cf.input("u", (2, 2, 16)), at=v.length),
        cf.errors.PlacementMismatch,
        "append: the result of x[axis] [S(1), R] is not placed like kv [R, R] on the grid axis.\n"
        "remedy: slice both with the axis of the clusters block.",
    ),
    "append of a slice": (
        lambda v: v.cache[v.axis].append(*[cf.shard(cf.input("k", (2, 2, 16)), 2)] * 2, at=v.length),
        cf.errors.PlacementMismatch,
        "append: the result of shard [R, S(2)] is sharded along dimension 2 on the cluster axis, which this op needs whole.\n"
        "remedy: call cluster_gather on it first.",
    ),
    "attend of a slice of q": (
        lambda v: cf.attend(cf.shard(v.heads, 1), v.cache[v.axis], v.length),
        cf.errors.PlacementMismatch,
        "attend: the result of shard [S(1), S(1)] is sharded along dimension 1 on the cluster axis, which this op needs whole.\n"
        "remedy: call cluster_gather on it first.",
    ),
    "attend with a slice of the lengths": (
        lambda v: cf.attend(v.heads, v.cache[v.axis], v.length[v.axis]),
        cf.errors.PlacementMismatch,
        "attend: the result of x[axis] [S(0), R] is sharded along dimension 0 on the grid axis, which this op needs whole.\n"
        "remedy: call grid_gather on it first.",
    ),
    "append at a slice of the lengths": (
        lambda v: v.cache[v.axis].append(*[cf.input("k", (2, 2, 16))] * 2, at=v.length[v.axis]),
        cf.errors.PlacementMismatch,
        "append: the result of x[axis] [S(0), R] is sharded along dimension 0 on the grid axis, which this op needs whole.\n"
        "remedy: call grid_gather on it first.",
    ),
    "rope at a slice of the positions": (
        lambda v: cf.rope(v.heads, v.table, v.table, v.length[v.axis]),
        cf.errors.PlacementMismatch,
        "rope: the result of x[axis] [S(0), R] is sharded along dimension 0 on the grid axis, which this op needs whole.\n"
        "remedy: call grid_gather on it first.",
    ),
    "a bias sharded by hand": (
        lambda v: cf.linear(v.x, v.w, cf.shard(cf.weight("b", (32,)), 0), shard="out"),
        cf.errors.PlacementMismatch,
        "linear: the result of shard [R, S(0)] is sharded along dimension 0 on the cluster axis, which this op needs whole.\n"
        "remedy: call cluster_gather on it first.",
    ),
    "batch and contraction on one axis": (
        lambda v: cf.linear(cf.shard(cf.input("z", (4, 64)), 0), v.w, shard="in"),
        cf.errors.PlacementMismatch,
        "linear: the result of shard [R, S(0)] is sharded along dimension 0 on the cluster axis, which this op needs whole.\n"
        "remedy: call cluster_gather on it first.",
    ),
    "norm with a slice of its weight": (
        lambda v: cf.rms_norm(v.x, cf.weight("n", (64,))[v.axis], 1e-5),
        cf.errors.PlacementMismatch,
        "rms_norm: the weight is placed [S(0), R].\nremedy: leave it whole; it is sliced like x.",
    ),
    "reduce of a value": (
        lambda v: cf.cluster_reduce(v.x),
        cf.errors.WrongCollective,
        "cluster_reduce moves P(op) -> R on the cluster axis, but x is placed [R, R].\n"
        "remedy: every holder has all of it already: leave the call out.",
    ),
    "reduce of a shard": (
        lambda v: cf.cluster_reduce(v.cols),
        cf.errors.WrongCollective,
        "cluster_reduce moves P(op) -> R on the cluster axis, but the result of shard is placed [R, S(1)].\n"
        "remedy: call cluster_gather on the result of shard.",
    ),
    "gather of a term": (
        lambda v: cf.cluster_gather(v.term),
        cf.errors.WrongCollective,
        "cluster_gather moves S(d) -> R on the cluster axis, but the result of linear is placed [R, P(sum)].\n"
        "remedy: call cluster_reduce or cluster_reduce_scatter on the result of linear.",
    ),
    "gather on the wrong axis": (
        lambda v: cf.cluster_gather(v.units),
        cf.errors.WrongCollective,
        "cluster_gather moves S(d) -> R on the cluster axis, but the result of x[axis] is placed [S(1), R].\n"
        "remedy: call grid_gather on the result of x[axis].",
    ),
    "reduce-scatter of a shard": (
        lambda v: cf.cluster_reduce_scatter(v.cols, dim=1),
        cf.errors.WrongCollective,
        "cluster_reduce_scatter moves P(op) -> S(1) on the cluster axis, but the result of shard is placed [R, S(1)].\n"
        "remedy: call cluster_gather on the result of shard.",
    ),
    "grid gather of a term": (
        lambda v: cf.grid_gather(v.grid_term),
        cf.errors.WrongCollective,
        "grid_gather moves S(d) on the grid or the cluster axis -> R on both, but the result of linear is placed [P(sum), R].\n"
        "remedy: call grid_reduce or grid_reduce_scatter on the result of linear.",
    ),
    "grid reduce of two terms": (
        lambda v: cf.grid_reduce(cf.linear(v.both, v.w[:, v.axis], shard="in")),
        cf.errors.WrongCollective,
        "grid_reduce moves P(op) on the grid axis or the splits (values on the cluster axis) -> R on all, but the result of linear "
        "is placed [P(sum), P(sum)].\nremedy: call cluster_reduce or cluster_reduce_scatter on the result of linear.",
    ),
    "grid reduce-scatter of a value": (
        lambda v: cf.grid_reduce_scatter(v.both, dim=1),
        cf.errors.WrongCollective,
        "grid_reduce_scatter moves P(op) on the grid axis (values on the cluster axis) -> S(1) on both, but the result of shard is placed "
        "[S(1), S(1)].\nremedy: call cluster_gather or grid_gather on the result of shard.",
    ),
    "a slice of a slice": (
        lambda v: v.rows[:, v.axis],
        cf.errors.PlacementMismatch,
        "x[axis]: the result of x[axis] [S(0), R] is sharded along dimension 0 on the grid axis, which this op needs whole.\n"
        "remedy: call grid_gather on it first.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, kind, message = REFUSED[name]

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=2) as axis:
            bad = make(Held(axis))
        return cf.outputs(bad=bad if bad.node.op != "append" else cf.input("x", (2, 64)))

    graph = cf.fusion(spec).trace(MODEL, batch=2)
    with pytest.raises(cf.CfdslError) as caught:
        cf.place(graph, cf.Mesh(2, 2))
    error = caught.value
    assert type(error) is kind, error
    assert error.src is not None
    assert error.src.file == __file__
    assert re.sub(r" \(line \d+\)", "", f"{error.message}\nremedy: {error.remedy}") == message


def test_a_mistake_in_a_value_that_nothing_needs_is_told() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        cf.silu(cf.shard(x, 1))  # on 3 ranks it does not divide, and nobody needs it
        cf.cluster_gather(x)
        return cf.outputs(y=cf.silu(cf.linear(x, cf.weight("w", (64, m.hidden)), shard="in")))

    graph = cf.fusion(spec).trace(MODEL)
    with pytest.raises(cf.Errors) as caught:
        cf.place(graph, cf.Mesh(1, 3))
    assert [type(error) for error in caught.value.errors] == [cf.errors.ShardDoesNotDivide, cf.errors.WrongCollective]
    assert caught.value.errors[1].message == "cluster_gather moves S(d) -> R on the cluster axis, but x is placed [R, R]."
    with pytest.raises(cf.Errors) as caught:
        cf.place(graph, cf.Mesh(1, 2))
    assert [type(error) for error in caught.value.errors] == [cf.errors.NeedsReduce, cf.errors.WrongCollective]


def test_a_term_as_an_output_is_told_at_the_line_of_the_outputs() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        y = cf.linear(cf.input("x", (batch, m.hidden)), cf.weight("w", (64, m.hidden)), shard="in")
        return cf.outputs(y=y)

    with pytest.raises(cf.errors.NeedsReduce) as caught:
        cf.place(cf.fusion(spec).trace(MODEL), cf.Mesh(1, 2))
    assert caught.value.src is not None
    assert caught.value.src.line == spec.__code__.co_firstlineno + 2
    made = f"the result of linear (line {caught.value.src.line - 1})"
    assert caught.value.remedy == f"needs cluster_reduce: call cluster_reduce on {made} before this line."


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


def test_independent_mistakes_are_reported_at_once() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, 64)), cf.weight("w", (64, 64))
        term = cf.linear(x, w, shard="in")
        bad = cf.silu(term) + cf.silu(x)
        worse = cf.silu(cf.linear(x, w))
        return cf.outputs(a=bad, b=cf.cluster_gather(x) * worse, c=term)

    graph = cf.fusion(spec).trace(MODEL)
    with pytest.raises(cf.Errors) as caught:
        cf.place(graph, cf.Mesh(1, 2))
    assert [type(error).__name__ for error in caught.value.errors] == ["NeedsReduce", "WrongCollective", "NeedsReduce"]
    first = spec.__code__.co_firstlineno
    assert [error.src.line - first for error in caught.value.errors if error.src] == [3, 5, 5]
    assert caught.value.errors[2].message == (
        f"output 'c' needs a value, but the result of linear (line {first + 2}) is P(sum) on the cluster axis: "
        "each holder has only a term of it."
    )


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
