from __future__ import annotations

import handmade
import pytest

import cfdsl as cf
from cfdsl.cli.holdings import Read, Slice, local_shape, local_slices, names_of, reads_of
from cfdsl.dsl.graph import LEAVES, VIEWS
from cfdsl.dsl.placement import R
from fusions.attention_block import attention_block
from fusions.embedding import embedding
from fusions.rms_norm import rms_norm


@cf.fusion
def block(m: cf.ModelConfig, batch: int, *, qkv: str = "rows") -> cf.Outputs:
    """Names in all the ways a spec may give them: alone, several at once, from a generator, inside another call."""
    x = cf.input("x", (batch, m.hidden))
    w = {n: cf.weight(f"w{n}", (m.heads * m.head_dim, m.hidden)) for n in "qkv"}
    pos = cf.input("pos", (batch,), "i32")
    cos, sin = (cf.input(name, ("positions", m.rotary_dim // 2), "f32") for name in ("cos", "sin"))
    h = x + x
    with cf.clusters(over=m.heads) as head:
        if qkv == "rows":
            q, k, v = cf.cluster_gather(*(cf.linear(h, w[n].split_heads(m.heads)[head], shard="out") for n in "qkv"))
        else:
            sums = cf.cluster_reduce(*(cf.linear(h, w[n].split_heads(m.heads)[head], shard="in") for n in "qkv"))
            q, k, v = sums
        q, k = cf.rope(q, cos, sin, pos), cf.rope(k, cos, sin, pos)
        q, k = (cf.silu(value) for value in (q, k))
        both = cf.add(q, cf.mul(k, v))
    return cf.outputs(y=cf.merge_heads(cf.grid_gather(both)))


def shown(fusion: cf.Fusion, **options: str) -> list[str]:
    graph = fusion.trace("llama-2-7b", **options)
    names = names_of(graph)
    return [names[node] for node in graph.nodes if node.op not in LEAVES and (node.op not in VIEWS or node.op == "item")]


def test_values_have_the_names_that_the_spec_gives_them() -> None:
    names = ["h", "q", "k", "v", "cluster_gather", "q", "k", "v", "q", "k", "q", "k", "mul", "both", "grid_gather", "both"]
    assert shown(block) == names


def test_results_without_a_variable_of_their_own_say_where_they_come_from() -> None:
    assert shown(block, qkv="split_k")[1:6] == ["linear_wq", "linear_wk", "linear_wv", "cluster_reduce", "sums[0]"]


def test_rms_norm_names() -> None:
    assert shown(rms_norm)[-1] == "y"
    assert "mean_square" in shown(rms_norm)


def test_a_leaf_has_its_own_name() -> None:
    graph = attention_block.trace("llama-2-7b")
    names = names_of(graph)
    assert {names[leaf] for leaf in graph.leaves("weight")} == {"wq", "wk", "wv", "wo", "norm"}


def test_names_survive_lines_that_are_not_whole_statements() -> None:
    x = cf.Node("input", (), {"name": "x"}, (cf.Type((4,), "bf16"),), cf.Src("a.py", 1, "x = cf.input("))
    y = cf.Node("silu", (x,), {}, (cf.Type((4,), "f32"),), cf.Src("a.py", 2, "better = cf.silu("))
    z = cf.Node("silu", (y,), {}, (cf.Type((4,), "f32"),), cf.Src("a.py", 3, ") + cf.silu("))
    assert list(names_of(cf.Graph("g", (), (z,))).values()) == ["x", "better", "silu"]


@pytest.mark.parametrize(
    ("grid", "cluster", "cluster_index", "rank", "want"),
    [
        (R, R, 0, 0, (0, 4096)),
        (R, cf.Shard(0), 3, 1, (2048, 4096)),
        (cf.Shard(0), R, 3, 1, (384, 512)),
        (cf.Shard(0), cf.Shard(0), 3, 1, (7 * 64, 8 * 64)),
    ],
)
def test_slices_of_a_dimension(grid: object, cluster: object, cluster_index: int, rank: int, want: tuple[int, int]) -> None:
    (found,) = local_slices((4096,), cf.Placement(grid, cluster), cf.Mesh(32, 2), cluster_index, rank)
    assert found == Slice(*want, 4096)


def test_a_dimension_known_at_run_time_stays_text() -> None:
    at = cf.Placement(cf.Shard(0), cf.Shard(1))
    assert local_shape((32, "tokens"), at, cf.Mesh(32, 4)) == (1, "tokens/4")


def test_what_one_cta_reads_from_memory() -> None:
    placed = handmade.placed(2)
    by_op = {node: reads_of(node, placed) for node in placed.graph.nodes}
    found = {read for reads in by_op.values() for read in reads}
    assert Read("wq", "1/64") in found
    assert Read("cache_k, cache_v", "1/64") in found
    assert Read("wo", "1/64") in found
    assert Read("x", "all") in found


def test_of_an_embedding_table_a_row_is_read() -> None:
    placed = cf.place(embedding.trace("llama-2-7b"), cf.Mesh(1, 2))
    assert [read for node in placed.graph.nodes for read in reads_of(node, placed)] == [Read("table", "row")]


def test_clusters_that_share_a_head_read_the_same_weights() -> None:
    placed = cf.place(attention_block.trace("llama-3.1-8b", qkv="rows"), cf.Mesh(16, 2))  # 8 KV heads, two clusters on each
    found = {read.name: read.share for node in placed.graph.nodes for read in reads_of(node, placed)}
    assert found["wk"] == "1/16"
    assert found["cache_k, cache_v"] == "1/16"
    assert found["wo"] == "1/32"
    assert found["wq"] == "1/32"


def test_splits_read_different_tokens_of_one_head() -> None:
    placed = cf.place(attention_block.trace("llama-3.1-8b", qkv="grid"), cf.Mesh(64, 2, 8))
    (attend,) = (node for node in placed.graph.nodes if node.op == "attend")
    (wq, *_) = (node for node in placed.graph.nodes if node.op == "linear")
    assert reads_of(attend, placed) == [Read("cache_k, cache_v", "1/128")]
    assert Read("wq", "1/128") in reads_of(wq, placed)
    q = attend.args[0]
    assert local_slices(q.type.shape, placed.of(q), placed.mesh, 9, 1)[1] == Slice(4, 8, 32)  # the second split of the second group
