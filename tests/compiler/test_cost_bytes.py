"""The bytes that the cost model counts, derived by hand."""

from __future__ import annotations

from costs import GROUPED, LLAMA, SPLIT_GROUPED, walk

from cfdsl import Mesh, place
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost.smem import fixed_smem
from cfdsl.compiler.cost.traffic import Pause, traffic
from fusions.attention_block import attention_block


def test_llama_bytes() -> None:
    loads = walk(LLAMA, 32, 4)
    weight = 4096 * 4096 * 2
    for name in ("wq", "wk", "wv", "wo"):  # 32 heads x 4 ranks, or 4096 rows over 128 CTAs: 1/128 each
        assert (loads[name].unique, loads[name].cta) == (weight, weight // 128)
    cache = 2 * 32 * 4096 * 128 * 2  # keys and values
    assert (loads["cache"].unique, loads["cache"].cta) == (cache, cache // 128)
    assert loads["cos"].cta == 64 * 4  # one row of the table
    assert loads["x"].cta == 8192  # every CTA norms all of x


def test_table_of_positions_counts_one_row_whatever_its_length() -> None:
    placed = place(LLAMA, Mesh(32, 2))
    assert traffic(placed, {"tokens": 64, "positions": 4097}).loads == traffic(placed, {"tokens": 64}).loads


def test_several_clusters_per_kv_head_repeat_keys_and_values() -> None:
    alone, split = walk(GROUPED, 8, 4), walk(GROUPED, 32, 4)
    assert split["wq"].cta * 4 == alone["wq"].cta  # 32 query heads over 32 clusters instead of 8
    assert split["wk"].cta == alone["wk"].cta == 1024 * 4096 * 2 // 8 // 4  # a KV head's rows, whichever cluster
    assert split["cache"].cta == alone["cache"].cta == 2 * 4096 * 128 * 2 // 4
    assert split["cache"].unique == alone["cache"].unique


def test_a_cluster_with_several_kv_heads_loads_all_of_their_tokens() -> None:
    """8 KV heads on 4 clusters of 2 ranks: two heads each, every rank the half of their tokens."""
    loads = walk(GROUPED, 4, 2)
    assert loads["cache"].cta == 2 * 2 * 4096 // 2 * 128 * 2
    assert loads["cache"].unique == walk(GROUPED, 8, 2)["cache"].unique


def test_tokens_are_dealt_in_tiles_of_a_stage() -> None:
    # 16 KB hold keys and values of 32 tokens (2 x 32 x 128 x 2); 100 tokens are 4 tiles: with 8 ranks the busiest still has one.
    assert walk(LLAMA, 32, 8, tokens=100)["cache"].cta == 2 * 32 * 128 * 2
    assert walk(LLAMA, 32, 2, tokens=100)["cache"].cta == 2 * 64 * 128 * 2
    assert walk(LLAMA, 32, 1, tokens=100)["cache"].cta == 2 * 100 * 128 * 2


def test_split_k_and_atomic_move_the_same_weights() -> None:
    paper = attention_block.trace("llama-2-7b", qkv="split_k", out="atomic")
    ours, theirs = walk(LLAMA, 32, 4), walk(paper, 32, 4)
    assert all(theirs[name] == ours[name] for name in ("wq", "wk", "wv", "wo", "cache"))


def test_cluster_pushes_by_hand() -> None:
    found = traffic(place(LLAMA, Mesh(32, 4)), {})
    gather, scatter = (event.payload for event in found.events if isinstance(event, Pause) and event.kind == "cluster")
    assert gather == 3 * 128 // 4 * 4 * 3  # a quarter of q, k, v in f32, to 3 peers
    assert scatter == 3 * (128 // 4 * 4 + 8)  # to each of 3 peers its quarter of o, and (max, sum)
    assert found.dsmem_bytes == 128 * (gather + scatter)


def test_bytes_of_splits() -> None:
    """64 clusters of 2, 8 to each of 8 KV heads: 16 CTAs deal the tokens of a head among them, and rows go to all 128."""
    found = traffic(place(SPLIT_GROUPED, Mesh(64, 2, 8)), {"tokens": 4096})
    load = {each.name: each for each in found.loads}
    assert load["cache"].cta == 2 * 4096 // 16 * 128 * 2
    assert load["wk"].cta == 1024 // 128 * 4096 * 2
    assert [load[name].copies for name in ("cache", "wq", "wo")] == [1, 1, 1]
    assert found.unique_bytes == traffic(place(GROUPED, Mesh(8, 2)), {"tokens": 4096}).unique_bytes
    gather, reduce = (event.payload for event in found.events if isinstance(event, Pause) and event.kind == "grid")
    assert gather == 4 * (32 + 2 * 8) + 4 * (4 + 1 + 1) * 128  # rows stored; a group's 4 query heads, keys and values read
    # written: 64 dims of each of 4 heads, and their m and l; read: a half of 8 splits' terms, which a rank combines for its peer too
    assert reduce == 4 * (4 * 64 + 2 * 4) + 4 * 8 * (2048 + 2 * 16)


def test_repeated_loads_are_told() -> None:
    """16 clusters for 8 KV heads: two of them load the same keys, and rows of wk."""
    load = {each.name: each.copies for each in traffic(place(GROUPED, Mesh(16, 4)), {"tokens": 4096}).loads}
    assert (load["cache"], load["wk"], load["wq"], load["wo"]) == (2, 2, 1, 1)


def test_fixed_smem_by_hand() -> None:
    """32 clusters of 4, 6 stages, 8 warps: a quarter of a head's q, k, v is 3 x 32 rows, and attention has 8 warps x (128 + 2)."""
    terms = max(4 * 8 * 3 * 32, 4 * 8 * 130)  # an exchange parts the two, so that only the larger counts
    kept = 4 * 3 * 128 + 4 * 128 + (4 * 128 + 8 * 4)  # gathered q, k, v; o; slices of it and (max, sum) from 4 ranks
    barriers = 16 * (6 + 3)  # stages, and three collectives
    needed = terms + kept + barriers + 4 * 8
    assert needed == 6928
    assert fixed_smem(place(LLAMA, Mesh(32, 4)), Config(32, 4, 6)) == 7040  # 55 x 128


def test_fixed_smem_of_an_all_reduce_of_softmax_terms() -> None:
    """A slice of o from every rank, with (max, sum), and then o: not all terms of it, as of sums that go in one round."""
    paper = attention_block.trace("llama-2-7b", qkv="rows", out="atomic")
    terms = 4 * 8 * 1024  # of a quarter of the output projection's rows, from 8 warps
    kept = 4 * 3 * 128 + 4 * 128 + (4 * 128 + 8 * 4 + 4 * 128)  # gathered q, k, v; o; what lands of it
    needed = terms + kept + 16 * (6 + 3) + 4 * 8
    assert needed == 36048
    assert fixed_smem(place(paper, Mesh(32, 4)), Config(32, 4, 6)) == 36096  # 282 x 128
