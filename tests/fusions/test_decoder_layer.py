"""A whole layer as one kernel: its spec is the two blocks', its oracle equals the reference, and no part of it can be left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from fusions.attention_block import attention_block
from fusions.decoder_layer import NORM, decoder_layer
from fusions.ffn_block import ffn_block


def tiny(kv_heads: int = 2, group: int = 2, hidden: int = 32, intermediate: int = 48, bias: bool = False) -> cf.ModelConfig:
    return cf.ModelConfig("tiny", hidden, kv_heads * group, kv_heads, 16, intermediate=intermediate, qkv_bias=bias)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@given(
    kv_heads=st.integers(1, 3), group=st.integers(1, 4), hidden=st.integers(1, 4), intermediate=st.integers(1, 60),
    splits=st.integers(1, 3), ranks=st.sampled_from((1, 2, 4, 8, 16)), length=st.integers(0, 40), bias=st.booleans(),
    qkv=st.sampled_from(("grid", "rows")), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_oracle_equals_reference(
    kv_heads: int, group: int, hidden: int, intermediate: int, splits: int, ranks: int, length: int, bias: bool, qkv: str, seed: int
) -> None:
    model = tiny(kv_heads, group, 16 * hidden, intermediate, bias)
    tensors = decoder_layer.example_inputs(model, 1, "bf16", length, seed=seed)
    splits = splits if qkv == "grid" else 1
    placed = cf.place(decoder_layer.trace(model, 1, "bf16", qkv=qkv), cf.Mesh(kv_heads * splits, ranks, splits))
    got = cf.interpret(placed, tensors, precision="f64", round_outputs=False).outputs["y"]
    assert relative(got, decoder_layer.reference(model, tensors)["y"]) < 1e-12


def test_it_computes_what_the_two_blocks_do_without_rounding_in_between() -> None:
    model = tiny()
    tensors = decoder_layer.example_inputs(model)
    first = attention_block.reference(model, tensors, residual=False)
    second = ffn_block.reference(model, {**tensors, "norm": tensors[NORM], "x": first["y"]})
    whole = decoder_layer.reference(model, tensors)
    assert relative(whole["y"], second["y"]) < 1e-14
    assert torch.equal(whole["cache_k"], first["cache_k"])


@pytest.mark.parametrize("name", ["x", "norm", NORM, "wo", "w_gate", "w_up", "w_down"])
def test_every_weight_matters_in_the_examples(name: str) -> None:
    model = tiny(hidden=64, intermediate=256)
    tensors = decoder_layer.example_inputs(model)
    want = decoder_layer.reference(model, tensors)["y"]
    changed = {**tensors, name: tensors[name].flip(-1)}
    assert relative(decoder_layer.reference(model, changed)["y"], want) > 0.02
    assert tensors["y"].isnan().all()


def test_a_model_without_a_feed_forward_size() -> None:
    with pytest.raises(cf.TraceError, match="the model tiny has no feed-forward size"):
        decoder_layer.trace(tiny(intermediate=0))


def test_the_peer_computes_the_same() -> None:
    model = tiny(hidden=64, intermediate=96)
    tensors = decoder_layer.example_inputs(model, length=9, capacity=16)
    want = decoder_layer.reference(model, tensors)["y"]
    peer = decoder_layer.peers[0]
    forward, given_ = peer.make(model, tensors, 9)
    assert relative(forward(*given_), want) < 2e-2
