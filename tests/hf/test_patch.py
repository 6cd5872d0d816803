"""patch and unpatch on the CPU: with a plain PyTorch decoder in the place of fusions.decoder.Decoder."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import prefilled, static
from plain_decoder import PlainDecoder
from tiny import PROMPT, assert_same, generated, tiny

import cfdsl as cf
from cfdsl.errors import PatchedCopy
from cfdsl.hf import patch, unpatch

pytestmark = pytest.mark.usefixtures("plain")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_generate_gives_the_same_tokens(kind: str, tied: bool, dtype: torch.dtype) -> None:
    model = tiny(kind, dtype, tie_word_embeddings=tied, **({"sliding_window": 256} if kind == "Mistral" else {}))
    theirs = generated(model)
    patch(model, backend="oracle")
    ours = generated(model)
    assert_same(ours, theirs)
    [decoder] = PlainDecoder.made
    assert decoder.steps == len(theirs[0]) - 1  # the first token is the prefill's, which is Hugging Face's
    assert ours[1][0].equal(theirs[1][0])
    assert not any(x.equal(y) for x, y in zip(ours[1][1:], theirs[1][1:], strict=True))  # the others were ours, rounded differently


def test_unpatch_restores_exactly() -> None:
    model = tiny()
    before, forward = dict(model.__dict__), model.forward
    theirs = generated(model)
    state = {name: (weight, weight.data_ptr()) for name, weight in model.state_dict().items()}
    extra = set(model.__dict__) - set(before)  # generate() itself leaves something
    patch(model, backend="oracle")
    assert model.__dict__["forward"] != forward
    assert {name: (weight, weight.data_ptr()) for name, weight in model.state_dict().items()}.keys() == state.keys()
    generated(model)
    unpatch(model)
    assert set(model.__dict__) - extra == set(before)
    assert model.forward == forward
    again = generated(model)
    assert again[0] == theirs[0]
    assert all(x.equal(y) for x, y in zip(again[1], theirs[1], strict=True))
    assert [weight.data_ptr() for weight in model.state_dict().values()] == [address for _, address in state.values()]


def test_what_the_model_had_of_its_own_comes_back() -> None:
    model = tiny()
    mine = model._valid_auto_compile_criteria = lambda *args, **kwargs: False
    patch(model, backend="oracle")
    assert model.__dict__["_valid_auto_compile_criteria"] is not mine
    unpatch(model)
    assert model.__dict__["_valid_auto_compile_criteria"] is mine


def test_weights_and_caches_are_used_where_they_are() -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    with torch.no_grad():
        model(torch.tensor([[5]]), past_key_values=cache)
    [decoder] = PlainDecoder.made
    assert {name: weight.data_ptr() for name, weight in decoder.weights.items()} == {
        name: weight.data_ptr() for name, weight in model.named_parameters()
    }
    assert [k.data_ptr() for k, _ in decoder.caches] == [layer.keys.data_ptr() for layer in cache.layers]
    assert [v.data_ptr() for _, v in decoder.caches] == [layer.values.data_ptr() for layer in cache.layers]
    assert all(isinstance(weight, torch.nn.Parameter) for weight in model.parameters())


def test_tied_weights_are_given_once() -> None:
    model = tiny(tie_word_embeddings=True)
    patch(model, backend="oracle")
    cache = prefilled(model)
    model(torch.tensor([[5]]), past_key_values=cache)
    assert PlainDecoder.made[0].model.tied_embeddings
    assert "lm_head.weight" not in PlainDecoder.made[0].weights


def test_a_step_by_hand_and_what_it_leaves_in_the_cache() -> None:
    model = tiny()
    want_cache = prefilled(model)
    with torch.no_grad():
        want = model(torch.tensor([[5]]), past_key_values=want_cache)
    patch(model, backend="oracle")
    cache = prefilled(model)
    got = model(torch.tensor([[5]]), past_key_values=cache)
    assert (got.logits.shape, got.logits.dtype) == (want.logits.shape, want.logits.dtype) == ((1, 1, 96), torch.bfloat16)
    assert (got.logits - want.logits).float().norm() < 2e-2 * want.logits.float().norm()
    assert got.past_key_values is cache
    assert int(cache.get_seq_length()) == int(want_cache.get_seq_length()) == 9
    for ours, theirs in zip(cache.layers, want_cache.layers, strict=True):
        assert int(getattr(ours, "cumulative_length", 9)) == 9  # since transformers 5
        assert (ours.keys - theirs.keys).float().norm() < 2e-2 * theirs.keys.float().norm()
        assert (ours.values - theirs.values).float().norm() < 2e-2 * theirs.values.float().norm()
    kept = got.logits.clone()
    both = model(torch.tensor([[6]]), None, None, cache, return_dict=False)  # by position, as a tuple
    assert both[0].shape == (1, 1, 96)
    assert both[1] is cache
    assert got.logits.equal(kept)  # a later step does not write into an earlier one's result
    assert not both[0].equal(kept)


@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_a_cache_goes_back_and_forth(kind: str) -> None:
    """Decode by cfdsl, by Hugging Face, more prompt, by cfdsl: each goes on where the other stopped."""
    model = tiny(kind, **({"sliding_window": 128} if kind == "Mistral" else {}))
    calls = [[[5]], [[6]], [[7, 8, 9]], [[10]]]

    def logits(ours: set[int]) -> list[torch.Tensor]:
        cache, found = prefilled(model), []
        for step, ids in enumerate(calls):
            if step in ours:
                patch(model, backend="oracle")
            at = 8 + sum(len(before[0]) for before in calls[:step])
            position = {"cache_position": torch.arange(at, at + len(ids[0]))} if not hasattr(cache.layers[0], "cumulative_length") else {}
            with torch.no_grad():
                found.append(model(torch.tensor(ids), past_key_values=cache, **position).logits[0, -1].float())
            if step in ours:
                unpatch(model)
        return found

    for ours, theirs in zip(logits({0, 2, 3}), logits(set()), strict=True):
        assert (ours - theirs).norm() < 2e-2 * theirs.norm()
    assert [decoder.steps for decoder in PlainDecoder.made] == [1, 1]


def test_everything_else_stays_hugging_face(plain: type[PlainDecoder]) -> None:
    model = tiny()
    ids = torch.tensor(PROMPT)
    with torch.no_grad():
        want = model(ids).logits, model(ids[:, :1]).logits, model(inputs_embeds=model.model.embed_tokens(ids)).logits
        patch(model, backend="oracle")
        got = model(ids).logits, model(ids[:, :1]).logits, model(inputs_embeds=model.model.embed_tokens(ids)).logits
        cache = static(model)
        model(ids[:, :1], past_key_values=cache)  # the first token of a sequence: a prefill of one
        model(ids[:, 1:], past_key_values=cache)  # more prompt
    assert all(x.equal(y) for x, y in zip(got, want, strict=True))
    assert plain.made == []


def test_a_session_begun_in_inference_mode_goes_on_without() -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    with torch.inference_mode():
        model(torch.tensor([[5]]), past_key_values=cache)
    model(torch.tensor([[5]]), past_key_values=cache)
    assert PlainDecoder.made[0].steps == 2


def test_a_session_per_cache_that_goes_with_it() -> None:
    model = tiny()
    patch(model, backend="oracle")
    sessions = model._cfdsl.sessions
    one, two = prefilled(model), prefilled(model)
    for cache in (one, two, one, two):
        model(torch.tensor([[5]]), past_key_values=cache)
    assert len(PlainDecoder.made) == len(sessions) == 2
    PlainDecoder.made.clear()
    del one, cache
    gc.collect()
    assert len(sessions) == 1
    two.reset()
    prefilled(model, two)
    model(torch.tensor([[5]]), past_key_values=two)
    assert PlainDecoder.made == []  # the same tensors: the same session
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.clone()
    model(torch.tensor([[5]]), past_key_values=two)
    assert len(PlainDecoder.made) == 1  # the weights moved


WAYS = {"copy": copy.deepcopy, "pickle": pickle.dumps, "save": lambda model: torch.save(model, io.BytesIO())}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_patched_model_is_not_copied(way: Callable[[Any], object], tmp_path: Path) -> None:
    model = tiny()
    patch(model, backend="oracle")
    with pytest.raises(PatchedCopy, match="the LlamaForCausalLM is patched and cannot be copied or pickled"):
        way(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    unpatch(model)
    way(model)


def test_the_face() -> None:
    assert cf.hf.patch is patch
    assert set(cf.hf.__all__) == {"patch", "status", "unpatch"}
