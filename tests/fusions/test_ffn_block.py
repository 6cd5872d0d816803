"""The feed-forward block: the oracle of its spec against its plain PyTorch reference, over models and meshes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.stages import lower
from cfdsl.errors import NotLowered
from fusions.ffn_block import ffn_block


def tiny(hidden: int = 32, intermediate: int = 48, activation: str = "silu") -> cf.ModelConfig:
    return cf.ModelConfig("tiny", hidden, 4, 2, 16, intermediate=intermediate, activation=activation)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@given(
    hidden=st.integers(1, 6), intermediate=st.integers(1, 70), clusters=st.integers(1, 9), ranks=st.sampled_from((1, 2, 4, 8, 16)),
    batch=st.integers(1, 3), activation=st.sampled_from(("silu", "gelu", "gelu_pytorch_tanh")), dtype=st.sampled_from(("bf16", "f16")),
    precision=st.sampled_from(("f64", "f32")), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_oracle_equals_reference(
    hidden: int, intermediate: int, clusters: int, ranks: int, batch: int, activation: str, dtype: str, precision: str, seed: int
) -> None:
    """Rows need not divide by the CTAs: some then have one more, or none."""
    model = tiny(16 * hidden, intermediate, activation)
    tensors = ffn_block.example_inputs(model, batch, dtype, seed=seed)
    placed = cf.place(ffn_block.trace(model, batch, dtype), cf.Mesh(clusters, ranks))
    got = cf.interpret(placed, tensors, precision=precision, round_outputs=False).outputs["y"]
    assert relative(got, ffn_block.reference(model, tensors, precision)["y"]) < (1e-12 if precision == "f64" else 1e-4)


def test_the_activation_is_the_model_s() -> None:
    silu, exact, tanh = (
        ffn_block.reference(tiny(activation=name), ffn_block.example_inputs(tiny()))["y"] for name in ("silu", "gelu", "gelu_pytorch_tanh")
    )
    assert relative(silu, exact) > 1e-2
    assert 1e-6 < relative(tanh, exact) < 1e-2


def test_the_block_matters_in_the_examples() -> None:
    """Were the block left out, or its gate, the error must be far above what a 16-bit result is allowed."""
    model = tiny(64, 256)
    tensors = ffn_block.example_inputs(model)
    want = ffn_block.reference(model, tensors)["y"]
    assert relative(tensors["x"], want) > 0.3
    assert relative(ffn_block.reference(model, {**tensors, "w_gate": tensors["w_up"]})["y"], want) > 0.3
    assert tensors["y"].isnan().all()


def test_the_exact_gelu_is_refused_by_the_compiler() -> None:
    lower(ffn_block, tiny(64, 128, "gelu_pytorch_tanh"), 1, "bf16", H100_SXM)
    with pytest.raises(NotLowered, match="only its tanh approximation is lowered"):
        lower(ffn_block, tiny(64, 128, "gelu"), 1, "bf16", H100_SXM)


def test_a_model_without_a_feed_forward_size() -> None:
    with pytest.raises(cf.TraceError) as caught:
        ffn_block.trace(tiny(intermediate=0))
    assert str(caught.value) == "the model tiny has no feed-forward size.\n  remedy: give its ModelConfig `intermediate`."
