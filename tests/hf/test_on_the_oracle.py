"""A patched model and `generate` with the real decoder, run by the oracle: the graphs that the kernels are made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from calls import decoded, prefilled
from runner import run
from tiny import assert_same, generated, tiny

from cfdsl.errors import NotPatched
from cfdsl.hf import patch, status, unpatch
from cfdsl.hf.weights import random_weights
from cfdsl.models import PRESETS
from cfdsl.runtime import decode_benchmark, measure
from cfdsl.runtime.flags import STATUS
from fusions.decoder import Decoder


@pytest.mark.parametrize(
    ("kind", "dtype", "changed"),
    [
        ("Llama", torch.float16, {"tie_word_embeddings": True}),
        ("Mistral", torch.bfloat16, {"num_hidden_layers": 1, "sliding_window": 256}),
        ("Qwen2", torch.bfloat16, {"num_hidden_layers": 1, "sliding_window": 8}),  # which it does not use
    ],
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


def test_what_the_kernels_flagged_can_be_read() -> None:
    model = tiny(num_hidden_layers=1)
    with pytest.raises(NotPatched):
        status(model)
    patch(model, backend="oracle")
    assert status(model) == ()
    cache = prefilled(model)
    decoded(model, cache, 96)  # of 0 to 95
    flagged = (f"embedding: {STATUS[3]}",)
    assert status(model) == status(model, clear=True) == flagged
    assert status(model) == ()


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


def test_the_kernels_of_a_step_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The breakdown is of the real decoder's launches: their names, bytes, and copies of their tensors."""
    calls: list[Any] = []
    monkeypatch.setattr(measure, "time_graph", lambda given: calls.append(given) or measure.Timing(2.0, 1.0, 3.0, len(given), 1))
    monkeypatch.setattr(measure, "l2_bytes", lambda: 4 << 20)
    sizes = PRESETS["smollm2-135m"].with_(layers=3, vocab=300, intermediate=128)
    decoder = Decoder(sizes, random_weights(sizes), capacity=64, backend="oracle")
    rows = decode_benchmark.measure_kernels(decoder, 40, 1000.0)
    assert [(row["name"], row["launches"]) for row in rows] == [("embedding", 1), ("decoder_layer", 3), ("lm_head", 1)]
    assert sum(row["bytes"] * row["launches"] for row in rows) == decoder.kernel_bytes(40)
    assert [row["cold"] for row in rows] == [False, True, True]  # one row of the embedding evicts nothing
    assert decode_benchmark.totals(rows) == 2.0 * 5
    layer, copy = calls[1][0], calls[1][3]
    assert (copy.name, copy.layer, copy.kernel) == (layer.name, 0, layer.kernel)
    for arg, one, other in zip(layer.kernel.args, layer.args, copy.args, strict=True):
        assert (one.data_ptr() != other.data_ptr()) == (arg.role in ("weight", "cache")), arg.name
        assert one.shape == other.shape
