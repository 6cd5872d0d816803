"""On a GPU: a patched model against an unpatched one, what the captured graph keeps, and that the commands run."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runner import run
from tiny import PROMPT, assert_same, generated, tiny

from cfdsl.errors import DecodeRefused
from cfdsl.hf import patch, peer, unpatch
from cfdsl.hf.decode_bench import benchmark_decode
from cfdsl.hf.weights import folder_weights
from cfdsl.models import PRESETS, ModelConfig

pytestmark = pytest.mark.gpu

NEW = 48


def tiny_on_gpu(kind: str = "Llama", dtype: torch.dtype = torch.bfloat16, **changed: Any) -> Any:
    return tiny(kind, dtype, "cuda", **{"vocab_size": 512, **changed})


def prefilled(model: Any, capacity: int = 128) -> Any:
    """A StaticCache with PROMPT in it, by Hugging Face."""
    cache = peer.static_cache(model, capacity)
    cache.reset()
    ids = torch.tensor(PROMPT, device="cuda")
    at = torch.arange(ids.shape[1], device="cuda")
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, position_ids=at[None], **peer._position(model, at))
    return cache


def decode(model: Any, cache: Any, token: int, position: int) -> torch.Tensor:
    at = torch.tensor([position], device="cuda")
    with torch.no_grad():
        ids = torch.tensor([[token]], device="cuda")
        return model(input_ids=ids, past_key_values=cache, position_ids=at[None], **peer._position(model, at)).logits


@pytest.mark.parametrize(
    ("kind", "dtype", "changed"),
    [
        ("Llama", torch.bfloat16, {}),
        ("Llama", torch.float16, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("Mistral", torch.bfloat16, {"sliding_window": 256}),
        ("Qwen2", torch.bfloat16, {"num_hidden_layers": 1}),  # of two, the best logits come near each other too soon
    ],
    ids=["llama", "tied f16", "mistral", "qwen2"],
)
def test_generate_gives_the_same_tokens(kind: str, dtype: torch.dtype, changed: dict[str, Any]) -> None:
    model = tiny_on_gpu(kind, dtype, **changed)
    theirs = generated(model, NEW, disable_compile=True)
    patch(model)
    ours, again = generated(model, NEW), generated(model, NEW)
    assert_same(ours, theirs, noise=5e-2)
    assert again[0] == ours[0]
    assert all(x.equal(y) for x, y in zip(ours[1], again[1], strict=True))
    assert not hasattr(model, "_compiled_call")  # generate() had nothing compiled
    unpatch(model)
    assert generated(model, NEW, disable_compile=True)[0] == theirs[0]


def test_two_caches_take_turns_and_keep_their_graphs() -> None:
    model = tiny_on_gpu()
    alone = prefilled(model)
    want = [decode(model, alone, token, 8 + step) for step, token in enumerate((5, 6, 7))]
    patch(model)
    one, two = prefilled(model), prefilled(model)
    found = []
    for step, token in enumerate((5, 6, 7)):
        found.append(decode(model, one, token, 8 + step))
        decode(model, two, 9 + token, 8 + step)
    sessions = [model._cfdsl.sessions[cache] for cache in (one, two)]
    assert [int(session.decoder.length) for session in sessions] == [11, 11]
    assert sessions[0].decoder.caches[0][0].data_ptr() != sessions[1].decoder.caches[0][0].data_ptr()
    for ours, theirs in zip(found, want, strict=True):
        assert (ours - theirs).float().norm() < 3e-2 * theirs.float().norm()
    weights = {weight.data_ptr() for weight in model.parameters()}
    for launch in sessions[0].decoder.launches:
        used = [tensor.data_ptr() for arg, tensor in zip(launch.kernel.args, launch.args, strict=True) if arg.role == "weight"]
        assert used
        assert set(used) <= weights
    assert all(session.decoder.status() == () for session in sessions)
    del sessions, one, two
    gc.collect()
    assert len(model._cfdsl.sessions) == 0


def test_an_odd_position_is_refused_by_the_next_call() -> None:
    model = tiny_on_gpu()
    patch(model)
    cache = prefilled(model)
    decode(model, cache, 5, 8)
    ids = torch.tensor([[6]], device="cuda")
    odd = torch.tensor([[3]], device="cuda")
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, position_ids=odd, **peer._position(model, torch.tensor([9], device="cuda")))
    torch.cuda.synchronize()
    with pytest.raises(DecodeRefused, match="or one just before it"):
        decode(model, cache, 7, 10)
    decode(model, prefilled(model), 5, 8)  # another sequence is not held up


def test_padding_is_refused_by_the_first_call() -> None:
    model = tiny_on_gpu()
    patch(model)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]], device="cuda")
    with pytest.raises(DecodeRefused, match="padding in attention_mask"):
        model.generate(torch.tensor(PROMPT, device="cuda"), attention_mask=mask, max_new_tokens=4, cache_implementation="static")


@pytest.mark.parametrize("layers", [{"decoder_layer": 2}, {"attention_block": 2, "ffn_block": 2}])
def test_bench_decode_runs_beside_hugging_face(layers: dict[str, int]) -> None:
    small = PRESETS["smollm2-135m"].with_(layers=2, name="small")
    record = benchmark_decode(small, [256], steps=8, layers="whole" if "decoder_layer" in layers else "blocks")
    [row] = record["rows"]
    assert row["advanced"] == 8
    assert row["flags"] == []
    assert {kernel["name"]: kernel["launches"] for kernel in row["kernels"]} == {"embedding": 1, **layers, "lm_head": 1}
    assert row["peers"], record["peers_left_out"]
    [found] = row["peers"]
    assert found["logits_error"] < 3e-2
    assert found["us"] > 0


def test_a_folder_is_read_onto_the_gpu(tmp_path: Path) -> None:
    model = tiny_on_gpu()
    model.save_pretrained(tmp_path)
    found, converted = folder_weights(tmp_path, ModelConfig.from_hf(tmp_path), "bf16", "cuda")
    assert converted == ()
    state = model.state_dict()
    assert set(found) == set(state)
    assert all(found[name].equal(state[name]) and found[name].data_ptr() % 16 == 0 for name in state)


def test_the_commands_run() -> None:
    done = run("bench", "decode", "--model", "smollm2-135m", "--context", "128,512", "--steps", "8", "--no-peers", "--json", "-")
    assert done.code == 0, done.err
    assert [row["context"] for row in done.json["rows"]] == [128, 512]
    assert all(0.1 < row["of_ceiling"] < 3 for row in done.json["rows"])
    done = run("generate", "--model", "smollm2-135m", "--prompt", "Hello", "-n", "12")
    assert done.code == 0, done.err
    assert len(done.out.split()) == 12
    assert "tokens/s" in done.err


def test_a_step_on_a_timeline(tmp_path: Path) -> None:
    """Every launch of a step is there, in order: each kernel's consumers begin when the ones before have ended."""
    layers = PRESETS["smollm2-135m"].layers
    for command in (("bench", "decode", "--context", "128", "--steps", "8", "--no-peers"), ("generate", "--prompt", "Hello", "-n", "8")):
        path = tmp_path / f"{command[0]}.json"
        done = run(*command, "--model", "smollm2-135m", "--trace", str(path))
        assert done.code == 0, done.err
        assert f"{layers + 2} launches" in done.err
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
        assert len(events) > 100 * layers
        assert min(event["ts"] for event in events) >= 0
