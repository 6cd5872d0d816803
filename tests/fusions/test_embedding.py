"""The embedding: the oracle of its spec against its plain PyTorch reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from fusions.embedding import embedding

MODEL = cf.ModelConfig("tiny", 32, 4, 2, 16, vocab=20)


@given(
    tokens=st.lists(st.integers(-3, 25), min_size=1, max_size=4), ranks=st.sampled_from((1, 2, 8)), dtype=st.sampled_from(("bf16", "f16")),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_oracle_equals_reference(tokens: list[int], ranks: int, dtype: str, seed: int) -> None:
    batch = len(tokens)
    tensors = embedding.example_inputs(MODEL, batch, dtype, seed=seed, token=tokens)
    placed = cf.place(embedding.trace(MODEL, batch, dtype), cf.Mesh(batch, ranks))
    got = cf.interpret(placed, tensors).outputs["y"]
    assert got.dtype == tensors["table"].dtype
    assert torch.equal(got, embedding.reference(MODEL, tensors)["y"].to(got.dtype)), "a row is copied, bit by bit"


def test_examples_are_in_range_and_poisoned() -> None:
    tensors = embedding.example_inputs(MODEL, 50)
    assert tensors["token"].dtype == torch.int32
    assert 0 <= int(tensors["token"].min()) < int(tensors["token"].max()) < 20
    assert tensors["y"].isnan().all()


def test_a_model_without_a_vocabulary() -> None:
    with pytest.raises(cf.TraceError) as caught:
        embedding.trace(MODEL.with_(vocab=0))
    assert str(caught.value) == "the model tiny has no vocabulary size.\n  remedy: give its ModelConfig `vocab`."
