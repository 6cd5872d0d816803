"""The cost model: numbers derived by hand, measured anchors, and the reasons it refuses for."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product
from math import log
from statistics import mean
from typing import Any

import pytest
from measured import CASES, Case, Shape

import cfdsl as cf
import fusions
from cfdsl import PRESETS, Mesh, place
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import choice as cost
from cfdsl.compiler.cost import choose, explain, weighed
from cfdsl.compiler.cost.estimate import ctas_on_busiest_sm, flight_share, pauses_us, stream_us, waves_of
from cfdsl.compiler.cost.smem import fixed_smem
from cfdsl.compiler.cost.traffic import Load, Pause, Traffic, traffic
from cfdsl.compiler.parts import B200, H100_SXM, H200, PARTS, RTX_PRO_6000
from cfdsl.errors import ArgumentError, ClusterSizeUnsupported, ConfigError, Errors, NoLegalConfig, NothingToSplit
from fusions.attention_block import attention_block
from fusions.ffn_block import ffn_block
from fusions.rms_norm import rms_norm

LLAMA = attention_block.trace("llama-2-7b", qkv="rows")
GROUPED = attention_block.trace("llama-3.1-8b", qkv="rows")
PROTOTYPE = {"clusters": 32, "ctas_per_sm": 2, "stages": 6}


def table(graph: Any = LLAMA, part: Any = H100_SXM, **overrides: Any) -> dict[tuple[int, int, int], cost.Candidate]:
    """Candidates by (clusters, cluster size, CTAs per SM)."""
    rows = choose(graph, part, overrides).rows
    return {(row.config.clusters, row.config.cluster_size, row.config.ctas_per_sm): row for row in rows}


# ---- bytes


def walk(graph: Any, clusters: int, ranks: int, tokens: int = 4096) -> dict[str, Load]:
    found = traffic(place(graph, Mesh(clusters, ranks)), {"tokens": tokens})
    return {load.name: load for load in found.loads}


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


# ---- rates


def test_flight_share_meets_the_measurements() -> None:
    kb = 1024 * 132
    assert 3150 * flight_share(H100_SXM, 32 * kb) == pytest.approx(3000, rel=0.01)
    assert flight_share(H100_SXM, 48 * kb) > 0.985


def test_half_the_sms_nearly_keep_the_memory_busy() -> None:
    """64 CTAs, one per SM, were measured at 3.05 TB/s where all of an H100 reaches 3.15; on an H200 at 3.87 of 4.56, 120 at 4.51."""
    found = Traffic((Load("w", 2**22, 64 * 2**22),), Mesh(64, 1), 0)
    config = Config(64, 1, 8, ctas_per_sm=1)
    took = stream_us(H100_SXM, config, found, flight_share(H100_SXM, 64 * 128 * 1024))[0]
    assert 64 * 2**22 / took / 1e6 == pytest.approx(3.05, rel=0.01)
    for ctas, measured in ((64, 3.87), (120, 4.51), (132, 4.56)):
        found = Traffic((Load("w", 2**22, ctas * 2**22),), Mesh(ctas, 1), 0)
        took = stream_us(H200, Config(ctas, 1, 12, ctas_per_sm=1), found)[0]
        assert ctas * 2**22 / took / 1e6 == pytest.approx(measured, rel=0.01)


def test_limits_by_hand() -> None:
    """64 CTAs of 2^20 bytes: an SM takes in 37 B x 1755 cycles = 64,935 bytes a us: 16.15 us. Memory: 67.1e6 / 3.15e6 = 21.3 us."""
    found = Traffic((Load("w", 2**20, 2**26),), Mesh(64, 1), 0)
    total, memory, _, sm = stream_us(H100_SXM, Config(64, 1, 12, ctas_per_sm=1), found)
    assert (memory, sm) == (pytest.approx(21.304, abs=1e-3), pytest.approx(16.148, abs=1e-3))
    assert total == pytest.approx((21.304**6 + 16.148**6) ** (1 / 6), abs=1e-3)


def test_two_waves_cost_what_was_measured() -> None:
    """32 clusters of 4 at one CTA per SM: 30, then 2 more. Measured: 83 us instead of 70 for the same bytes."""
    found = Traffic((Load("w", 201_326_592 // 128, 201_326_592),), Mesh(32, 4), 0)
    one_wave = stream_us(H100_SXM, Config(30, 4, 12, ctas_per_sm=1), replace(found, mesh=Mesh(30, 4)))[0]
    two_waves = stream_us(H100_SXM, Config(32, 4, 12, ctas_per_sm=1), found)[0]
    assert (waves_of(32, 30), waves_of(30, 30), waves_of(61, 30)) == (2, 1, 3)
    assert two_waves - one_wave == pytest.approx(13, abs=3)


def test_busiest_sm() -> None:
    def busiest(clusters: int, size: int) -> int:
        return ctas_on_busiest_sm(H100_SXM, Config(clusters, size, 6, ctas_per_sm=2))

    assert (busiest(32, 2), busiest(30, 4), busiest(31, 4), busiest(132, 1), busiest(133, 1)) == (1, 1, 2, 1, 2)
    assert ctas_on_busiest_sm(B200, Config(32, 1, 6)) == 1


def test_pauses_between_streams_add_up() -> None:
    first, gather, grid, last = pauses_us(H100_SXM, traffic(place(LLAMA, Mesh(32, 2)), {}))
    t = H100_SXM.timing
    assert first[0] == pytest.approx(t.global_round_us + t.block_phase_us)  # inputs, then the norm
    push = (240 + 3 * 64 * 4 / 16) / 1755  # 64 values each of q, k, v to one peer, 16 bytes a cycle
    assert gather[0] == pytest.approx(3 * t.block_phase_us + push)  # sum over warps, gathered, rotated
    push = (240 + (64 * 4 + 8) / 16) / 1755  # half of 128 values, and (max, sum), to one peer
    back = (4096 * 4 + 64 * 4) / (37 * 1755)  # everyone reads 4096 values back, and has written 64
    assert grid[0] == pytest.approx(3 * t.block_phase_us + push + t.skew_us + t.grid_barrier_us + t.global_round_us + back)
    assert grid[1] == 4096 * 4096 * 2 // 64  # what is left to stream is this CTA's share of the output projection
    assert last == (pytest.approx(t.block_phase_us), 0)


def test_the_terms_add_up() -> None:
    chosen = choose(LLAMA, H100_SXM).chosen
    assert chosen.time_us == pytest.approx(sum(getattr(chosen, f"{term}_us") for term in ("start", "stream", "exchanges", "tail")))


def estimates(case: Case) -> dict[Shape, cost.Candidate]:
    """The candidates of what was measured."""
    graph = fusions.find(case.fusion).trace(case.model, 1, "bf16", **case.options)
    rows = choose(graph, PARTS[case.part], {}, {"tokens": case.tokens}).rows
    made = {(r.config.clusters, r.config.cluster_size, r.config.splits, r.config.ctas_per_sm): r for r in rows if not r.refused}
    return {shape: made[shape] for shape in case.times if shape in made}


def test_estimates_meet_what_was_measured() -> None:
    """To 5 % on average, over all shapes and not only good ones; the chosen one, which tables and bars speak of, closer."""
    off = {part: [abs(log(row.time_us / case.times[shape])) for case in CASES if case.part == part
                  for shape, row in estimates(case).items() if row.time_us] for part in ("h100-sxm", "h200")}  # fmt: skip
    assert len(off["h100-sxm"]) > 150
    assert mean(off["h100-sxm"]) < 0.055
    assert mean(off["h200"]) < 0.055
    assert max(*off["h100-sxm"], *off["h200"]) < 0.4


def test_the_choice_is_hardly_slower_than_the_fastest_that_was_measured() -> None:
    regrets = {}
    for case in CASES:
        found = estimates(case)
        if len(found) > 1:
            fastest = min(row.time_us for row in found.values() if row.time_us)
            picked = min(found, key=lambda shape: cost._rank(found[shape], fastest))
            regrets[case.fusion, case.model, str(case.options), case.tokens] = case.times[picked] / min(case.times.values()) - 1
    assert mean(regrets.values()) < 0.01
    assert max(regrets.values()) < 0.08, regrets


def test_two_ctas_share_what_an_sm_takes_in() -> None:
    """32 clusters of 4: two double up, and the launch waits for their SMs. Of 30 each has SMs of its own."""
    doubled, single = (Traffic((Load("w", 2**20, n * 4 * 2**20),), Mesh(n, 4), 0) for n in (32, 30))
    _, _, _, sm = stream_us(H200, Config(32, 4, 6), doubled)
    _, _, _, alone = stream_us(H200, Config(30, 4, 6), single)
    assert sm == pytest.approx(2 * alone)
    assert sm > H200.at_hbm_us(doubled.unique_bytes)


def test_few_sms_get_what_their_ports_take() -> None:
    assert H200.at_sm_us(64 * 1755, sms=1) == pytest.approx(1, rel=0.02)
    assert H200.at_sm_us(37 * 1755, sms=64) == pytest.approx(1)
    assert H200.at_sm_us(37 * 1755, repeated=37 * 1755) == pytest.approx(1 / 1.3)
    assert H200.at_sm_us(37 * 1755, cluster_size=16) == pytest.approx(1 / 0.79)


def test_floor_is_the_memory_s_time() -> None:
    assert choose(LLAMA, H100_SXM).floor_us == pytest.approx(63.9, abs=0.1)
    assert choose(GROUPED, H100_SXM).floor_us == pytest.approx(32.0, abs=0.1)


# ---- choosing


def test_the_shape_that_was_measured_best_is_chosen_for_llama() -> None:
    config = choose(LLAMA, H100_SXM).config
    assert (config.clusters, config.cluster_size, config.stages, config.ctas_per_sm) == (32, 2, 12, 1)


@pytest.mark.parametrize("part", [H100_SXM, H200], ids=lambda part: part.name)
@pytest.mark.parametrize("model", PRESETS)
def test_every_preset_has_a_config(model: str, part: Any) -> None:
    for qkv, out in (("grid", "gather"), *product(("rows", "split_k"), ("gather", "atomic"))):
        choice = choose(attention_block.trace(model, qkv=qkv, out=out), part)
        assert choice.chosen.config == choice.config
        assert choice.chosen.smem_bytes <= part.smem_budget(choice.config.ctas_per_sm)


def test_heads_per_cluster_are_weighed() -> None:
    units = {row.units for row in choose(GROUPED, H100_SXM).rows}
    assert units == {Fraction(8, n) for n in (1, 2, 4, 8, 16, 32)}


def test_cluster_of_one_wins_where_there_are_rows_enough() -> None:
    assert choose(rms_norm.trace("llama-2-7b", 128), H100_SXM).config.cluster_size == 1


def test_cluster_of_one_wins_where_an_exchange_costs_more_than_it_saves() -> None:
    """4096 values take one SM 0.2 us. Four SMs save 0.15 of them, and an exchange takes more than that."""
    assert choose(rms_norm.trace("llama-2-7b", 1), H100_SXM).config.cluster_size == 1
    assert choose(rms_norm.trace(replace(PRESETS["llama-2-7b"], hidden=65536), 1), H100_SXM).config.cluster_size > 1


def test_cluster_of_one_wins_where_heads_fill_the_part() -> None:
    many = replace(PRESETS["llama-2-7b"], hidden=8192, heads=128, kv_heads=128, head_dim=64, rotary_dim=64)
    config = choose(attention_block.trace(many, qkv="rows"), H100_SXM).config
    assert (config.clusters, config.cluster_size) == (128, 1)


def test_cluster_of_one_loses_where_heads_are_few() -> None:
    rows = table()
    assert rows[32, 1, 1].time_us > 1.2 * rows[32, 2, 1].time_us  # 32 SMs cannot take in what the memory gives


def test_no_ring_no_stages() -> None:
    chosen = choose(rms_norm.trace("llama-2-7b", 1), H100_SXM).chosen
    assert chosen.smem_bytes < 1024
    assert not chosen.estimate.traffic.streams


def test_rows_are_ordered_and_complete() -> None:
    choice = choose(LLAMA, H100_SXM)
    assert len(choice.rows) == 6 * 5 * 2  # clusters 1 to 32, cluster sizes, CTAs per SM
    assert [row.chosen for row in choice.rows].index(True) == 0
    refused = [bool(row.refused) for row in choice.rows]
    assert refused == sorted(refused)
    assert all((row.time_us is None) == bool(row.refused) for row in choice.rows)
    rest = [row.time_us for row in choice.rows if row.time_us and row.time_us > 1.03 * min(r.time_us for r in choice.rows if r.time_us)]
    assert all(a <= b for a, b in pairwise(rest))


def test_stages_fill_the_shared_memory() -> None:
    for row in choose(LLAMA, H100_SXM).rows:
        if row.estimate and row.config.stages < 12:
            budget = H100_SXM.smem_budget(row.config.ctas_per_sm)
            assert row.smem_bytes <= budget < row.smem_bytes + row.config.stage_bytes + 256  # a stage more does not fit


# ---- clusters that share a unit

SPLIT = attention_block.trace("llama-2-7b", qkv="grid")
SPLIT_GROUPED = attention_block.trace("llama-3.1-8b", qkv="grid")


def test_splits_that_fill_the_part_are_weighed() -> None:
    def weighed(graph: Any) -> set[tuple[int, int, int]]:
        return {(row.config.groups, row.config.splits, row.config.cluster_size) for row in choose(graph, H200).rows}

    llama, grouped = weighed(SPLIT), weighed(SPLIT_GROUPED)
    assert {(32, 2, 2), (32, 4, 1), (32, 1, 4), (16, 4, 2)} <= llama
    assert {(8, splits, 2) for splits in (2, 3, 4, 6, 8)} | {(8, 3, 4), (8, 8, 1), (8, 1, 8)} <= grouped
    assert all(groups * splits * size <= 132 for groups, splits, size in llama | grouped if splits > 1)
    assert all(row.config.splits == 1 for row in choose(LLAMA, H200).rows)


def test_a_cluster_on_every_sm_is_chosen_where_tokens_may_be_split() -> None:
    for graph in (SPLIT, SPLIT_GROUPED):
        chosen = choose(graph, H200).chosen
        assert chosen.config.ctas == 128
        assert chosen.estimate.ctas_on_busiest_sm == 1
    assert choose(SPLIT_GROUPED, H200).chosen.time_us < choose(GROUPED, H200).chosen.time_us


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


def test_given_splits() -> None:
    config = choose(SPLIT_GROUPED, H200, {"clusters": 64, "splits": 8, "cluster_size": 2}).config
    assert (config.clusters, config.splits, config.groups) == (64, 8, 8)
    assert choose(SPLIT_GROUPED, H200, {"clusters": 24, "cluster_size": 4}).config.splits == 3
    assert choose(SPLIT, H200, {"splits": 2, "cluster_size": 2, "ctas_per_sm": 1}).config.groups == 32
    with pytest.raises(NothingToSplit, match="2 clusters share a unit, but attention_block has no attend"):
        choose(LLAMA, H200, {"splits": 2})
    with pytest.raises(ConfigError, match="the config has splits=0, it must be a positive number"):
        choose(SPLIT, H200, {"splits": 0})


def test_sizes_that_there_are_not() -> None:
    """What the estimate has a default for is no mistake where nothing has that name; anything else is."""
    for sizes, says in (
        ({"tokenz": 5}, "argument 'sizes' must be numbers for positions or tokens, got one for 'tokenz'."),
        ({"tokens": -5}, "argument 'sizes' must be positive numbers by name, got tokens=-5."),
        ({"tokens": 1.5}, "argument 'sizes' must be positive numbers by name, got tokens=1.5."),
        ([5], "argument 'sizes' must be numbers by name, such as {\"tokens\": 4096}, got [5]."),
    ):
        with pytest.raises(ArgumentError) as caught:
            choose(LLAMA, H100_SXM, {}, sizes)  # type: ignore[arg-type]
        assert caught.value.message == says
    assert choose(rms_norm.trace("llama-2-7b"), H100_SXM, {}, {"tokens": 7}).sizes == (("tokens", 7),)
    with pytest.raises(Errors, match="^3 mistakes"):
        choose(LLAMA, H100_SXM, {"warps": 3}, {"tokens": 0, "a": 1})


def test_given_window() -> None:
    """0 is no limit but the slots; what is not given, the model chooses."""
    assert [choose(SPLIT, H200, {"window": window}).config.window for window in (0, 1, 5)] == [0, 1, 5]
    with pytest.raises(ConfigError, match="the config has window=-1, it must be a number of stages, 0 to 12"):
        choose(SPLIT, H200, {"window": -1})


def test_early_tiles_are_two_thirds_of_the_window() -> None:
    """What is needed behind a grid barrier; given, or 0 for no limit of its own."""
    assert [choose(SPLIT, H200, {"window": window}).config.early for window in (0, 1, 3, 6)] == [0, 1, 2, 4]
    assert [choose(SPLIT, H200, {"early": early}).config.early for early in (0, 1)] == [0, 1]
    with pytest.raises(ConfigError, match="the config has early=-1, it must be a number of stages, 0 to 12"):
        choose(SPLIT, H200, {"early": -1})


def test_splits_are_told_in_the_table() -> None:
    choice = choose(SPLIT_GROUPED, H200, {"clusters": 64, "splits": 8, "cluster_size": 2, "ctas_per_sm": 1})
    assert "8 x 8 x 2" in explain(choice).split("\n")[-1]


# ---- refusing


def test_not_resident() -> None:
    assert table()[32, 4, 1].refused == ("not resident: 32 clusters of 4 at 1 CTA/SM, h100-sxm holds 30; the grid barrier would deadlock",)
    assert table()[32, 4, 2].estimate


def test_without_a_grid_barrier_more_clusters_run_in_waves() -> None:
    rows = table(rms_norm.trace("llama-2-7b", 512))
    assert rows[512, 1, 1].estimate.waves == 4  # 132 at once


def test_unknown_residency_is_refused_only_where_it_matters() -> None:
    rows = table(part=B200)
    assert rows[32, 2, 2].refused == (
        "residency unknown: how many clusters of 2 at 2 CTAs/SM b200 holds; the grid barrier needs all: ask the device",
    )
    assert rows[32, 1, 2].estimate
    assert table(rms_norm.trace("llama-2-7b", 1), B200)[1, 4, 1].estimate


def test_cluster_limit() -> None:
    assert "rtx-pro-6000 has clusters of at most 8" in table(part=RTX_PRO_6000)[2, 16, 1].refused


def test_slices_that_bulk_copies_cannot_move() -> None:
    """smollm2: 576 columns over 16 ranks are 36 elements, 72 bytes; over 8 ranks 144 = 9 x 16."""
    split = attention_block.trace("smollm2-135m", qkv="split_k")
    rows = table(split)
    assert "a rank's slice of a row of wq is 72 bytes, not a multiple of 16" in rows[3, 16, 1].refused
    assert not any("bytes" in reason for reason in rows[3, 8, 1].refused)


def test_rows_that_no_stage_holds() -> None:
    with pytest.raises(NoLegalConfig, match="a row of wq is 8,192 bytes, a ring stage 384: up to 16 equal pieces do not fit"):
        choose(LLAMA, H100_SXM, {"stage_bytes": 384})


def test_vectors_that_no_thread_can_hold() -> None:
    """28 KB rows come in pieces; two CTAs on an SM have 96 registers a thread, too few for the vector that such rows meet."""
    graph = ffn_block.trace("llama-3.1-8b")
    assert choose(graph, H100_SXM).config.ctas_per_sm == 1
    with pytest.raises(NoLegalConfig, match="the vector that rows of w_down meet takes about 140 registers of a thread, of 96"):
        choose(graph, H100_SXM, {"ctas_per_sm": 2})


def test_placement_errors_become_reasons() -> None:
    graph = cf.fusion(odd_ranks).trace("llama-2-7b")
    assert table(graph)[2, 16, 1].refused == ("shard cannot shard dimension 1 of size 40 over 16 ranks",)


def odd_ranks(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    with cf.clusters(over=2):
        return cf.outputs(y=cf.shard(cf.input("x", (batch, 40)), 1))


def test_repeated_work_is_refused() -> None:
    with pytest.raises(NoLegalConfig, match="64 clusters for 32 slices of work: some would repeat others"):
        choose(LLAMA, H100_SXM, {"clusters": 64, "cluster_size": 1})


def test_all_reasons_of_a_config_are_kept() -> None:
    given = {"clusters": 32, "cluster_size": 4, "ctas_per_sm": 1, "stages": 12, "stage_bytes": 32768}
    (row,) = weighed(LLAMA, H100_SXM, given, {})
    assert [reason.split(":")[0] for reason in row.refused] == ["not resident", "shared memory"]


def test_given_stages_are_kept_or_refused() -> None:
    assert choose(LLAMA, H100_SXM, {"stages": 3}).config.stages == 3
    assert all(row.refused for key, row in table(stages=12).items() if key[2] == 2)


# ---- overrides


def test_fields_are_checked_together() -> None:
    with pytest.raises(Errors) as caught:
        choose(LLAMA, H100_SXM, {"cluster_size": 3, "stages": 1, "warps": 3, "pdl": 1, "cluster": 4, "clusters": True})
    assert [type(error) for error in caught.value.errors] == [ClusterSizeUnsupported, *[ConfigError] * 5]
    assert "use a cluster size of 1, 2, 4, 8 or 16." in str(caught.value)
    assert "the config has stages=1, it must be a number from 2 to 12." in str(caught.value)
    assert "the config has pdl=1, it must be true or false." in str(caught.value)


def test_unknown_field_lists_the_fields() -> None:
    with pytest.raises(ConfigError, match=r"the config has ranks=4, it must be one of the fields clusters, cluster_size, stages, "):
        choose(LLAMA, H100_SXM, {"ranks": 4})


def test_other_fields_pass_through() -> None:
    config = choose(LLAMA, H100_SXM, {"evict_first": False, "pdl": False, "warps": 4}).config
    assert (config.evict_first, config.pdl, config.warps) == (False, False, 4)


def test_without_pdl_a_launch_starts_later() -> None:
    fixed = {**PROTOTYPE, "cluster_size": 2}
    with_pdl, without = (choose(LLAMA, H100_SXM, {**fixed, "pdl": pdl}).chosen for pdl in (True, False))
    assert with_pdl.start_us is not None
    assert without.start_us is not None
    assert without.start_us > with_pdl.start_us + 0.4


# ---- shared memory


def test_injected_shared_memory_decides_stages() -> None:
    asked: list[Config] = []

    def exact(config: Config) -> int:
        asked.append(config)
        return 50_000 + 16 * config.stages

    choice = choose(LLAMA, H100_SXM, {"clusters": 32, "cluster_size": 2, "ctas_per_sm": 1}, smem_of=exact)
    assert choice.config.stages == 11  # (232448 - 50192) / 16384 = 11.1
    assert choice.chosen.smem_bytes == 11 * 16384 + 50_000 + 16 * 11
    assert asked[-1].with_(window=choice.config.window, early=choice.config.early) == choice.config


def test_reasons_of_the_shared_memory_callable_are_kept() -> None:
    def refuses(config: Config) -> int:
        raise ConfigError(name="warps", value=8, expected="7")

    with pytest.raises(NoLegalConfig, match="the config has warps=8, it must be 7"):
        choose(LLAMA, H100_SXM, smem_of=refuses)


def test_fixed_smem_by_hand() -> None:
    """32 clusters of 4, 6 stages, 8 warps: a quarter of a head's q, k, v is 3 x 32 rows, and attention has 8 warps x (128 + 2)."""
    terms = max(4 * 8 * 3 * 32, 4 * 8 * 130)  # an exchange parts the two, so that only the larger counts
    kept = 4 * 3 * 128 + 4 * 128 + (4 * 128 + 8 * 4)  # gathered q, k, v; o; slices of it and (max, sum) from 4 ranks
    barriers = 16 * (6 + 3)  # stages, and three collectives
    needed = terms + kept + barriers + 4 * 8
    assert needed == 6928
    assert fixed_smem(place(LLAMA, Mesh(32, 4)), Config(32, 4, 6)) == 7040  # 55 x 128


# ---- speed, determinism, text


def test_weighing_everything_is_fast_and_done_once() -> None:
    def seconds() -> float:
        cost._choose.cache_clear()
        start = time.process_time()
        choose(GROUPED, H100_SXM)
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.05
    assert choose(GROUPED, H100_SXM) is choose(GROUPED, H100_SXM)


def test_a_fully_given_config_skips_the_search() -> None:
    given = {"clusters": 8, "cluster_size": 8, "stages": 5, "ctas_per_sm": 2}
    cost._choose.cache_clear()
    assert len(choose(GROUPED, H100_SXM, given).rows) == 1


def test_choice_does_not_depend_on_the_order_of_overrides() -> None:
    a = choose(LLAMA, H100_SXM, {"cluster_size": 4, "warps": 8})
    assert choose(LLAMA, H100_SXM, {"warps": 8, "cluster_size": 4}) is a


def test_explain_is_an_aligned_table() -> None:
    choice = choose(LLAMA, H100_SXM, {"clusters": 32, "cluster_size": 4}, {"tokens": 4096})
    head, blank, titles, good, bad = explain(choice).split("\n")
    assert head == "h100-sxm: times in us at 3,150 GB/s, tokens 4096; the memory's time is 63.9"
    assert blank == ""
    assert titles.split()[:5] == ["clusters", "x", "ranks", "per", "cluster"]
    assert (good.index("chosen"), bad.index("not resident")) == (titles.index("verdict"),) * 2
    assert good.split()[:6] == ["32", "x", "4", "1", "2", "6"]


def test_explain_says_what_is_not_measured() -> None:
    assert "\nnote: rates are measured, latencies are the H100's\n" in explain(choose(LLAMA, H200))
