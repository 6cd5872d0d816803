"""argmax and embedding in plans: what is lowered, what is refused, and what the checks of a plan see when it is damaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plans import plan_graph, step_of, with_buffer, with_params, without

import cfdsl as cf
from cfdsl.compiler.check import check
from cfdsl.compiler.emit import emit
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.plan import KernelPlan
from cfdsl.compiler.stages import lower
from cfdsl.errors import CfdslError, NotLowered
from fusions.embedding import embedding
from fusions.lm_head import lm_head

SMALL = "smollm2-135m"


def head(out: str = "both", clusters: int = 132, cluster_size: int = 1) -> KernelPlan:
    return plan_graph(lm_head.trace(SMALL, out=out), clusters, cluster_size, SMALL)


def rows(batch: int = 1, clusters: int = 1) -> KernelPlan:
    return plan_graph(embedding.trace(SMALL, batch), clusters, 1, SMALL)


def wrong(plan: KernelPlan) -> str:
    with pytest.raises(CfdslError) as caught:
        check(plan, H100_SXM)
    return str(caught.value)


def refused(spec: Any, clusters: int = 4, cluster_size: int = 2, batch: int = 1) -> str:
    with pytest.raises(NotLowered) as caught:
        plan_graph(cf.fusion(spec).trace(SMALL, batch), clusters, cluster_size)
    return caught.value.message


@pytest.mark.parametrize(("clusters", "ranks"), [(132, 1), (60, 2), (15, 8), (40, 1)])
@pytest.mark.parametrize("out", ["token", "logits", "both"])
def test_plans_of_the_head_are_sound(out: str, clusters: int, ranks: int) -> None:
    plan = head(out, clusters, ranks)
    check(plan, H100_SXM)
    outputs = {arg.name: (arg.shape, arg.dtype, arg.align) for arg in plan.args if arg.role == "output"}
    want = {"token": ((1,), "i32", 4), "logits": ((1, 49152), "f32", 16)}
    assert outputs == {name: want[name] for name in (["token", "logits"] if out == "both" else [out])}
    assert plan.needs_residency == (out != "logits")


def test_the_head_s_source() -> None:
    source = emit(head())
    assert "best, best_at = argmax.better(best, best_at, argmax.order(gemv.total(w_head_terms, i, " in source
    assert "granule49152 * 8 + i)" in source
    order = [source.index(text) for text in ("argmax.over_block(", "argmax.publish(ws_best", "grid.barrier(", "argmax.store_best(token")]
    assert order == sorted(order)
    assert "logits[granule49152 * 8 + i] = gemv.total(" in source, "logits are not rounded"
    assert source.index("logits[granule") < source.index("grid.barrier("), "they are stored ahead of the exchange"


def test_the_exchange_of_pairs() -> None:
    (found,) = (exchange for exchange in head().exchanges)
    assert (found.scope, found.op, found.monoid, found.sent_bytes, found.received_bytes) == ("grid", "reduce", "argmax", 8, 8 * 132)


def test_pairs_are_read_behind_the_barrier() -> None:
    plan = head()
    text = wrong(without(plan, step_of(plan, "grid_barrier")))
    assert "ws_best is read without a grid barrier" in text


def test_terms_are_summed_behind_a_barrier() -> None:
    plan = head("token")
    assert "w_head_terms is read without a barrier" in wrong(without(plan, step_of(plan, "argmax") - 1))


def test_the_place_of_the_warps_pairs_is_kept() -> None:
    plan = head()
    assert "best_pairs is used outside of its life" in wrong(with_buffer(plan, "best_pairs", first=0, last=1))


def test_an_index_past_the_table_is_seen() -> None:
    plan = rows()
    check(plan, H100_SXM)
    assert "table is used past its end in store_fragment" in wrong(with_params(plan, step_of(plan, "index"), rows=49153))


def test_a_row_of_every_cluster() -> None:
    """Each cluster has a sequence: its own token, and its own row of y."""
    plan = rows(3, 3)
    check(plan, H100_SXM)
    source = emit(plan)
    assert "row_given = token[cluster]\n    row = kv.clamp(row_given, 0, 49152 - 1)" in source
    assert "frag.store(y, frag.load(table, ROW, row * 576), ROW, cluster * 576)" in source
    assert "kv.flag(ws_sync.iterator + 1, kv.TOKEN_CLAMPED, row != row_given)" in source
    assert "token is used past its end in index" in wrong(replace(plan, args=tuple(
        replace(arg, shape=(2,)) if arg.name == "token" else arg for arg in plan.args)))  # fmt: skip


def test_a_kernel_without_shared_memory_asks_for_none() -> None:
    plan = rows()
    assert plan.smem_bytes == 0
    assert "arena" not in emit(plan)


def test_tables_too_large_for_their_offsets() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.embedding(cf.input("token", (batch,), "i32"), cf.weight("table", (2**21, 2048))))

    assert refused(spec) == "embedding cannot be compiled: its table has more than 2147483648 elements."


def test_several_rows_of_a_cluster() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.embedding(cf.input("token", (batch,), "i32"), cf.weight("table", (8, m.hidden))))

    assert refused(spec, batch=2) == "embedding cannot be compiled: a cluster has 2 rows of it; only one is lowered."


def test_reductions_of_pairs_that_are_not_lowered() -> None:
    def by_cluster(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        logits = cf.linear(cf.input("x", (batch, m.hidden)), cf.weight("w", (512, m.hidden)), shard="out")
        return cf.outputs(token=cf.grid_reduce(cf.cluster_reduce(cf.argmax(logits))))

    assert refused(by_cluster) == "cluster_reduce cannot be compiled: pairs of argmax travel over the grid."

    def alone(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(token=cf.argmax(cf.input("x", (batch, m.hidden))))

    assert refused(alone) == "outputs cannot be compiled: of indices, only the result of grid_reduce(argmax(...)) can be stored."


def test_an_embedding_feeds_what_follows() -> None:
    """A row that a norm and a product read: no pass over global memory between them."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.embedding(cf.input("token", (batch,), "i32"), cf.weight("table", (m.vocab, m.hidden)))
        n = cf.rms_norm(x, cf.weight("norm", (m.hidden,)), m.norm_eps)
        return cf.outputs(y=cf.linear(n, cf.weight("w", (512, m.hidden)), shard="out"))

    made = lower(spec, cf.PRESETS[SMALL], 1, "bf16", H100_SXM)
    assert "frag.load(table, W, row * 576)" in made.source
