"""patch and unpatch on the CPU: with a plain PyTorch decoder in the place of fusions.decoder.Decoder."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import pytest
import torch
import transformers
from plain_decoder import PlainDecoder
from tiny import PROMPT, assert_same, generated, tiny

import cfdsl as cf
from cfdsl.errors import DecodeRefused, Errors, ModelUnsupported, NotPatched, PatchRefused
from cfdsl.hf import patch, unpatch

pytestmark = pytest.mark.usefixtures("plain")


def static(model: Any, tokens: int = 64) -> Any:
    wanted = {"max_batch_size": 1, "device": model.device, "dtype": model.dtype}  # which versions before 4.56 ask for
    known = inspect.signature(transformers.StaticCache.__init__).parameters
    how = {name: value for name, value in wanted.items() if name in known}
    return transformers.StaticCache(config=model.config, max_cache_len=tokens, **how)


def prefilled(model: Any, cache: Any = None) -> Any:
    """A cache with PROMPT in it, by Hugging Face."""
    cache = static(model) if cache is None else cache
    with torch.no_grad():
        model(torch.tensor(PROMPT), past_key_values=cache)
    return cache


def refused(model: Any, ids: Any = None, **call: Any) -> str:
    with torch.no_grad(), pytest.raises((DecodeRefused, Errors)) as caught:
        model(input_ids=torch.tensor([[5]]) if ids is None else ids, **call)
    return str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
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


# ---- refusals ------------------------------------------------------------------------------------------------------------------------


def patch_refused(model: Any, **how: Any) -> str:
    with pytest.raises((PatchRefused, ModelUnsupported, Errors)) as caught:
        patch(model, **how)
    assert "_cfdsl" not in model.__dict__
    return str(caught.value)


def test_all_that_is_wrong_with_a_model_is_said_at_once() -> None:
    model = tiny("Llama", torch.float32, mlp_bias=True, head_dim=32)
    text = patch_refused(model, backend="cuda")
    assert text.startswith("4 mistakes:")
    for part in (
        "argument 'backend' must be 'kernel' or 'oracle', got 'cuda'",
        "- mlp_bias: its feed-forward projections have biases",
        "- head_dim is 32; the kernels have 64 and 128",
        "its weights are float32; the kernels take bfloat16 and float16",
        "its weights are on cpu, and kernels run on a GPU",
    ):
        assert part in text


def test_models_that_are_refused() -> None:
    assert "its class is not one of LlamaForCausalLM, MistralForCausalLM" in patch_refused(torch.nn.Linear(2, 2))
    model = tiny()
    assert "call model.to('cuda'); backend='oracle' runs the same graphs on the CPU" in patch_refused(model)
    assert "its weights are bfloat16, and dtype='f16' was asked for" in patch_refused(model, backend="oracle", dtype="f16")
    compiled: Any = torch.compile(model)
    assert "patch the model inside of it (model._orig_mod)" in patch_refused(compiled, backend="oracle")
    model.forward = model.forward
    assert "its forward was replaced" in patch_refused(model, backend="oracle")
    del model.forward
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    assert "model.layers.1.mlp.up_proj (Identity) is no plain nn.Linear" in patch_refused(model, backend="oracle")
    mixed = tiny()
    mixed.lm_head.float()
    assert "its weights have several dtypes: bfloat16, float32" in patch_refused(mixed, backend="oracle")
    mixed.lm_head.to("meta", torch.bfloat16)
    assert "its weights are on several devices (cpu, meta)" in patch_refused(mixed, backend="oracle")


def test_patching_twice_and_unpatching_twice() -> None:
    model = tiny()
    patch(model, backend="oracle")
    with pytest.raises(PatchRefused, match="it is patched already"):
        patch(model, backend="oracle")
    unpatch(model)
    with pytest.raises(NotPatched):
        unpatch(model)


def test_all_that_is_wrong_with_a_call_is_said_at_once() -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(torch.tensor(PROMPT * 2), past_key_values=cache)
    model.train()
    unwanted = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
    text = refused(model, torch.tensor([[5], [6]]), past_key_values=cache, **unwanted)
    assert text.startswith("6 mistakes:")
    for part in (
        "it has a batch of 2 sequences",
        "output_attentions: attention weights stay inside the kernels",
        "output_hidden_states: hidden states stay inside the kernels",
        "it has a cache and use_cache=False",
        "the model is in training mode",
        "its cache is a DynamicCache without the tensors of a StaticCache (transformers 4.51 to 5.x)",
        "use a StaticCache, or model.generate(..., cache_implementation='static')",
    ):
        assert part in text
    assert PlainDecoder.made == []


def test_tuples_of_early_versions_are_refused() -> None:
    model = tiny()
    patch(model, backend="oracle")
    pair = (torch.zeros(1, 2, 3, 64), torch.zeros(1, 2, 3, 64))
    assert "its cache is a tuple" in refused(model, past_key_values=(pair, pair))


def test_generate_without_a_static_cache_is_refused() -> None:
    model = tiny()
    patch(model, backend="oracle")
    with pytest.raises(DecodeRefused, match="DynamicCache"):
        generated(model, cache_implementation=None)


def test_caches_that_do_not_fit() -> None:
    model, other = tiny(), tiny(num_hidden_layers=1, num_key_value_heads=4)
    patch(model, backend="oracle")
    text = refused(model, past_key_values=prefilled(other))
    assert "its cache has 1 layers and the model 2" in text
    assert "its cache has tensors of shape (1, 4, 64, 64) where (1, 2, 64, 64) is needed" in text
    assert "its cache is torch.float16" in refused(model, past_key_values=prefilled(tiny(dtype=torch.float16)))


def test_a_window_shorter_than_the_cache() -> None:
    model = tiny("Mistral", sliding_window=32)
    patch(model, backend="oracle")
    cache = prefilled(model, static(model, 24))
    for _ in range(2):
        model(torch.tensor([[5]]), past_key_values=cache)
    assert int(cache.get_seq_length()) == 10
    text = refused(model, past_key_values=prefilled(model, static(model, 64)))
    assert "attends to the last 32 tokens only, and its cache is for at least 32" in text


@pytest.mark.parametrize(
    "call",
    [
        {"attention_mask": torch.tensor([[0] + [1] * 8])},
        {"attention_mask": (torch.arange(64) > 0)[None, None, None] & (torch.arange(64) <= 8)},
        {"attention_mask": torch.where(torch.arange(64) <= 7, 0.0, -1e9)[None, None, None]},
        {"position_ids": torch.tensor([[7]])},
    ],
)
def test_padding_and_odd_positions(call: dict[str, Any]) -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    text = refused(model, past_key_values=cache, **call)
    assert "attends to other tokens than all that are cached and its own" in text
    assert int(cache.get_seq_length()) == 8
    fine = {"attention_mask": (torch.arange(64) <= 8)[None, None, None], "position_ids": torch.tensor([[8]])}
    model(torch.tensor([[5]]), past_key_values=cache, **fine)
    assert int(cache.get_seq_length()) == 9


def test_a_full_cache_is_refused() -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model, static(model, 8))
    assert "more than the 8 tokens it has room for" in refused(model, past_key_values=cache)


def test_left_padding_in_generate_is_refused() -> None:
    model = tiny()
    patch(model, backend="oracle")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    with pytest.raises(DecodeRefused, match="padding in attention_mask"):
        model.generate(torch.tensor(PROMPT), attention_mask=mask, max_new_tokens=4, cache_implementation="static", do_sample=False)


def test_the_face() -> None:
    assert cf.hf.patch is patch
