"""What the lowering makes of ops: what it refuses, with a text that helps, and operands that meet in unequal slices."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from plans import block, norm, plan_graph, step_of, steps_of

import cfdsl as cf
from cfdsl.compiler.affine import Affine
from cfdsl.compiler.check import check
from cfdsl.compiler.emit import emit
from cfdsl.compiler.geometry import tile_tokens, token_groups
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.plan import KernelPlan
from cfdsl.errors import (
    CfdslError,
    ClustersDoNotDivide,
    ConfigError,
    Errors,
    GroupUnsupported,
    HeadDimUnsupported,
    NotLowered,
    NotResident,
    ShardDoesNotDivide,
    SharedMemoryExceeded,
)
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm

LLAMA, GROUPED = "llama-2-7b", "llama-3.1-8b"


def lower(spec: Any, clusters: int = 32, cluster_size: int = 4, model: str = LLAMA, batch: int = 1, **fields: Any) -> KernelPlan:
    """The checked plan of a spec written in a test."""
    plan = plan_graph(cf.fusion(spec).trace(model, batch), clusters, cluster_size, **fields)
    check(plan, H100_SXM)
    return plan


def refused(error: type[CfdslError], spec: Any, **given: Any) -> str:
    with pytest.raises(error) as caught:
        lower(spec, **given)
    assert caught.value.src is not None
    assert caught.value.src.file == __file__
    return caught.value.message


def step_text(plan: KernelPlan, op: str) -> str:
    return plan.steps[step_of(plan, op)].text


# ---- refusals


def test_batch_2_attention_needs_tensor_cores() -> None:
    with pytest.raises(NotLowered) as caught:  # once, not for q, k, v and the output each
        plan_graph(attention_block.trace(LLAMA, 2), 32, 4)
    first = caught.value
    assert first.message == "linear cannot be compiled: batch 2 needs tensor cores; only batch 1 is lowered."
    assert first.src is not None
    assert first.src.code.startswith("q = cf.linear(")
    assert first.remedy == "interpret() runs it; for a kernel, write it with the ops of a shipped fusion."


def test_several_rows_per_cluster() -> None:
    with pytest.raises(NotLowered, match="mean_square cannot be compiled: a cluster has 2 rows of it; only one is lowered"):
        plan_graph(rms_norm.trace(LLAMA, 4), 2, 4)


def test_several_rows_of_a_whole_norm() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.rms_norm(cf.input("x", (batch, m.hidden)), cf.weight("w", (m.hidden,)), 1e-5))

    assert "rms_norm cannot be compiled: a cluster has 2 rows, and one is lowered" in refused(NotLowered, spec, batch=2, clusters=1)
    lower(spec, clusters=1)


def test_a_norm_of_a_row_that_is_not_whole_chunks() -> None:
    """Its last elements would be left out of the mean."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.rms_norm(cf.input("x", (batch, 100)), cf.weight("w", (100,)), m.norm_eps))

    assert "rms_norm cannot be compiled: a slice of 100 elements is not a multiple of 8" in refused(NotLowered, spec, clusters=1)


def test_attend_without_append() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q = cf.split_heads(cf.input("q", (batch, m.hidden)), m.heads)
        length = cf.input("length", (batch,), "i32")
        with cf.clusters(over=m.kv_heads) as head:
            cache = cf.kv_cache("cache", batch, m.kv_heads, "tokens", m.head_dim)[head]
            o = cf.cluster_reduce(cf.attend(q[:, head], cache, length=length, shard="tokens"))
        return cf.outputs(y=cf.grid_gather(cf.merge_heads(o)))

    assert refused(NotLowered, spec) == "attend cannot be compiled: its cache has no token appended."


def test_pieces_that_are_not_runs_are_not_put_together() -> None:
    """[1, 2, n] and [1, 2, n] along the last dimension: rows of one piece lie between rows of the other."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 2, m.hidden))
        return cf.outputs(y=cf.silu(cf.concat([x, x], dim=2)))

    wanted = "concat cannot be compiled: pieces along dimension 2 of [1, 2, 8192] lie between each other's rows."
    assert refused(NotLowered, spec, clusters=1) == wanted


def test_rope_of_a_value_that_is_used_elsewhere() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        pos = cf.input("pos", (batch,), "i32")
        cos, sin = cf.input("cos", ("positions", 64), "f32"), cf.input("sin", ("positions", 64), "f32")
        with cf.clusters(over=m.kv_heads) as head:
            q = cf.linear(x, cf.weight("wq", (m.hidden, m.hidden)).split_heads(m.heads)[head], shard="out")
            q = cf.cluster_gather(q)
            turned = cf.rope(q, cos, sin, pos)
        return cf.outputs(y=turned, z=q)

    assert refused(NotLowered, spec) == "rope cannot be compiled: it rotates in place, and its argument is used elsewhere too."


def test_head_dims_and_groups() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q = cf.input("q", (batch, heads, dim))
        length = cf.input("length", (batch,), "i32")
        k, v = cf.input("k", (batch, 1, dim)), cf.input("v", (batch, 1, dim))
        o = cf.attend(q, cf.kv_cache("cache", batch, 1, "tokens", dim).append(k, v, at=length))
        return cf.outputs(y=o)

    heads, dim = 1, 96
    assert refused(HeadDimUnsupported, spec, clusters=1) == "head_dim 96 is not supported."
    heads, dim = 17, 64
    assert refused(GroupUnsupported, spec, clusters=1) == "17 query heads per key/value head are not supported."
    heads = 16  # 4 groups of query heads: as many warps at least
    assert refused(ConfigError, spec, clusters=1, warps=2) == (
        "the config has warps=2, it must be at least 4: 16 query heads of a KV head."
    )
    lower(spec, clusters=1, warps=4)


def test_independent_refusals_are_raised_together_and_their_consequences_not() -> None:
    """Nodes that do not depend on a refused one are lowered too; a cause is told once, at its first line."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, length = cf.input("x", (batch, 100)), cf.input("length", (batch,), "i32")
        q, k = (cf.linear(x, cf.weight(name, (n, 100))) for name, n in (("wq", 96), ("wk", 96)))
        q, k = cf.split_heads(q, 1), cf.split_heads(k, 1)
        cache = cf.kv_cache("cache", batch, 1, "tokens", 96).append(k, k, at=length)
        o = cf.attend(q, cache)
        wide = cf.kv_cache("wide", batch, 1, "tokens", 64)
        r, s = cf.input("r", (batch, 17, 64)), cf.input("s", (batch, 1, 64))
        p = cf.attend(r, wide.append(s, s, at=length))
        return cf.outputs(o=o, p=p, g=cf.gelu(cf.input("z", (batch, 64)), tanh=False))

    with pytest.raises(Errors) as caught:
        lower(spec, clusters=1)
    assert [error.message for error in caught.value.errors] == [
        "rows of 100 elements, as those of wq and wk, are not supported.",
        "head_dim 96 is not supported.",
        "17 query heads per key/value head are not supported.",
        "gelu cannot be compiled: only its tanh approximation is lowered.",
    ]


def test_stages_that_are_too_small() -> None:
    with pytest.raises(ConfigError) as caught:
        block(stage_bytes=256)
    assert caught.value.message == "the config has stage_bytes=256, it must be at least 512, a piece of a weight row."
    with pytest.raises(ConfigError) as caught:
        block("smollm2-135m", clusters=9, cluster_size=1, stage_bytes=2048)
    # 64 tokens of 64 dimensions at a time (8 warps x 8): 16384 bytes of keys and values
    assert caught.value.message == "the config has stage_bytes=2048, it must be at least 16384, one step of tokens."


def test_too_few_warps_for_the_angles() -> None:
    with pytest.raises(ConfigError, match="the config has warps=1, it must be at least 2: 64 angles"):
        block(warps=1)


def test_a_slice_that_bulk_copies_cannot_move() -> None:
    with pytest.raises(ConfigError, match="cluster_size=16, it must be such that a slice of 576 columns is a multiple of 8"):
        block("smollm2-135m", clusters=9, cluster_size=16, qkv="split_k")


def test_tokens_of_a_tile() -> None:
    assert tile_tokens(group=1, dim=128, itemsize=2, stage_bytes=16384, warps=8) == 32  # 8 warps x 2 batches of 2 tokens: all of a stage
    assert tile_tokens(group=1, dim=64, itemsize=2, stage_bytes=16384, warps=8) == 64  # 2 batches of 4
    assert tile_tokens(group=8, dim=128, itemsize=2, stage_bytes=16384, warps=8) == 32  # 4 token groups: steps of 16
    assert tile_tokens(group=1, dim=128, itemsize=2, stage_bytes=24576, warps=8) == 32  # 48 would fit: one and a half steps
    assert tile_tokens(group=1, dim=128, itemsize=2, stage_bytes=8192, warps=8) == 0
    assert [token_groups(group, 8) for group in (1, 4, 5, 12, 16)] == [8, 8, 4, 2, 2]


# ---- operands in unequal slices


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


def test_the_exact_gelu_is_refused() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.gelu(cf.input("x", (batch, m.hidden)), tanh=False))

    assert refused(NotLowered, spec) == "gelu cannot be compiled: only its tanh approximation is lowered."


def test_an_operand_that_is_broadcast_over_elements() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.split_heads(cf.input("x", (batch, m.hidden)), m.heads)
        return cf.outputs(y=x * cf.weight("scale", (m.head_dim,)))

    assert refused(NotLowered, spec, clusters=1) == "mul cannot be compiled: an operand of shape [128] is broadcast over elements."


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


# ---- everything that can be placed


@pytest.mark.parametrize("model", sorted(cf.PRESETS))
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_all_dataflows_and_meshes_pass_the_checks(model: str, layout: str) -> None:
    m = cf.PRESETS[model]
    lowered = 0
    for qkv in ("rows", "split_k"):
        for out in ("gather", "atomic"):
            for ranks in (1, 2, 4, 8, 16):
                for clusters in sorted({1, m.kv_heads, m.kv_heads // 2 or 1, m.heads if out == "gather" else m.kv_heads}):
                    try:  # a PlanError is none of these
                        check(block(model, clusters, ranks, qkv, out, layout, stages=2, ctas_per_sm=1), H100_SXM)
                        lowered += 1
                    except REFUSALS:
                        continue
    assert lowered >= 20


@pytest.mark.parametrize("model", sorted(cf.PRESETS))
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_the_default_dataflow_passes_the_checks_on_all_meshes(model: str, layout: str) -> None:
    """Rows over the grid, with up to 8 clusters for a group of heads."""
    m = cf.PRESETS[model]
    lowered = 0
    for ranks, splits, groups in product((1, 2, 4, 8, 16), (1, 2, 3, 8), sorted({1, m.kv_heads // 2 or 1, m.kv_heads})):
        if ranks * splits * groups > 132:
            continue  # not resident
        try:
            plan = block(model, groups * splits, ranks, "grid", layout=layout, splits=splits, stages=2, ctas_per_sm=1)
            check(plan, H100_SXM)
        except REFUSALS:
            continue
        assert sum(step.op == "grid_barrier" for step in plan.steps) == 2
        lowered += 1
    assert lowered >= 15


REFUSALS = (ConfigError, NotLowered, ShardDoesNotDivide, ClustersDoNotDivide, SharedMemoryExceeded, NotResident, Errors)


@pytest.mark.parametrize("batch", [1, 2, 7, 132])
def test_rms_norm_of_every_batch(batch: int) -> None:
    for model in cf.PRESETS:
        for ranks in (1, 2, 4, 8):
            check(norm(model, batch, ranks), H100_SXM)


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
