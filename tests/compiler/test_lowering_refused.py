"""What the lowering refuses, with a text that helps."""

from __future__ import annotations

from typing import Any

import pytest
from lowered import LLAMA, lower, refused
from plans import block, plan_graph, step_of

import cfdsl as cf
from cfdsl.compiler.affine import Affine
from cfdsl.errors import ConfigError, Errors, GroupUnsupported, HeadDimUnsupported, NotLowered
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm


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


def test_the_exact_gelu_is_refused() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.gelu(cf.input("x", (batch, m.hidden)), tanh=False))

    assert refused(NotLowered, spec) == "gelu cannot be compiled: only its tanh approximation is lowered."


def test_an_operand_that_is_broadcast_over_elements() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.split_heads(cf.input("x", (batch, m.hidden)), m.heads)
        return cf.outputs(y=x * cf.weight("scale", (m.head_dim,)))

    assert refused(NotLowered, spec, clusters=1) == "mul cannot be compiled: an operand of shape [128] is broadcast over elements."


def test_softmax_terms_that_no_product_reads() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q, k = (cf.input(name, (batch, heads, m.head_dim)) for name, heads in (("q", m.heads), ("k", m.kv_heads)))
        length = cf.input("length", (batch,), "i32")
        with cf.clusters(over=m.kv_heads) as head:
            cache = cf.kv_cache("cache", batch, m.kv_heads, "tokens", m.head_dim)[head].append(k[:, head], k[:, head], at=length)
            o = cf.cluster_reduce_scatter(cf.attend(q[:, head], cache, shard="tokens", across="all"), dim=2)
        return cf.outputs(y=cf.silu(cf.merge_heads(cf.grid_reduce(o))))

    said = refused(NotLowered, spec, clusters=64, cluster_size=1, splits=2)
    assert said == "grid_reduce cannot be compiled: softmax terms of several clusters are only combined where a product reads all of them."


def test_pieces_that_are_placed_otherwise_than_the_whole() -> None:
    """Half of the ranks' slices of one piece, and all of the other, would be put together."""

    def spec(m: cf.ModelConfig, batch: int, *, sliced: bool = True) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        a, b = (cf.linear(x, cf.weight(name, (64, m.hidden)).split_heads(4)) for name in ("wa", "wb"))
        return cf.outputs(y=cf.concat([a, cf.shard(b, 2) if sliced else b], dim=1))

    said = refused(NotLowered, spec, clusters=1, cluster_size=2)
    assert said == "concat cannot be compiled: a piece is placed [R, R], and the whole [R, S(2)]."
    plan = lower(lambda m, batch: spec(m, batch, sliced=False), clusters=1, cluster_size=2)
    assert [first for _, first, _ in plan.steps[step_of(plan, "concat")].params["parts"]] == [0, 64]


def test_parts_of_a_piece_that_is_not_a_run() -> None:
    """40 of 64 elements of each of 4 rows: what a step reads one by one can be in blocks, and nothing else."""

    def spec(m: cf.ModelConfig, batch: int, use: Any) -> cf.Outputs:
        return cf.outputs(y=cf.silu(use(cf.split(cf.input("x", (batch, 4, 64)), (24, 40), dim=2)[1])))

    one = {"clusters": 1, "cluster_size": 1}
    plan = lower(lambda m, batch: spec(m, batch, lambda piece: piece), **one)
    (x,) = (leaf for leaf in plan.steps[step_of(plan, "store_vector")].params["tree"].walk() if leaf.name == "x")
    assert (x.offset, x.block, x.stride) == (Affine.of(24), 40, 64)
    for dim, sizes in ((2, (20, 20)), (1, (2, 2))):
        said = refused(NotLowered, lambda m, batch, dim=dim, sizes=sizes: spec(m, batch, lambda x: cf.split(x, sizes, dim)[1]), **one)
        assert said == "split cannot be compiled: a part of a piece along dimension 2 is not a run of elements."
    weight = (64, 160)
    said = refused(NotLowered, lambda m, batch: spec(m, batch, lambda x: cf.linear(cf.merge_heads(x), cf.weight("w", weight))), **one)
    assert said == "split cannot be compiled: it is needed in blocks of elements, and only launch arguments can be read so."


def test_a_slice_that_is_not_a_run_is_told_in_the_words_of_the_spec() -> None:
    """Of a sum over half of each head, some heads: runs of half a head, and no run of the bias."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, bias = cf.input("x", (batch, 4, 64)), cf.weight("b", (256,))
        with cf.clusters(over=4) as axis:
            h = cf.shard(x, 2) + cf.split_heads(bias, 4)
            h = cf.cluster_gather(cf.silu(h[:, axis]))
        return cf.outputs(y=cf.grid_gather(h))

    said = refused(NotLowered, spec, clusters=2, cluster_size=2)
    assert said == "shard cannot be compiled: its slice of an operand of shape [1, 4, 64] is not a run of it."


def test_a_fragment_that_starts_within_a_vector_load() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.split(cf.input("x", (batch, 68)), (4, 64), dim=1)[1]
        return cf.outputs(y=cf.linear(x, cf.weight("w", (64, 64)), shard="out"))

    said = refused(NotLowered, spec, clusters=4, cluster_size=1)
    assert said == "split cannot be compiled: it is read 8 elements at a time, and starts at element 4 of what it is cut from."
