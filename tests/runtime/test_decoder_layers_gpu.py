"""The fusions of a decoder besides attention, on a GPU: right against float64, repeatable, and their outputs wholly written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from against import LIMIT, error

import cfdsl as cf
from fusions.ffn_block import ffn_block

pytestmark = pytest.mark.gpu

SMALL, LARGE = "smollm2-135m", "llama-2-7b"


def example(fusion: cf.Fusion, model: str | cf.ModelConfig, dtype: str = "bf16", **how: Any) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = fusion.example_inputs(cf.models.resolve(model), 1, dtype, device="cuda", **how)
    return made


def right_and_repeatable(fusion: cf.Fusion, model: str | cf.ModelConfig, dtype: str, runs: int = 10, **fields: Any) -> None:
    """Outputs start as NaN; every run writes all of them, and the same bits."""
    kernel = cf.compile(fusion, model, dtype=dtype, **fields)
    tensors = example(fusion, model, dtype)
    want = fusion.reference(cf.models.resolve(model), tensors, "f64")
    outputs = [arg.name for arg in kernel.args if arg.role == "output"]
    poison = {name: tensors[name].clone() for name in outputs}
    first: dict[str, torch.Tensor] = {}
    for _ in range(runs):
        for name in outputs:
            tensors[name].copy_(poison[name])
        kernel(**tensors)
        torch.cuda.synchronize()
        for name in outputs:
            first.setdefault(name, tensors[name].clone())
            assert torch.equal(tensors[name], first[name]), name
    for name in outputs:
        assert error(first[name], want[name]) <= LIMIT[dtype], name
    assert kernel.status() == ()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("model", [SMALL, LARGE, "llama-3.1-8b"])
def test_ffn_block(model: str, dtype: str) -> None:
    right_and_repeatable(ffn_block, model, dtype)


SCHEDULES = ({"stage_bytes": 4096}, {"stage_bytes": 32768}, {"cluster_size": 2}, {"cluster_size": 8}, {"warps": 16})


@pytest.mark.parametrize("fields", SCHEDULES, ids=str)
def test_ffn_block_under_other_schedules(fields: dict[str, int]) -> None:
    """Rows in eight pieces, in none, dealt to ranks of clusters, and shared by sixteen warps."""
    right_and_repeatable(ffn_block, LARGE, "bf16", 2, **fields)


def test_ffn_block_with_gelu() -> None:
    right_and_repeatable(ffn_block, cf.PRESETS[SMALL].with_(activation="gelu_pytorch_tanh"), "bf16", 2)
