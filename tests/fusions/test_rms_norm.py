"""RMSNorm over a cluster: the oracle against PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from cfdsl.dsl.interpret import interpret
from fusions.rms_norm import rms_norm


def model(hidden: int) -> cf.ModelConfig:
    return cf.ModelConfig("tiny", hidden, 1, 1, 16)


@given(
    hidden=st.integers(1, 20).map(lambda n: 16 * n), batch=st.integers(1, 6), ranks=st.sampled_from((1, 2, 4, 8, 16)),
    per=st.integers(1, 3), dtype=st.sampled_from(("bf16", "f16")), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_oracle_equals_reference(hidden: int, batch: int, ranks: int, per: int, dtype: str, seed: int) -> None:
    clusters = batch // per if batch % per == 0 else batch * per
    tensors = rms_norm.example_inputs(model(hidden), batch, dtype, seed=seed)
    placed = cf.place(rms_norm.trace(model(hidden), batch=batch, dtype=dtype), cf.Mesh(clusters, ranks))
    for precision, tolerance in (("f64", 1e-12), ("f32", 1e-5)):
        got = interpret(placed, tensors, precision=precision, round_outputs=False).outputs["y"]
        want = rms_norm.reference(model(hidden), tensors, precision)["y"]
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_reference_normalises(scale: float) -> None:
    tensors = rms_norm.example_inputs(model(64), 2)
    tensors["x"] = (tensors["x"].float() * scale).bfloat16()
    x = tensors["x"].double()
    want = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * tensors["weight"].double()
    torch.testing.assert_close(rms_norm.reference(model(64), tensors)["y"], want)
