"""argmax and embedding: types, placements, what is said where a reduction is missing, and the oracle against PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from cfdsl.dsl.interpret import count_traffic, interpret
from cfdsl.errors import CfdslError

MODEL = cf.ModelConfig("toy", hidden=8, heads=1, kv_heads=1, head_dim=8)
REDUCES = ("grid", "cluster, grid")


def found(vocab: int, batch: int, how: str = "grid") -> cf.Graph:
    """argmax of a linear whose rows are dealt to all CTAs."""

    @cf.fusion
    def pick(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        logits = cf.linear(cf.input("x", (batch, m.hidden), "f32"), cf.weight("w", (vocab, m.hidden), "f32"), shard="out")
        token = cf.argmax(logits)
        token = cf.cluster_reduce(token) if how.startswith("cluster") else token
        return cf.outputs(token=cf.grid_reduce(token))

    return pick.trace(MODEL, batch)


def refused(spec: Any, clusters: int = 2) -> str:
    with pytest.raises(CfdslError) as caught:
        cf.place(cf.fusion(spec).trace(MODEL, 2), cf.Mesh(clusters, 2))
    return str(caught.value)


# ---- argmax


LEVELS = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 3.0, float("inf"), -float("inf"), float("nan")])


@given(
    st.integers(1, 40), st.integers(1, 3), st.integers(1, 7), st.sampled_from([1, 2, 4, 8]), st.sampled_from(REDUCES),
    st.lists(LEVELS, min_size=120, max_size=120),
)  # fmt: skip
def test_argmax_is_torch_s_and_the_lowest_of_equal_ones(
    vocab: int, batch: int, clusters: int, ranks: int, how: str, levels: list[float]
) -> None:
    """Few levels, so that most rows have ties, over CTAs too; more CTAs than rows, so that some have none."""
    x = torch.eye(8)[:batch].contiguous()  # sequence b's logits are column b of w
    w = torch.zeros(vocab, 8)
    w[:, :batch] = torch.tensor(levels[: vocab * batch]).view(vocab, batch)
    finite = w.nan_to_num(0.0, 0.0, 0.0)  # 0 * inf is NaN: rows of x with zeros in them need a w without
    wild = w if batch == 1 else finite
    x = x if batch > 1 else torch.ones(1, 8)
    wild = wild if batch > 1 else w[:, :1].expand(vocab, 8).contiguous() / 8
    placed = cf.place(found(vocab, batch, how), cf.Mesh(clusters, ranks))
    ran = interpret(placed, {"x": x, "w": wild}, precision="f64")
    logits = x.double() @ wild.double().T
    top = logits.max(-1, keepdim=True).values
    same = (logits == top) | (logits.isnan() & top.isnan())
    want = torch.stack([row.nonzero()[0, 0] for row in same])
    assert ran.outputs["token"].dtype == torch.int32
    assert ran.outputs["token"].tolist() == want.tolist()
    assert ran.traffic == count_traffic(placed)


def test_who_has_what() -> None:
    """Terms on both axes, where the rows are dealt to all CTAs; one exchange makes a value of them."""
    placed = cf.place(found(32, 1), cf.Mesh(4, 2))
    at = {node.op: str(placed.of(node)) for node in placed.graph.nodes if len(node.types) == 1}
    assert (at["linear"], at["argmax"]) == ("[S(1), S(1)]", "[P(argmax), P(argmax)]")
    (reduce,) = placed.graph.leaves("grid_reduce")
    assert str(placed.placements[reduce][0]) == "[R, R]"
    by_cluster = cf.place(found(32, 1, "cluster, grid"), cf.Mesh(4, 2))
    (reduce,) = by_cluster.graph.leaves("cluster_reduce")
    assert str(by_cluster.placements[reduce][0]) == "[P(argmax), R]"


def test_a_slice_s_greatest_is_not_an_output() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        logits = cf.linear(cf.input("x", (batch, m.hidden)), cf.weight("w", (32, m.hidden)), shard="out")
        return cf.outputs(token=cf.argmax(logits))

    text = refused(spec)
    assert text.startswith("output 'token' needs a value, but the result of argmax (line "), text
    assert "is P(argmax) on the grid axis: each holder has only a term of it." in text
    assert "needs grid_reduce" in text


def test_indices_are_not_gathered_or_scattered_while_they_are_terms() -> None:
    def gathered(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        logits = cf.linear(cf.input("x", (batch, m.hidden)), cf.weight("w", (32, m.hidden)), shard="out")
        return cf.outputs(token=cf.grid_gather(cf.argmax(logits)))

    text = refused(gathered)
    assert "[P(argmax), P(argmax)]" in text
    assert "call grid_reduce, or cluster_reduce and then grid_reduce, on the result of argmax" in text


def test_a_sum_is_no_argument_of_argmax() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=2):
            terms = cf.linear(cf.input("x", (batch, m.hidden)), cf.weight("w", (32, m.hidden)), shard="in")
            return cf.outputs(token=cf.argmax(terms))

    assert "argmax needs a value, but the result of linear" in refused(spec)


def mistakes(spec: Any) -> str:
    with pytest.raises(CfdslError) as caught:
        cf.fusion(spec).trace(MODEL, 2)
    return str(caught.value)


def test_types() -> None:
    def vector(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.argmax(cf.weight("w", (m.hidden,))))

    assert mistakes(vector).startswith("argmax expects x of shape (batch, ..., n), got (8,).")

    def floating(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.embedding(cf.input("x", (batch,)), cf.weight("w", (32, m.hidden))))

    assert mistakes(floating).startswith("embedding expects token of dtype i32, got bf16.")

    def no_weight(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.embedding(cf.input("t", (batch,), "i32"), cf.input("x", (32, m.hidden))))

    assert mistakes(no_weight).startswith("argument 'table' must be a weight, or a view of one, got input bf16[32,8].")

    def added(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.argmax(cf.input("x", (batch, 4))) + cf.input("x2", (batch,)))

    assert "add expects a of dtype f32, f16 or bf16, got i32." in mistakes(added)


def test_the_text_of_both_is_read_back() -> None:
    for name, options in (("lm_head", {"out": "both"}), ("embedding", {})):
        import fusions

        graph = fusions.find(name).trace("smollm2-135m", **options)
        assert cf.parse(cf.to_text(graph)) == graph
        bare = cf.to_text(graph, lines=False)
        assert cf.to_text(cf.verify(cf.parse(bare)), lines=False) == bare


# ---- embedding


@given(
    rows=st.integers(1, 20), tokens=st.lists(st.integers(-3, 25), min_size=1, max_size=4), ranks=st.sampled_from([1, 2, 8]),
    sliced=st.booleans(), more=st.integers(1, 3),
)  # fmt: skip
def test_embedding_takes_rows_and_clamps(rows: int, tokens: list[int], ranks: int, sliced: bool, more: int) -> None:
    @cf.fusion
    def rows_of(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        token, table = cf.input("token", (batch,), "i32"), cf.weight("table", (rows, m.hidden))
        if not sliced:
            return cf.outputs(y=cf.embedding(token, table))
        with cf.clusters(over=batch) as row:
            return cf.outputs(y=cf.embedding(token[row], table))

    batch = len(tokens)
    table = torch.randn(rows, 8).bfloat16()
    placed = cf.place(rows_of.trace(MODEL, batch), cf.Mesh(batch * more if sliced else more, ranks))
    ran = interpret(placed, {"token": torch.tensor(tokens, dtype=torch.int32), "table": table})
    want = table[torch.tensor(tokens).clamp(0, rows - 1)]
    assert torch.equal(ran.outputs["y"], want)
    assert ran.traffic == count_traffic(placed)
    assert ran.traffic.weights == batch * 8 * 2  # rows, and not the table


def test_the_table_stays_whole() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=2) as part:
            return cf.outputs(y=cf.embedding(cf.input("token", (batch,), "i32"), cf.weight("table", (32, m.hidden))[part]))

    text = refused(spec)
    assert text.startswith("embedding: the result of x[axis] (line "), text
    assert "which this op needs whole" in text


# ---- dtypes of outputs


def test_an_output_is_stored_as_its_cast_says() -> None:
    @cf.fusion
    def outs(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        y = x * x
        return cf.outputs(own=y, wide=cf.cast(y, "f32"), other=cf.cast(y, "f16"), index=cf.argmax(y))

    graph = outs.trace(MODEL, 1, "bf16")
    assert [graph.output_dtype(node) for _, node in graph.outputs] == ["bf16", "f32", "f16", "i32"]
    x = torch.randn(1, 8).bfloat16()
    ran = interpret(graph, {"x": x})
    got = ran.outputs
    exact = x.float() * x.float()
    assert torch.equal(got["wide"], exact)
    assert torch.equal(got["own"], exact.bfloat16())
    assert torch.equal(got["other"], exact.half())
    assert got["index"].tolist() == [int(exact.argmax())]
    assert ran.traffic.outputs == 8 * (2 + 4 + 2) + 4


def test_an_index_given_is_no_output() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.input("t", (batch,), "i32"))

    assert mistakes(spec).startswith("argument 'y' must be a floating-point value of the spec, got i32[2].")
