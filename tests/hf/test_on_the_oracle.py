"""A patched model and `generate` with the real decoder, run by the oracle: the graphs that the kernels are made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from runner import run
from tiny import assert_same, generated, tiny

from cfdsl.hf import patch, unpatch
from cfdsl.models import PRESETS


@pytest.mark.parametrize(
    ("kind", "dtype", "changed"),
    [("Llama", torch.float16, {"tie_word_embeddings": True}), ("Mistral", torch.bfloat16, {"num_hidden_layers": 1, "sliding_window": 256})],
)
def test_generate_gives_the_same_tokens(kind: str, dtype: torch.dtype, changed: dict[str, Any]) -> None:
    model = tiny(kind, dtype, **changed)
    theirs = generated(model, 6)
    exact = generated(model.float(), 6)
    model.to(dtype)
    addresses = {weight.data_ptr() for weight in model.parameters()}
    patch(model, backend="oracle")
    cache = transformers.StaticCache(config=model.config, max_cache_len=24)
    ours = generated(model, 6, past_key_values=cache, cache_implementation=None)
    assert_same(ours, theirs)
    assert_same(ours, exact)
    session = model._cfdsl.sessions[cache]
    for launch in session.decoder.launches:
        given = [tensor.data_ptr() for arg, tensor in zip(launch.kernel.args, launch.args, strict=True) if arg.role == "weight"]
        assert given
        assert set(given) <= addresses  # the model's own weights, not copies
    assert session.decoder.status() == ()
    unpatch(model)
    assert generated(model, 6)[0] == theirs[0]


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfdsl.cli.gpu.gpu_present", lambda: False)
    monkeypatch.setitem(PRESETS, "smollm2-135m", PRESETS["smollm2-135m"].with_(layers=1, vocab=300, intermediate=128))
    done = run("generate", "--model", "smollm2-135m", "--prompt", "Hi", "-n", "3", "--backend", "oracle")
    assert done.code == 0, done.err
    assert len(done.out.split()) == 3
    sampled = run(
        "generate", "--model", "smollm2-135m", "--prompt", "Hi", "-n", "3", "--temperature", "2", "--top-p", "0.9", "--backend", "oracle"
    )
    assert sampled.code == 0, sampled.err
    assert len(sampled.out.split()) == 3
