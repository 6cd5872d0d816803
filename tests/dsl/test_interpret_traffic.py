"""Counted bytes: against sums by hand, and the closed form against what the oracle counts while it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from cfdsl.dsl.exchange import in_two_rounds
from cfdsl.dsl.interpret import Traffic, count_traffic, interpret
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm

SMALL = cf.ModelConfig("tiny", 64, 8, 2, 16)


def counted(options: dict[str, str], mesh: cf.Mesh, batch: int = 1, length: int = 5, model: cf.ModelConfig = SMALL) -> Traffic:
    """Both ways, which must agree."""
    placed = cf.place(attention_block.trace(model, batch=batch, **options), mesh)
    ran = interpret(placed, attention_block.example_inputs(model, batch, "bf16", length, 9, **options)).traffic
    assert count_traffic(placed, {"tokens": 9, "length": length}) == ran
    return ran


def test_rms_norm_by_hand() -> None:
    """2 rows of 64 bf16 on 2 clusters of 4: each rank pushes one f32 to 3 peers; a rank loads its 16 of x and of the weight."""
    model = cf.ModelConfig("tiny", 64, 1, 1, 16)
    placed = cf.place(rms_norm.trace(model, batch=2), cf.Mesh(2, 4))
    traffic = interpret(placed, rms_norm.example_inputs(model, 2)).traffic
    assert (traffic.inputs, traffic.weights, traffic.outputs) == (2 * 64 * 2, 64 * 2, 2 * 64 * 2)
    assert (traffic.kv_read, traffic.kv_write) == (0, 0)
    assert traffic.l2_bytes == 2 * 64 * 2 + 2 * 64 * 2  # x once; the weight once per cluster
    assert (traffic.dsmem_bytes, traffic.grid_bytes) == (2 * 4 * 3 * 4, 0)
    assert [(row.op, row.scope, row.values, row.bytes) for row in traffic.exchanges] == [("cluster_reduce", "cluster", ("f32[2,1]",), 96)]
    assert count_traffic(placed) == traffic


def test_attention_block_by_hand() -> None:
    """hidden 64, 8 query heads over 2 KV heads of 16, batch 1, 5 tokens, on 2 clusters of 4: 8 CTAs."""
    traffic = counted({"qkv": "rows"}, cf.Mesh(2, 4))
    assert traffic.weights == 2 * (64 + (8 + 2 + 2) * 16 * 64 + 64 * 8 * 16)
    tables = 2 * 8 * 4  # one row of cos and one of sin
    assert traffic.inputs == 2 * (64 + 64) + tables + 4 + 4
    assert (traffic.kv_read, traffic.kv_write, traffic.outputs) == (2 * 5 * 2 * 16 * 2, 2 * 2 * 16 * 2, 64 * 2)
    assert traffic.hbm_bytes == sum((traffic.weights, traffic.inputs, traffic.kv_read, traffic.kv_write, traffic.outputs))
    once = traffic.weights + traffic.kv_read  # what CTAs share out among themselves
    assert traffic.l2_bytes == once + 7 * 64 * 2 + 8 * traffic.inputs  # all load the norm's weight and the inputs
    gather, scatter, grid = traffic.exchanges
    assert (gather.op, gather.bytes) == ("cluster_gather", 4 * 3 * (8 + 2 + 2) * 16)  # every slice to 3 peers
    # per cluster: each of 4 ranks gets from 3 peers 4 heads of (16 / 4 dims of o, m, l)
    assert (scatter.op, scatter.bytes) == ("cluster_reduce_scatter", 2 * 4 * 3 * 4 * (16 // 4 + 2) * 4)
    assert (grid.op, grid.scope, grid.bytes) == ("grid_gather", "grid", 4 * 128 + 8 * 4 * 128)  # written once, read by 8


def test_dataflows_of_the_paper_by_hand() -> None:
    reduce, lse, atomic = counted({"qkv": "split_k", "out": "atomic"}, cf.Mesh(2, 4)).exchanges
    assert reduce.values == ("f32[1,8,16]", "f32[1,2,16]", "f32[1,2,16]")
    assert reduce.bytes == 4 * (4 * 3) * (8 + 2 + 2) * 16  # whole terms from everyone to everyone
    # scattered, the (m, l) of all heads to every rank, and gathered: of 2 clusters with 4 heads of 16, and 4 ranks with 3 peers each
    assert (lse.op, lse.bytes) == ("cluster_reduce", 2 * 4 * (3 * 64 + 4 * 3 * 8 + 3 * 64))
    assert (atomic.op, atomic.bytes) == ("grid_reduce_scatter", 4 * (2 * 64 + 64))  # two clusters add, each element is read once


def test_a_full_cache_is_not_written() -> None:
    assert counted({}, cf.Mesh(2, 2), length=9).kv_write == 0
    assert counted({}, cf.Mesh(2, 2), length=12).kv_read == 9 * 2 * 2 * 16 * 2


def test_length_defaults_to_room_for_one() -> None:
    placed = cf.place(attention_block.trace(SMALL), cf.Mesh(2, 2))
    assert count_traffic(placed, {"tokens": 9}) == count_traffic(placed, {"tokens": 9, "length": 8})


def test_a_missing_size_is_named() -> None:
    placed = cf.place(attention_block.trace(SMALL), cf.Mesh(2, 2))
    with pytest.raises(cf.errors.ArgumentError, match="argument 'sizes' must be sizes with a number for 'tokens', got {}"):
        count_traffic(placed)


def test_llama_2_7b_needs_no_tensors() -> None:
    """4 square matrices of 4096 and 4096 tokens of 32 heads: 201 MB, 64 us at 3.15 TB/s."""
    model = cf.ModelConfig("llama-2-7b", 4096, 32, 32, 128)
    traffic = count_traffic(cf.place(attention_block.trace(model), cf.Mesh(32, 4)), {"tokens": 4097, "length": 4096})
    assert (traffic.weights, traffic.kv_read) == (2 * (4 * 4096 * 4096 + 4096), 2 * 4096 * 4096 * 2)
    assert traffic.hbm_bytes / 3.15e6 == pytest.approx(63.9, abs=0.05)


@pytest.mark.parametrize("out", ["gather", "atomic"])
def test_more_ctas_than_rows(out: str) -> None:
    """64 output rows on 128 CTAs: half of them have none, and no row is computed twice."""
    model = cf.ModelConfig("tiny", 64, 8, 8, 16)
    traffic = counted({"qkv": "rows", "out": out}, cf.Mesh(8, 16), model=model)
    wo = 64 * 8 * 16 * 2
    qkv = 3 * 64 * 8 * 16 * 2
    assert traffic.l2_bytes == wo + qkv + traffic.kv_read + 128 * (64 * 2 + traffic.inputs)


def test_splits_by_hand() -> None:
    """6 clusters of 2: 2 groups of 3 splits, a group has 4 of 8 query heads and 1 of 2 KV heads of 16."""
    traffic = counted({"qkv": "grid"}, cf.Mesh(6, 2, 3))
    one = counted({"qkv": "grid"}, cf.Mesh(2, 2))
    assert (traffic.kv_read, traffic.kv_write, traffic.weights) == (one.kv_read, one.kv_write, one.weights)
    gather, scatter, grid = traffic.exchanges
    # written once; each of 12 CTAs reads what its group works on, 4 query heads and one of keys and of values
    assert (gather.op, gather.bytes) == ("grid_gather", 4 * (8 + 2 + 2) * 16 + 4 * 12 * (4 + 1 + 1) * 16)
    # per cluster: each of 2 ranks gets from its peer 4 heads of (16 / 2 dims of o, m, l)
    assert (scatter.op, scatter.bytes) == ("cluster_reduce_scatter", 6 * 2 * 4 * (16 // 2 + 2) * 4)
    # o, m, l of each split are written once; each of 2 ranks reads a half of them, and pushes what it made of it to its peer
    assert (grid.op, grid.bytes, grid.pushed) == ("grid_reduce", 3 * (128 + 2 * 8) * 4 * (1 + 6), 6 * 128 * 4)
    assert traffic.dsmem_bytes == scatter.bytes + grid.pushed


def test_few_splits_are_read_whole() -> None:
    """4 clusters of 2, 2 splits: every CTA reads both splits' terms, and nothing is pushed."""
    grid = counted({"qkv": "grid"}, cf.Mesh(4, 2, 2)).exchanges[-1]
    assert (grid.bytes, grid.pushed) == (2 * (128 + 2 * 8) * 4 * (1 + 8), 0)


def test_when_an_all_reduce_takes_two_rounds() -> None:
    """From 24 KiB that would land in a rank; of several values all together; and only where slices can be pushed, to somebody."""
    assert [in_two_rounds([size], 2) for size in (3072, 3080)] == [False, True]
    assert [in_two_rounds(sizes, 2) for sizes in ([1536, 1536], [1536, 1544])] == [False, True]
    assert [in_two_rounds([size], 4) for size in (1552, 1556)] == [True, False]  # a slice of 389 elements
    assert not in_two_rounds([2**20], 1)


def test_an_all_reduce_of_much_takes_two_rounds() -> None:
    """64 heads of 16 and 2 of keys and of values on one cluster: terms of 1088. From 8 ranks 34,816 bytes would land."""
    model = cf.ModelConfig("tiny", 64, 64, 2, 16)
    reduce = counted({"qkv": "split_k"}, cf.Mesh(1, 8), model=model).exchanges[0]
    assert reduce.bytes == 2 * 7 * 1088 * 4  # a slice of each term to its rank, and each slice's sum to all
    reduce = counted({"qkv": "split_k"}, cf.Mesh(1, 4), model=model).exchanges[0]
    assert reduce.bytes == 4 * 3 * 1088 * 4  # 17,408 bytes land: one round, of whole terms


@given(
    groups=st.sampled_from((1, 2, 4)), splits=st.integers(1, 4), group=st.sampled_from((1, 2, 4)), ranks=st.sampled_from((1, 2, 4, 8, 16)),
    batch=st.integers(1, 3), length=st.integers(-1, 10), bias=st.booleans(),
)  # fmt: skip
def test_closed_form_with_splits(groups: int, splits: int, group: int, ranks: int, batch: int, length: int, bias: bool) -> None:
    model = cf.ModelConfig("tiny", 48, 2 * group, 2, 16, qkv_bias=bias)
    groups = groups if model.heads % groups == 0 else 2
    counted({"qkv": "grid"}, cf.Mesh(groups * splits, ranks, splits), batch, length, model)


@given(
    qkv=st.sampled_from(("rows", "split_k")), out=st.sampled_from(("gather", "atomic")), kv_heads=st.sampled_from((1, 2, 4)),
    group=st.sampled_from((1, 2, 3, 4, 8)), times=st.sampled_from((-4, -2, 1, 2, 4)), ranks=st.sampled_from((1, 2, 4, 8, 16)),
    batch=st.integers(1, 3), length=st.integers(-1, 10), bias=st.booleans(), hidden=st.sampled_from((48, 64, 576)),
)  # fmt: skip
def test_closed_form_equals_what_runs(
    qkv: str, out: str, kv_heads: int, group: int, times: int, ranks: int, batch: int, length: int, bias: bool, hidden: int
) -> None:
    model = cf.ModelConfig("tiny", hidden, kv_heads * group, kv_heads, 16, qkv_bias=bias)
    clusters = kv_heads * times if times > 0 else max(1, kv_heads // -times)
    if model.heads % clusters and (out == "atomic" or clusters % model.heads):
        clusters = kv_heads
    counted({"qkv": qkv, "out": out}, cf.Mesh(clusters, ranks), batch, length, model)


@pytest.mark.parametrize("mesh", [cf.Mesh(1, 1), cf.Mesh(2, 2), cf.Mesh(4, 4), cf.Mesh(8, 2)], ids=str)
def test_closed_form_of_other_ops(mesh: cf.Mesh) -> None:
    """Broadcast operands, split leaves, a linear over all CTAs with a bias, a cache that is read by every rank whole."""

    @cf.fusion
    def other(m: cf.ModelConfig, batch: int) -> Any:
        x, row, length = cf.input("x", (batch, 32)), cf.weight("row", (32,)), cf.input("length", (batch,), "i32")
        left, right = cf.split(x, (10, 22), dim=1)
        with cf.clusters(over=4) as part:
            a = cf.cluster_gather(cf.silu(cf.shard(x[:, part], dim=1)) * row)
            q = cf.split_heads(cf.input("q", (batch, 64)), 4)
            o = cf.attend(q[:, part], cf.kv_cache("kv", batch, 4, "tokens", 16)[part], length)
        y = cf.linear(cf.grid_gather(a), cf.weight("w", (20, 32)), cf.weight("b", (20,)), shard="out")
        return cf.outputs(y=y, z=cf.merge_heads(cf.grid_gather(o)), l=left * left, r=cf.concat((right, left), dim=1))

    placed = cf.place(other.trace(SMALL, batch=2), mesh)
    tensors = {"x": torch.ones(2, 32), "row": torch.ones(32), "w": torch.ones(20, 32), "b": torch.ones(20), "q": torch.ones(2, 64)}
    tensors |= {"kv_k": torch.ones(2, 4, 7, 16), "kv_v": torch.ones(2, 4, 7, 16)}
    tensors = {name: value.bfloat16() for name, value in tensors.items()} | {"length": torch.full((2,), 3, dtype=torch.int32)}
    ran = interpret(placed, tensors).traffic
    assert count_traffic(placed, {"tokens": 7, "length": 3}) == ran
    assert ran.kv_read == 2 * 2 * 4 * 3 * 16 * 2


def test_without_counting_the_numbers_are_the_same_and_the_traffic_is_not_known() -> None:
    placed = cf.place(attention_block.trace(SMALL), cf.Mesh(2, 4))
    tensors = attention_block.example_inputs(SMALL, 1, "bf16", 5, 9)
    watched, unwatched = (interpret(placed, tensors, count=count) for count in (True, False))
    assert torch.equal(watched.outputs["y"], unwatched.outputs["y"])
    assert all(torch.equal(a.nan_to_num(), unwatched.caches[name].nan_to_num()) for name, a in watched.caches.items())
    with pytest.raises(cf.CfdslError, match="argument 'count' must be True for the traffic to be known, got False"):
        unwatched.traffic
