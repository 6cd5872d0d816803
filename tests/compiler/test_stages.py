"""The pipeline from a fusion to source: its stages in order, their texts, and who wins when the user fixes something."""

from __future__ import annotations

import re
from typing import Any

import pytest

import cfdsl as cf
from cfdsl.compiler.check import CHECKS
from cfdsl.compiler.cost import explain
from cfdsl.compiler.emit import emit
from cfdsl.compiler.parts import H100_SXM, H200
from cfdsl.compiler.plan_text import plan_text
from cfdsl.compiler.stages import STAGES, Lowered, lower
from cfdsl.errors import CfdslError, ConfigError, Errors, GroupUnsupported, NoLegalConfig
from fusions.attention_block import attention_block
from fusions.rms_norm import rms_norm

LLAMA = cf.PRESETS["llama-2-7b"]


def block(**given: Any) -> Lowered:
    return lower(attention_block, given.pop("model", LLAMA), 1, given.pop("dtype", "bf16"), given.pop("part", H100_SXM), **given)


def test_stages_in_order() -> None:
    assert [stage.name for stage in STAGES] == ["traced", "config", "placed", "plan", "check", "source"]
    assert list(block().stages) == [stage.name for stage in STAGES]


def test_texts_are_those_of_what_was_made() -> None:
    made = block()
    assert made.stages["plan"] == plan_text(made.plan)
    assert made.stages["source"] == made.source == emit(made.plan)
    assert "%" in made.stages["traced"]
    assert "[S(1), " in made.stages["placed"]
    assert "[S(1), " not in made.stages["traced"]
    head, *_, chosen = explain(made.choice).splitlines()[:4]
    assert made.stages["config"].startswith(f"{head}\n")
    assert re.sub(" +", " ", chosen) in re.sub(" +", " ", made.stages["config"])
    assert f"\nsplits         {made.config.splits}\n" in made.stages["config"]


def test_what_was_proved_is_told_check_by_check() -> None:
    made = block()
    head, blank, *lines, gap, room = made.stages["check"].splitlines()
    assert (blank, gap) == ("", "")
    steps, ctas = len(made.plan.steps), made.plan.mesh.ctas
    assert head.startswith(f"proved of attention_block on h100-sxm by {len(CHECKS) + 1} checks, of ")
    assert head.endswith(f" {steps} steps, {ctas} CTAs")
    assert [line.split()[0] for line in lines] == [*(rule.__name__ for rule in CHECKS), "fits"]
    assert lines[0].split(maxsplit=1)[1].startswith("Every tile fits a stage")
    assert room.startswith(f"shared memory: {made.plan.smem_bytes:,} of 232,448 B with 1 CTA/SM; clusters: {made.plan.mesh.clusters} of ")


def test_the_same_every_time() -> None:
    assert dict(block().stages) == dict(block().stages)


def test_the_chosen_config_is_the_plans() -> None:
    made = block()
    chosen = made.choice.config
    assert made.config.with_(stages=0) == chosen.with_(stages=0)
    assert made.config.stages <= chosen.stages
    assert made.plan.mesh == made.placed.mesh
    assert (made.plan.mesh.clusters, made.plan.mesh.ranks) == (chosen.clusters, chosen.cluster_size)
    assert made.plan.smem_bytes <= H100_SXM.smem_budget(made.config.ctas_per_sm)


@pytest.mark.parametrize("cluster_size", [1, 2, 4, 8])
def test_the_user_fixes_the_cluster_size(cluster_size: int) -> None:
    made = block(overrides={"cluster_size": cluster_size})
    assert made.config.cluster_size == cluster_size
    assert f"RANKS, CTAS, WARPS, THREADS = {cluster_size}, " in made.source


def test_the_users_stages_stay_as_they_are() -> None:
    assert block(overrides={"stages": 3}).config.stages == 3


def test_options_are_the_dataflows() -> None:
    made = block(options={"qkv": "split_k", "out": "atomic"})
    assert "grid.add(" in made.source
    assert "cluster_reduce.push(" in made.source
    assert block().source != made.source


def test_sizes_that_no_config_cures_are_told_together_and_no_config_is_blamed() -> None:
    odd = cf.ModelConfig("odd", 100, 17, 1, 96)
    with pytest.raises(Errors) as caught:
        block(model=odd, overrides={"cluster_size": 3})
    assert [error.message for error in caught.value.errors] == [
        "rows of 100 elements, as those of wq, wk and wv, are not supported.",
        "head_dim 96 is not supported.",
        "17 query heads per key/value head are not supported.",
        "a cluster of 3 CTAs is not supported.",
    ]
    with pytest.raises(Errors, match="^3 mistakes"):
        block(model=odd)
    with pytest.raises(GroupUnsupported):  # also where the clusters share them
        block(model=cf.ModelConfig("wide", 576, 17, 1, 64))


def test_dtype_reaches_the_kernel() -> None:
    assert "BFloat16, WQ" in block().source
    half = block(dtype="f16")
    assert "Float16, WQ" in half.source
    assert "BFloat16, WQ" not in half.source
    assert {arg.dtype for arg in half.plan.args} == {"f16", "f32", "i32"}


@pytest.mark.parametrize("model", sorted(cf.PRESETS))
@pytest.mark.parametrize("part", [H100_SXM, H200], ids=lambda part: part.name)
def test_every_model_on_every_part(model: str, part: Any) -> None:
    made = block(model=cf.PRESETS[model], part=part)
    assert made.plan.smem_bytes <= part.smem_budget(made.config.ctas_per_sm)
    resident = part.resident(made.config.cluster_size, made.config.ctas_per_sm)
    assert made.plan.mesh.clusters <= resident
    assert len(made.source.splitlines()) <= 215


def test_a_fusion_without_a_stream() -> None:
    made = lower(rms_norm, LLAMA, 1, "bf16", H100_SXM)
    assert made.plan.ring is None
    assert "RING" not in made.source
    assert "producer" not in made.source


@pytest.mark.parametrize(
    ("overrides", "error", "text"),
    [
        ({"warps": 3}, ConfigError, "the config has warps=3, it must be a power of two up to 16."),
        ({"stage_bytes": 1000}, ConfigError, "the config has stage_bytes=1000, it must be a positive multiple of 128."),
        ({"stage_bytes": 384}, NoLegalConfig, "a row of wq is 8,192 bytes, a ring stage 384"),
        ({"clusters": 5}, CfdslError, "5 clusters"),
    ],
)
def test_overrides_that_no_kernel_can_have(overrides: dict[str, int], error: type[CfdslError], text: str) -> None:
    with pytest.raises(error) as caught:
        block(overrides=overrides)
    assert text in str(caught.value)


def test_every_error_of_the_compiler_names_the_users_line() -> None:
    @cf.fusion
    def doubled(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 2, m.hidden))
        return cf.outputs(y=cf.concat([x, x], dim=2))

    with pytest.raises(CfdslError) as caught:
        lower(doubled, LLAMA, 1, "bf16", H100_SXM, {"clusters": 1, "cluster_size": 1})
    assert "cf.concat([x, x], dim=2)" in str(caught.value)
