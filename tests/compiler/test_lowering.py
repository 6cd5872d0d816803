"""What the lowering makes of ops, and of operands that meet in unequal slices."""

from __future__ import annotations

from typing import Any

import pytest
from lowered import GROUPED, lower, step_text
from plans import norm, plan_graph, step_of, steps_of

import cfdsl as cf
from cfdsl.compiler.affine import Affine
from cfdsl.compiler.check import check
from cfdsl.compiler.emit import emit
from cfdsl.compiler.geometry import tile_tokens, token_groups
from cfdsl.compiler.parts import H100_SXM


def test_tokens_of_a_tile() -> None:
    assert tile_tokens(group=1, dim=128, itemsize=2, stage_bytes=16384, warps=8) == 32  # 8 warps x 2 batches of 2 tokens: all of a stage
    assert tile_tokens(group=1, dim=64, itemsize=2, stage_bytes=16384, warps=8) == 64  # 2 batches of 4
    assert tile_tokens(group=8, dim=128, itemsize=2, stage_bytes=16384, warps=8) == 32  # 4 token groups: steps of 16
    assert tile_tokens(group=1, dim=128, itemsize=2, stage_bytes=24576, warps=8) == 32  # 48 would fit: one and a half steps
    assert tile_tokens(group=1, dim=128, itemsize=2, stage_bytes=8192, warps=8) == 0
    assert [token_groups(group, 8) for group in (1, 4, 5, 12, 16)] == [8, 8, 4, 2, 2]


def test_a_replicated_operand_of_a_clusters_heads() -> None:
    """llama-3.1-8b on 8 clusters: 4 query heads each; the bias lies whole in memory."""

    def spec(m: cf.ModelConfig, batch: int, *, sliced: bool = True) -> cf.Outputs:
        x, bias = cf.input("x", (batch, m.hidden)), cf.weight("bias", (m.hidden,)).split_heads(m.heads)
        with cf.clusters(over=m.kv_heads) as head:
            q = cf.cluster_gather(cf.linear(x, cf.weight("wq", (m.hidden, m.hidden)).split_heads(m.heads)[head], shard="out"))
            q = q + (bias[head] if sliced else bias)
        return cf.outputs(y=q)

    # what the author slices, and what is sliced in passing, is the same
    made = [plan_graph(cf.fusion(spec).trace(GROUPED, 1, sliced=sliced), 8, 4) for sliced in (True, False)]
    texts = [step_text(plan, "store_vector") for plan in made]
    assert "bias[i + cluster * 512]" in texts[0]
    assert texts[0] == texts[1]


def test_a_replicated_operand_of_a_ranks_slice_of_several_heads() -> None:
    """Before the gather a rank has 32 rows of each of 4 heads: runs of the bias, a head apart."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, bias = cf.input("x", (batch, m.hidden)), cf.weight("bias", (m.hidden,)).split_heads(m.heads)
        with cf.clusters(over=m.kv_heads) as head:
            q = cf.linear(x, cf.weight("wq", (m.hidden, m.hidden)).split_heads(m.heads)[head], shard="out") + bias
            q = cf.cluster_gather(q)
        return cf.outputs(y=q)

    plan = lower(spec, model=GROUPED, clusters=8)
    leaves = [leaf for step in plan.steps for leaf in (step.params["tree"].walk() if "tree" in step.params else ()) if leaf.name == "bias"]
    assert [(leaf.offset, leaf.block, leaf.stride) for leaf in leaves] == [(Affine.of(cluster=512, rank=32), 32, 128)]


def test_a_length_is_clamped_to_each_cache() -> None:
    """Two caches of other sizes, one length: a token past the end of the smaller one must not be read or stored there."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q, k = cf.input("q", (batch, m.heads * m.head_dim)), cf.input("k", (batch, m.kv_heads * m.head_dim))
        length = cf.input("length", (batch,), "i32")
        with cf.clusters(over=m.kv_heads) as head:
            found = []
            for name, room in (("cache", "tokens"), ("recent", "last")):
                query, new = cf.split_heads(q, m.heads)[:, head], cf.split_heads(k, m.kv_heads)[:, head]
                cache = cf.kv_cache(name, batch, m.kv_heads, room, m.head_dim)[head].append(new, new, at=length)
                found.append(cf.cluster_reduce_scatter(cf.attend(query, cache, shard="tokens"), dim=2))
        return cf.outputs(a=found[0], b=found[1])

    plan = lower(spec)
    check(plan, H100_SXM)
    source = emit(plan)
    assert "tokens_given = length[0]\n        tokens = kv.clamp(tokens_given, 0, n_tokens)" in source
    assert "tokens2 = kv.clamp(tokens2_given, 0, n_last)" in source
    assert "(tokens2 == tokens2_given) & (tokens2 < n_last)" in source
    assert "n_last * 128, tokens2, rank, RANKS)" in source


def test_a_cast_rounds_in_the_kernel_too() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, m.hidden)), cf.weight("w", (m.hidden, m.hidden))
        rounded = cf.cast(x + x, "f16")
        y = cf.linear(cf.cast(rounded, "f32"), w, shard="out")
        return cf.outputs(y=cf.cast(cf.cast(y, "f16"), "f32") + x)

    source = emit(lower(spec))
    assert "v_frag = (frag.load(x, W) + frag.load(x, W)).to(Float16).to(Float32)" in source
    assert "y[granule4096 * 2 + i] = ((gemv.total(w_terms, i, 8)).to(Float16).to(Float32) + my_rows[i]).to(BFloat16)" in source


def test_bias_of_a_ranks_rows() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, m.hidden)), cf.weight("w", (m.hidden, m.hidden))
        with cf.clusters(over=m.kv_heads) as head:
            bias = cf.weight("b", (m.hidden,)).split_heads(m.heads)[head]
            q = cf.cluster_gather(cf.linear(x, w.split_heads(m.heads)[head], bias, shard="out"))
        return cf.outputs(y=q)

    assert step_text(lower(spec), "finish") == "w_slice[i] = (total(w_terms) + b[i + cluster * 128 + rank * 32])"
    plan = lower(spec, model=GROUPED, clusters=8)
    leaf = next(e for e in plan.steps[step_of(plan, "finish")].params["tree"].walk() if e.name == "b")
    assert (leaf.offset, leaf.block, leaf.stride) == (Affine.of(cluster=512, rank=32), 32, 128)


def test_a_term_that_all_ranks_have_is_added_by_one() -> None:
    def spec(m: cf.ModelConfig, batch: int, shard: str | None = None) -> cf.Outputs:
        x, w = cf.input("x", (batch, m.hidden)), cf.weight("w", (1024, m.hidden))
        with cf.clusters(over=32) as axis:
            terms = cf.linear(x[:, axis], w[:, axis], shard=shard)
        return cf.outputs(y=cf.grid_reduce_scatter(terms, dim=1))

    whole = emit(lower(spec))
    at = whole.index("grid.add(")
    assert whole[:at].rstrip().splitlines()[-2].strip() == "if rank == 0:"
    assert "if rank == 0" not in emit(lower(lambda m, batch: spec(m, batch, "out")))


def test_a_sum_is_cleared_behind_its_last_reader() -> None:
    def spec(m: cf.ModelConfig, batch: int, found: bool = False) -> cf.Outputs:
        x, w = cf.input("x", (batch, m.hidden)), cf.weight("w", (1024, m.hidden))
        with cf.clusters(over=32) as axis:
            total = cf.grid_reduce_scatter(cf.linear(x[:, axis], w[:, axis], shard="out"), dim=1)
        return cf.outputs(best=cf.grid_reduce(cf.argmax(total))) if found else cf.outputs(y=total, z=cf.silu(total))

    plan = lower(spec)
    assert [plan.steps[i].params["clears"] for i in steps_of(plan, "store_rows")] == [(), ("ws_sum",)]
    plan = lower(lambda m, batch: spec(m, batch, found=True))  # nobody stores rows of it
    assert plan.steps[step_of(plan, "clear")].params["clears"] == ("ws_sum",)
    assert "ws_sum[granule1024 * 8 + i] = Float32(0.0)  # for the next launch" in emit(plan)


def test_a_product_of_a_product() -> None:
    """The second product multiplies what the first one's warps have summed in shared memory."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        with cf.clusters(over=m.kv_heads):
            h = cf.linear(x, cf.weight("w1", (512, m.hidden)))
            y = cf.linear(cf.silu(h), cf.weight("w2", (512, 512)))
        return cf.outputs(y=y)

    plan = lower(spec)
    fragments = [plan.steps[i].text for i in steps_of(plan, "fragment")]
    assert any("silu(w1_slice[i])" in text for text in fragments)
    assert not any("total" in text for text in fragments)


def test_all_reduce_of_the_mean_square() -> None:
    plan = norm(cluster_size=4)
    assert [step.op for step in plan.steps] == [
        "fragment", "mean_square", "rendezvous", "scalar_push", "wait", "scalar_sum", "rms", "store_fragment",
    ]  # fmt: skip
    assert plan.steps[1].params["cols"] == 4096  # of the whole row: the ranks' terms add up to its mean


@pytest.mark.compile
def test_specs_beyond_the_shipped_ones_compile(tmp_path: Any) -> None:
    """What no shipped fusion does: a product of a product, operands cut into runs, a gated product, all in one kernel."""
    from cfdsl.runtime import toolchain
    from cfdsl.runtime.cache import KernelCache

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, bias = cf.input("x", (batch, m.hidden)), cf.weight("bias", (m.hidden,)).split_heads(m.heads)
        with cf.clusters(over=m.kv_heads) as head:
            h = cf.linear(x, cf.weight("w1", (512, m.hidden)))
            h = cf.linear(cf.cast(cf.silu(h), "bf16"), cf.weight("w2", (512, 512))) * cf.cast(cf.gelu(h), "bf16")
            q = cf.linear(h, cf.weight("w3", (m.hidden, 512)).split_heads(m.heads)[head], shard="out") + bias
            q = cf.cluster_gather(q)
        y = cf.grid_gather(cf.merge_heads(q))
        return cf.outputs(y=cf.linear(y, cf.weight("w4", (m.hidden, m.hidden)), shard="out") + x)

    plan = lower(spec, model=GROUPED, clusters=8)
    path = KernelCache(tmp_path).source("spec", emit(plan))
    assert toolchain.build(path, plan, "sm_90a", "test_lowering_spec").cubin
