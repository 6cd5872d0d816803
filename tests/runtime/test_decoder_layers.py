"""The fusions of a decoder besides attention compile for every preset, and no register is spilled."""

from __future__ import annotations

from typing import Any

import pytest

import cfdsl as cf
from fusions.decoder_layer import decoder_layer
from fusions.embedding import embedding
from fusions.ffn_block import ffn_block
from fusions.lm_head import lm_head

pytestmark = pytest.mark.compile

PIECES = {"llama-2-7b": 2, "llama-3.1-8b": 2, "mistral-7b-v0.3": 2}  # rows of w_down that take two stages of 16 KB


def compiled(fusion: cf.Fusion, model: str | cf.ModelConfig, dtype: str = "bf16", part: str = "h100-sxm", **options: Any) -> cf.Kernel:
    kernel = cf.compile(fusion, model, dtype=dtype, part=part, **options)
    assert kernel.spills == 0
    assert kernel.stack == 0
    return kernel


@pytest.mark.parametrize("model", cf.PRESETS)
def test_ffn_block(model: str) -> None:
    kernel = compiled(ffn_block, model)
    (down,) = (line for line in kernel.source.splitlines() if line.startswith("W_DOWN"))
    assert (f"pieces={PIECES[model]}" in down) if model in PIECES else ("pieces" not in down)
    assert kernel.config.ctas == 132, "every SM of the part has a share"


WIDE = {
    "Qwen2.5-7B": cf.ModelConfig("qwen2.5-7b", 3584, 28, 4, 128, intermediate=18944, qkv_bias=True),
    "Llama 70B": cf.ModelConfig("llama-70b", 8192, 64, 8, 128, intermediate=28672),
}


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("fusion", [ffn_block, decoder_layer], ids=lambda fusion: fusion.name)
def test_feed_forward_vectors_that_are_multiplied_in_turns(fusion: cf.Fusion, name: str) -> None:
    kernel = compiled(fusion, WIDE[name])
    assert [step.params["turn"] for step in kernel.plan.steps if step.op == "gemv"][-2:] == [0, 1]


@pytest.mark.parametrize("model", ["llama-3.1-8b", "smollm2-135m"])
def test_ffn_block_in_f16_for_an_h200(model: str) -> None:
    compiled(ffn_block, model, "f16", "h200")


@pytest.mark.parametrize("out", ["token", "logits", "both"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "smollm2-135m"])
def test_lm_head(model: str, out: str) -> None:
    compiled(lm_head, model, out=out)


@pytest.mark.parametrize("model", cf.PRESETS)
def test_decoder_layer(model: str) -> None:
    kernel = compiled(decoder_layer, model)
    assert kernel.plan.needs_residency
    assert sum(step.op == "grid_barrier" for step in kernel.plan.steps) == 4


@pytest.mark.parametrize("batch", [1, 3])
def test_embedding(batch: int) -> None:
    kernel = compiled(embedding, "llama-3.2-1b", batch=batch)
    assert (kernel.config.clusters, kernel.config.cluster_size, kernel.plan.ring) == (batch, 1, None)
