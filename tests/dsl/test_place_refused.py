"""Placing: what is said where a spec needs communication that it does not state."""

from __future__ import annotations

import re
from typing import Any

import pytest
from held import MODEL, Held

import cfdsl as cf

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


@pytest.mark.parametrize(("which", "name"), [("x", "the result of silu"), ("w", "the result of x[axis]")])
def test_a_linear_over_the_whole_launch_names_the_argument_that_is_not_whole(which: str, name: str) -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, 64)), cf.weight("w", (32, 64))
        with cf.clusters(over=2) as axis:
            x, w = (cf.silu(x[axis]), w) if which == "x" else (x, w[axis])
        return cf.outputs(y=cf.linear(x, w, shard="out"))

    with pytest.raises(cf.errors.PlacementMismatch) as caught:
        cf.place(cf.fusion(spec).trace(MODEL, 2), cf.Mesh(2, 2))
    assert re.sub(r" \(line \d+\)", "", caught.value.message) == (
        f"linear: shard='out' over the whole launch needs whole arguments, but {name} is [S(0), R]."
    )
