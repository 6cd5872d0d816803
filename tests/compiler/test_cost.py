"""The cost model's choice: which shapes are weighed and which is taken, with fields given and without."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import pytest
from costs import GROUPED, LLAMA, SPLIT, SPLIT_GROUPED, table

from cfdsl import PRESETS
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import choice as cost
from cfdsl.compiler.cost import choose, explain
from cfdsl.compiler.parts import H100_SXM, H200
from cfdsl.errors import ConfigError, NothingToSplit
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm


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


def test_estimates_are_near_by_share_and_by_time() -> None:
    """Within 3 % and half a microsecond, both: a short kernel's estimates are not told apart by less than the model knows."""
    assert [cost.near(us, 10.0) for us in (10.0, 10.29, 10.31)] == [True, True, False]
    assert [cost.near(us, 100.0) for us in (100.49, 100.51)] == [True, False]


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
    limited = [row for row in choose(LLAMA, H100_SXM).rows if row.estimate and row.config.stages < 12]
    assert len(limited) > 20
    for row in limited:
        budget = H100_SXM.smem_budget(row.config.ctas_per_sm)
        assert row.smem_bytes <= budget < row.smem_bytes + row.config.stage_bytes + 256  # a stage more does not fit


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


def test_given_splits() -> None:
    config = choose(SPLIT_GROUPED, H200, {"clusters": 64, "splits": 8, "cluster_size": 2}).config
    assert (config.clusters, config.splits, config.groups) == (64, 8, 8)
    assert choose(SPLIT_GROUPED, H200, {"clusters": 24, "cluster_size": 4}).config.splits == 3
    assert choose(SPLIT, H200, {"splits": 2, "cluster_size": 2, "ctas_per_sm": 1}).config.groups == 32
    with pytest.raises(NothingToSplit, match="2 clusters share a unit, but attention_block has no attend"):
        choose(LLAMA, H200, {"splits": 2})
    with pytest.raises(ConfigError, match="the config has splits=0, it must be a positive number"):
        choose(SPLIT, H200, {"splits": 0})


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


def test_given_stages_are_kept_or_refused() -> None:
    assert choose(LLAMA, H100_SXM, {"stages": 3}).config.stages == 3
    doubled = [row for key, row in table(stages=12).items() if key[2] == 2]
    assert doubled
    assert all(row.refused for row in doubled)


def test_other_fields_pass_through() -> None:
    config = choose(LLAMA, H100_SXM, {"evict_first": False, "pdl": False, "warps": 4}).config
    assert (config.evict_first, config.pdl, config.warps) == (False, False, 4)


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
