"""Kernels keep what they hold in registers: the shipped ones as the cost model configures them, and products of every length."""

from __future__ import annotations

from typing import Any

import pytest

import cfdsl as cf
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.stages import lower
from fusions.attention_block import attention_block
from fusions.decoder_layer import decoder_layer
from fusions.ffn_block import ffn_block
from fusions.lm_head import lm_head

MODELS = sorted(set(cf.PRESETS) - {"mistral-7b-v0.3"})  # whose sizes are llama-3.1-8b's
CASES: list[tuple[cf.Fusion, dict[str, Any]]] = [
    (attention_block, {}), *((attention_block, {"qkv": qkv, "out": out}) for qkv in ("rows", "split_k") for out in ("gather", "atomic")),
    (ffn_block, {}), (lm_head, {}), (decoder_layer, {}),
]  # fmt: skip


@pytest.mark.compile
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("fusion", "options"), CASES, ids=lambda value: value.name if isinstance(value, cf.Fusion) else str(value))
def test_shipped_kernels_do_not_spill(fusion: cf.Fusion, options: dict[str, Any], model: str) -> None:
    assert cf.compile(fusion, model, part="h100-sxm", **options).spills == 0


def product(cols: int) -> cf.Fusion:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.linear(cf.input("x", (batch, cols)), cf.weight("w", (67584, cols)), shard="out"))

    return spec


@pytest.mark.compile
@pytest.mark.parametrize("ctas_per_sm", [1, 2])
@pytest.mark.parametrize(("cols", "rows"), [(24, (64, 32)), (104, (64, 32)), (192, (32, 32)), (448, (16, 16)), (4096, (2, 2))])
def test_products_of_rows_of_any_length_do_not_spill(cols: int, rows: tuple[int, int], ctas_per_sm: int) -> None:
    """Of short rows fewer come in a tile than fit a stage: a warp holds its rows of two tiles. `rows`: of a tile, by CTAs on an SM."""
    kernel = cf.compile(product(cols), "smollm2-135m", part="h100-sxm", cluster_size=1, ctas_per_sm=ctas_per_sm)
    tiles = next(step.params["tiles"] for step in kernel.plan.steps if step.op == "gemv")
    assert (tiles.rows, kernel.spills) == (rows[ctas_per_sm - 1], 0)


def test_a_granule_is_a_stage_of_short_rows_too() -> None:
    """Rows are dealt in granules of a stage, 256 of 24 columns, and each is four tiles."""
    plan = lower(product(24), cf.PRESETS["smollm2-135m"], 1, "bf16", H100_SXM, {"cluster_size": 1}).plan
    (share,) = plan.shares
    assert (share.granule, plan.streams[0].rows, plan.streams[0].tiles) == (256, 64, 4 * share.most // 256)
