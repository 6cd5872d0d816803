from __future__ import annotations

import handmade

from cfdsl.cli.picture.load_stream import runs, stream_of, tiles_of
from cfdsl.compiler.parts import part_named
from cfdsl.compiler.stages import lower
from cfdsl.models import resolve
from fusions import find


def test_the_load_stream_adds_up() -> None:
    plan = handmade.plan(2)
    found = runs(plan, 4096)
    assert [run.stream.name for run in found] == ["wq", "wk", "wv", "kv", "wo"]
    assert [run.tiles for run in found] == [32, 32, 32, 64, 32]  # 4096 tokens over 2 ranks, 32 to a tile
    assert found[0].begin == 0
    assert all(a.end == b.begin for a, b in zip(found, found[1:], strict=False))
    assert found[-1].end == (4 * 32 + 64) * 16384


def test_tiles_of_a_cache_are_rounded_up_on_every_rank() -> None:
    kv = handmade.plan(2).streams[3]
    assert [tiles_of(kv, 2, tokens) for tokens in (0, 1, 64, 65, 129)] == [0, 1, 1, 2, 3]


def test_steps_name_their_stream() -> None:
    plan = handmade.plan(2)
    eaten = [stream_of(step, plan) for step in plan.steps]
    assert [index for index in eaten if index is not None] == [0, 1, 2, 3, 4]
    assert eaten[0] is None


def test_clusters_that_split_tokens_share_the_tiles() -> None:
    shape = {"clusters": 64, "cluster_size": 2, "splits": 2}
    plan = lower(find("attention_block"), resolve("llama-2-7b"), 1, "bf16", part_named("h200"), shape).plan
    kv = next(run for run in runs(plan, 4096) if run.stream.tiles is None)
    assert kv.tiles == 4096 // 32 // (2 * 2)  # 32 tokens to a tile, 2 splits of 2 ranks
