"""What is chosen can be lowered: candidates know the lowering's limits, and the best one is tried before it counts."""

from __future__ import annotations

from typing import Any

import pytest

import cfdsl as cf
from cfdsl.compiler import settle as settling
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import Choice, choose, weighed
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.settle import planned, settle
from cfdsl.compiler.stages import lower
from cfdsl.dsl.graph import Graph
from cfdsl.errors import ConfigError, NoLegalConfig, NotLowered, PlanError
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm

SMOL = cf.PRESETS["smollm2-135m"]


def rows_gathered(rows: int = 640) -> cf.Fusion:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 576))
        with cf.clusters(over=4) as axis:
            y = cf.linear(x, cf.weight("w", (rows, 576))[axis], cf.weight("b", (rows,))[axis], shard="out")
            y = cf.cluster_gather(y)
        return cf.outputs(y=y)

    return spec


def summed(rows: int) -> cf.Fusion:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 576))
        with cf.clusters(over=1):
            y = cf.cluster_reduce(cf.linear(x, cf.weight("w", (rows, 576)), shard="in"))
        return cf.outputs(y=y)

    return spec


def refused(graph: Graph, **overrides: Any) -> dict[tuple[int, int], tuple[str, ...]]:
    """What is said of each shape."""
    return {(row.config.clusters, row.config.cluster_size): row.refused for row in weighed(graph, H100_SXM, overrides, {})}


# ---- slices


def test_gathered_slices_are_whole_pushes() -> None:
    """160 rows of a cluster over 16 ranks are 10, 40 bytes; over 8 they are 20."""
    said = refused(rows_gathered().trace(SMOL))
    assert "a rank's slice in cluster_gather is 40 bytes, not a multiple of 16" in said[4, 16]
    assert not any("cluster_gather" in reason for reason in said[4, 8])
    for size in (1, 2, 4, 8):
        assert lower(rows_gathered(), SMOL, 1, "bf16", H100_SXM, {"cluster_size": size}).config.cluster_size == size


def test_summed_terms_are_whole_pushes() -> None:
    said = refused(summed(66).trace(SMOL))
    assert "a rank's slice in cluster_reduce is 264 bytes, not a multiple of 16" in said[1, 4]
    assert not any("cluster_reduce" in reason for reason in refused(summed(64).trace(SMOL))[1, 4])


def test_slices_of_a_normalised_row_are_whole_chunks() -> None:
    """smollm2: 576 over 16 ranks are 36 elements."""
    with pytest.raises(NoLegalConfig, match="a rank's slice of the row in mean_square is 36 elements, not a multiple of 8"):
        settle(rms_norm.trace(SMOL), H100_SXM, {"cluster_size": 16})
    assert settle(rms_norm.trace(SMOL), H100_SXM, {"cluster_size": 8}).config.cluster_size == 8


# ---- the ring


@pytest.mark.parametrize("model", sorted(cf.PRESETS))
@pytest.mark.parametrize("warps", [4, 8, 16])
def test_stages_are_as_large_as_the_warps_want_them(model: str, warps: int) -> None:
    """16 warps at a step each: 16 x 2 x 32 x 8 elements of keys, and of values."""
    lowered = lower(attention_block, cf.PRESETS[model], 1, "bf16", H100_SXM, {"warps": warps})
    assert lowered.config.stage_bytes == (32768 if warps == 16 else 16384)


def test_a_stage_that_no_tokens_fit_is_refused_at_once() -> None:
    said = refused(attention_block.trace("llama-2-7b"), stage_bytes=1024)
    assert len(said) > 20
    assert all("a step of tokens for 8 warps is 16,384 bytes, a ring stage 1,024" in reasons for reasons in said.values())


def test_tiles_in_flight_are_some_of_the_stages() -> None:
    graph = attention_block.trace("llama-2-7b")
    for given, says in (
        ({"window": 99}, "window=99, it must be a number of stages, 0 to 12"),
        ({"window": 8, "stages": 4}, "window=8, it must be at most 4, the number of stages"),
        ({"window": 2, "early": 3}, "early=3, it must be at most 2, the number of tiles in flight"),
        ({"early": 3, "stages": 2}, "early=3, it must be at most 2, the number of tiles in flight"),
    ):
        with pytest.raises(ConfigError, match=says):
            choose(graph, H100_SXM, given)
    assert choose(graph, H100_SXM, {"window": 4, "stages": 4, "early": 4}).config.window == 4


# ---- settling


def test_where_buffers_leave_less_room_there_are_fewer_stages() -> None:
    """14 stages of 16 KiB, their barriers and all buffers are 6,400 bytes too many: 13 fit. Who asks for 14 is told so instead."""
    placed = cf.place(attention_block.trace("llama-2-7b", qkv="rows"), cf.Mesh(32, 2))
    config = Config(32, 2, 14, ctas_per_sm=1)
    found, asked = (planned(placed, H100_SXM, config, given) for given in (False, True))
    assert (found.config.stages, asked.config.stages) == (13, 14)
    assert found.smem_bytes <= H100_SXM.smem_budget(1) < asked.smem_bytes
    assert planned(placed, H100_SXM, config.with_(stages=12), False).config.stages == 12  # more than was chosen is not taken


def test_what_the_cost_model_does_not_know_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best candidates are refused by the lowering: the best of the others is chosen, with tiles in flight of its own."""
    graph, real = attention_block.trace("llama-2-7b"), settling.schedule

    def schedule(placed: cf.PlacedGraph, config: Any, model: str = "") -> Any:
        if config.cluster_size < 8:
            raise NotLowered(op="attend", why="it is Tuesday")
        return real(placed, config, model)

    monkeypatch.setattr(settling, "schedule", schedule)
    before, after = choose(graph, H100_SXM), settle(graph, H100_SXM)
    assert (before.config.cluster_size, after.config.cluster_size) == (2, 8)
    assert after.chosen.time_us == min(row.time_us for row in before.rows if row.time_us and row.config.cluster_size == 8)
    assert sum(row.chosen for row in after.rows) == 1
    assert len(after.rows) == len(before.rows)
    tried = [row for row in after.rows if row.refused == ("attend cannot be compiled: it is Tuesday",)]
    assert tried
    assert all(row.time_us is None for row in tried)
    assert after.config.window == settling.tiles_in_flight(H100_SXM, after.config)


def test_where_nothing_can_be_lowered_the_one_reason_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = rms_norm.trace("llama-2-7b")

    def refuse(placed: cf.PlacedGraph, config: Any, model: str = "") -> Any:
        raise NotLowered(op="rms_norm", why="it is Tuesday" if alike or config.cluster_size > 1 else "it is late", src=graph.nodes[-1].src)

    monkeypatch.setattr(settling, "schedule", refuse)
    alike = True
    with pytest.raises(NotLowered, match="rms_norm cannot be compiled: it is Tuesday"):
        settle(graph, H100_SXM)
    alike = False
    with pytest.raises(NoLegalConfig, match="it is Tuesday") as caught:
        settle(graph, H100_SXM, {"pdl": False})
    assert "with pdl=False" in caught.value.message
    assert "it is late (1x1)" in caught.value.message


def test_a_wrong_plan_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(plan: Any, part: Any) -> None:
        raise PlanError(what="bytes are lost", sum="1 + 1 = 3")

    monkeypatch.setattr(settling, "check", wrong)
    with pytest.raises(PlanError):
        settle(rms_norm.trace("llama-2-7b"), H100_SXM)


@pytest.mark.parametrize("model", sorted(cf.PRESETS))
@pytest.mark.parametrize("out", ["gather", "atomic"])
def test_split_k_of_every_cluster_size(model: str, out: str) -> None:
    """Large sums go in two rounds, so that boxes hold a vector and not one from every rank. smollm2: 576 / 16 columns are 72 bytes."""
    for size in (1, 2, 4, 8) if model == "smollm2-135m" else (1, 2, 4, 8, 16):
        choice: Choice = settle(attention_block.trace(model, qkv="split_k", out=out), H100_SXM, {"cluster_size": size})
        assert choice.config.cluster_size == size


def test_four_clusters_of_sixteen() -> None:
    """llama-2-7b, 8 heads to a cluster: terms of 3,072 f32 from 16 ranks would be 196,608 bytes; two rounds take 12,288 each."""
    lowered = lower(attention_block, cf.PRESETS["llama-2-7b"], 1, "bf16", H100_SXM, {"clusters": 4, "cluster_size": 16}, {"qkv": "split_k"})
    assert {b.name: b.tx_bytes for b in lowered.plan.barriers if b.kind == "exchange"}["mb_scatter"] == 12288
