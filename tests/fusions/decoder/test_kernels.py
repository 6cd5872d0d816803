"""The decoder's kernels, compiled without a GPU: they take what a step binds to them."""

from __future__ import annotations

import pytest
import torch
from plain_model import random_weights

import cfdsl as cf
from cfdsl.errors import ArgumentError
from fusions.decoder import Decoder
from fusions.decoder.step import kernels

TINY = cf.ModelConfig("tiny", 128, 4, 2, 64, layers=2, intermediate=192, vocab=320, tied_embeddings=True, max_positions=64)
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "i32": torch.int32}


@pytest.mark.compile
@pytest.mark.parametrize("layers", ["whole", "blocks"])
def test_every_argument_of_every_launch_is_what_its_kernel_takes(layers: str) -> None:
    """Dtype, shape, and an address as aligned as the kernel wants it (which torch's own allocations on a GPU are, and more)."""
    weights = random_weights(TINY)
    decoder = Decoder(TINY, weights, capacity=40, part="h100-sxm", layers=layers)
    oracle = Decoder(TINY, weights, capacity=40, backend="oracle", layers=layers)
    assert [name for name, _ in decoder.kernels] == [name for name, _ in oracle.kernels]
    base = decoder.state.counters.data_ptr()
    for launch, twin in zip(decoder.launches, oracle.launches, strict=True):
        assert isinstance(launch.kernel, cf.Kernel)
        assert launch.kernel.config.pdl
        assert launch.kernel.args == twin.kernel.args
        sizes = {"tokens": 40, "positions": 40}
        for arg, tensor in zip(launch.kernel.args, launch.args, strict=True):
            assert tensor.dtype == DTYPES[arg.dtype], arg
            assert tuple(tensor.shape) == tuple(sizes.get(dim, dim) for dim in arg.shape), arg
            assert tensor.is_contiguous()
            if tensor.untyped_storage().data_ptr() == base:
                assert (tensor.data_ptr() - base) % arg.align == 0, arg
    assert decoder.kernel_bytes(7) == oracle.kernel_bytes(7)
    assert decoder.status() == ()
    for call in (decoder.capture, lambda: decoder.generate([1], 2)):
        with pytest.raises(ArgumentError, match=r"argument 'weights' must be on a GPU for (capture|generate)\(\), got those on cpu"):
            call()


@pytest.mark.parametrize("layers", ["whole", "blocks"])
def test_the_dataflow_of_attention_suits_the_model_and_settings_go_before(layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows over a cluster for a small model, over the grid for a large one; where they are fixed, nothing is weighed."""
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(cf, "compile", lambda fusion, *args, **how: asked.append({"fusion": fusion.name, **how}))
    name = {"whole": "decoder_layer", "blocks": "attention_block"}[layers]

    def chosen(model: str, **settings: object) -> object:
        asked.clear()
        kernels(cf.PRESETS[model], "bf16", "kernel", "h100-sxm", 1024, layers, {name: settings})
        return next(how["qkv"] for how in asked if how["fusion"] == name)

    assert chosen("smollm2-135m") == "rows"
    assert chosen("llama-2-7b") == "grid"
    assert chosen("smollm2-135m", qkv="grid") == "grid"
    assert chosen("llama-2-7b", qkv="split_k") == "split_k"
