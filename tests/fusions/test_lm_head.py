"""The vocabulary projection and its argmax: the oracle of the spec against its plain PyTorch reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from fusions.lm_head import lm_head

OUTS = ("token", "logits", "both")


def tiny(hidden: int = 32, vocab: int = 101) -> cf.ModelConfig:
    return cf.ModelConfig("tiny", hidden, 4, 2, 16, vocab=vocab)


@given(
    hidden=st.integers(1, 6), vocab=st.integers(1, 150), clusters=st.integers(1, 9), ranks=st.sampled_from((1, 2, 4, 8, 16)),
    batch=st.integers(1, 3), out=st.sampled_from(OUTS), dtype=st.sampled_from(("bf16", "f16")), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_oracle_equals_reference(hidden: int, vocab: int, clusters: int, ranks: int, batch: int, out: str, dtype: str, seed: int) -> None:
    """Rows need not divide by the CTAs: some then have one more, or none."""
    model = tiny(16 * hidden, vocab)
    tensors = lm_head.example_inputs(model, batch, dtype, seed=seed, out=out)
    placed = cf.place(lm_head.trace(model, batch, dtype, out=out), cf.Mesh(clusters, ranks))
    got = cf.interpret(placed, tensors, precision="f64", round_outputs=False).outputs
    want = lm_head.reference(model, tensors, out=out)
    assert set(got) == set(want)
    if "token" in want:
        assert torch.equal(got["token"], want["token"])
    if "logits" in want:
        torch.testing.assert_close(got["logits"], want["logits"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mesh", [cf.Mesh(1, 1), cf.Mesh(6, 2), cf.Mesh(33, 4)], ids=str)
@pytest.mark.parametrize("copies", [[0, 100], [99, 100], [50, 51, 52], [7]])
def test_of_equal_logits_the_lowest_index(mesh: cf.Mesh, copies: list[int]) -> None:
    tensors = lm_head.example_inputs(tiny(), out="token")
    best = int(lm_head.reference(tiny(), tensors)["token"])
    row = tensors["w_head"][best].clone()
    tensors["w_head"][best] = 0
    tensors["w_head"][copies] = row
    got = cf.interpret(cf.place(lm_head.trace(tiny()), mesh), tensors).outputs["token"]
    assert got.tolist() == [min(copies)] == lm_head.reference(tiny(), tensors)["token"].tolist()


@pytest.mark.parametrize("out", OUTS)
def test_examples_are_poisoned_and_outputs_have_their_dtypes(out: str) -> None:
    tensors = lm_head.example_inputs(tiny(), 2, out=out)
    got: dict[str, Any] = cf.interpret(lm_head.trace(tiny(), 2, out=out), tensors, cf.Mesh(3, 2)).outputs
    kinds = {"token": torch.int32, "logits": torch.float32}
    assert {name: value.dtype for name, value in got.items()} == {name: kinds[name] for name in got}
    assert all((tensors[name].shape, tensors[name].dtype) == (value.shape, value.dtype) for name, value in got.items())
    if "token" in tensors:
        assert tensors["token"].tolist() == [-1, -1]
    if "logits" in tensors:
        assert tensors["logits"].isnan().all()


def test_a_model_without_a_vocabulary() -> None:
    with pytest.raises(cf.TraceError) as caught:
        lm_head.trace(tiny(vocab=0))
    assert str(caught.value) == "the model tiny has no vocabulary size.\n  remedy: give its ModelConfig `vocab`."
