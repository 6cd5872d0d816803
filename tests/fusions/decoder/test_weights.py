"""Weights by their Hugging Face names: which are needed, and every mistake in one error."""

from __future__ import annotations

import pytest
import torch
from plain_model import random_weights

import cfdsl as cf
from cfdsl.errors import NoTarget, WeightsMismatch
from fusions.decoder import Decoder, weight_shapes

TINY = cf.ModelConfig("tiny", 128, 4, 2, 64, layers=1, intermediate=192, vocab=320)


def test_names_and_shapes_of_a_preset() -> None:
    shapes = weight_shapes(cf.PRESETS["llama-3.2-1b"])
    assert len(shapes) == 2 + 9 * 16
    assert "lm_head.weight" not in shapes
    assert shapes["model.layers.15.self_attn.k_proj.weight"] == (512, 2048)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (2048, 8192)
    sizes = [torch.Size(shape).numel() for shape in weight_shapes(cf.PRESETS["llama-2-7b"]).values()]
    assert sum(sizes) == 6_738_415_616  # as Hugging Face counts the parameters of Llama-2-7b


def test_biases_and_head_are_there_when_the_config_says_so() -> None:
    assert {name.split(".", 3)[3] for name in set(weight_shapes(TINY.with_(qkv_bias=True))) - set(weight_shapes(TINY))} == {
        "self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias",
    }  # fmt: skip
    assert set(weight_shapes(TINY)) - set(weight_shapes(TINY.with_(tied_embeddings=True))) == {"lm_head.weight"}


def test_all_that_is_wrong_is_said_at_once() -> None:
    weights = random_weights(TINY, "f16")
    del weights["model.norm.weight"], weights["lm_head.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"] = weights["model.layers.0.self_attn.q_proj.weight"][1:]
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].float()
    weights["model.layers.0.mlp.down_proj.weight"] = weights["model.layers.0.mlp.down_proj.weight"].T.contiguous().T
    weights["model.layers.0.self_attn.o_proj.weight"] = weights["model.layers.0.self_attn.o_proj.weight"].to("meta")
    weights["something.else"] = torch.zeros(1)
    with pytest.raises(WeightsMismatch) as caught:
        Decoder(TINY, weights, capacity=8, dtype="f16", backend="oracle")
    assert caught.value.message == (
        "these are not the weights of tiny:\n"
        "  - model.layers.0.self_attn.q_proj.weight: its shape is (255, 128), it must be (256, 128)\n"
        "  - model.layers.0.self_attn.o_proj.weight: it is on meta, it must be on a cpu device\n"
        "  - model.layers.0.mlp.up_proj.weight: its dtype is float32, it must be float16\n"
        "  - model.layers.0.mlp.down_proj.weight: it is not contiguous: its strides are (1, 128)\n"
        "  - model.norm.weight: missing, of shape (128,)\n"
        "  - lm_head.weight: missing, of shape (320, 128)"
    )


def test_kernels_need_a_gpu_and_weights_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is said once, and not for every weight."""
    weights = random_weights(TINY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoTarget) as none:
        Decoder(TINY, weights, capacity=8)
    assert str(none.value) == (
        "this needs a GPU of compute capability 9.0, found no GPU.\n"
        "  remedy: run it on such a machine; backend='oracle' runs the same graphs on the CPU, slowly; part='h100-sxm' only compiles."
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(WeightsMismatch) as caught:
        Decoder(TINY, weights, capacity=8, dtype="f16")
    assert list(caught.value.problems) == [
        "all of them: their dtype is bfloat16, it must be float16",
        "all of them: they are on cpu, they must be on a cuda device",
    ]
