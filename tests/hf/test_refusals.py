"""Models that patch refuses, and calls that a patched model refuses: on the CPU, with a plain decoder in the place of the kernels'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from calls import patch_refused, prefilled, refused, static
from plain_decoder import PlainDecoder
from tiny import PROMPT, generated, tiny

from cfdsl.errors import ArgumentError, DecodeRefused, NoLegalConfig, NotPatched, PatchRefused
from cfdsl.hf import patch, status, unpatch
from cfdsl.hf.checks import model_config, plan_errors

pytestmark = pytest.mark.usefixtures("plain")


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
    assert "its class is not one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM" in patch_refused(torch.nn.Linear(2, 2))
    model = tiny()
    assert "call model.to('cuda'); backend='oracle' runs the same graphs on the CPU" in patch_refused(model)
    assert "its weights are bfloat16, and dtype='f16' was asked for" in patch_refused(model, backend="oracle", dtype="f16")
    compiled: Any = torch.compile(model)
    assert "patch the model inside of it (model._orig_mod)" in patch_refused(compiled, backend="oracle")
    model.forward = model.forward
    assert "its forward was replaced" in patch_refused(model, backend="oracle")
    del model.forward
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    assert "model.layers.1.mlp.up_proj is of class Identity, not Linear" in patch_refused(model, backend="oracle")
    headless = tiny()
    headless.lm_head = torch.nn.Identity()
    assert "lm_head is of class Identity, not Linear" in patch_refused(headless, backend="oracle")
    loose = tiny()
    weight = loose.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.t().contiguous().t()
    assert "model.layers.0.mlp.up_proj.weight is not contiguous" in patch_refused(loose, backend="oracle")
    mixed = tiny()
    mixed.lm_head.float()
    assert "its weights have several dtypes: bfloat16, float32" in patch_refused(mixed, backend="oracle")
    mixed.lm_head.to("meta", torch.bfloat16)
    assert "its weights are on several devices (cpu, meta)" in patch_refused(mixed, backend="oracle")


def test_a_model_that_was_converted_after_it_was_patched() -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    model(torch.tensor([[5]]), past_key_values=cache)
    model.half()
    text = refused(model, past_key_values=prefilled(model))
    assert "its weights were bfloat16 when it was patched, and are float16 now" in text
    assert "unpatch it and patch it anew" in text
    assert "was asked for" not in text
    assert "its weights were bfloat16" in refused(model, past_key_values=cache)
    model.float()
    assert "its weights are float32; the kernels take bfloat16 and float16" in refused(model, past_key_values=prefilled(model))
    model.bfloat16()
    model(torch.tensor([[5]]), past_key_values=prefilled(model))


def test_patching_twice_and_unpatching_twice() -> None:
    model = tiny()
    patch(model, backend="oracle")
    with pytest.raises(PatchRefused, match="it is patched already"):
        patch(model, backend="oracle")
    unpatch(model)
    for never in (model, None, "llama"):
        with pytest.raises(NotPatched, match=f"the {type(never).__name__} is not patched"):
            unpatch(never)  # type: ignore[arg-type]
        with pytest.raises(NotPatched):
            status(never)  # type: ignore[arg-type]


def test_sizes_that_the_compiler_has_no_plan_for_are_refused_by_patch() -> None:
    sizes = model_config(tiny())
    assert plan_errors(sizes, "bf16", "h100-sxm") == []
    [error] = plan_errors(sizes.with_(intermediate=80_000), "bf16", "h100-sxm")
    assert isinstance(error, NoLegalConfig)
    assert "the vector that rows of w_down meet takes about 173 registers of a thread in each of 4 turns, of 168" in str(error)


def test_patch_plans_and_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFDSL_CACHE_DIR", str(tmp_path))
    assert plan_errors(model_config(tiny()), "bf16", "h100-sxm") == []
    assert list((tmp_path / "choice").iterdir())
    assert not (tmp_path / "kernel").exists()


def test_arguments_of_patch_that_no_one_would_give() -> None:
    for dtype in (torch.bfloat16, ["bf16"]):
        with pytest.raises(ArgumentError, match="argument 'dtype' must be 'bf16' or 'f16'"):
            patch(tiny(), dtype=dtype, backend="oracle")  # type: ignore[arg-type]


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


def test_ids_that_are_none(plain: type[PlainDecoder]) -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    both = {"inputs_embeds": torch.zeros(1, 1, 128, dtype=torch.bfloat16), "past_key_values": cache}
    assert "it gives both input_ids and inputs_embeds" in refused(model, **both)
    assert "its input_ids are float32" in refused(model, torch.tensor([[5.0]]), past_key_values=cache)
    assert "its input_ids are of shape (1, 1, 2)" in refused(model, torch.tensor([[[5, 5]]]), past_key_values=cache)
    assert "its attention_mask is a str" in refused(model, past_key_values=cache, attention_mask="all")
    assert plain.made == []
    model(torch.tensor([[5]], dtype=torch.int32), past_key_values=cache)


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
    model = tiny("Mistral", sliding_window=32, max_position_embeddings=8192)  # as Mistral 7B v0.1: also beyond the default window
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
        {"attention_mask": torch.ones(1, 8)},
        {"attention_mask": torch.ones(1, 3, dtype=torch.long)},
        {"attention_mask": torch.ones(1, 1, 1, 5, dtype=torch.bool)},
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


@pytest.mark.parametrize("more", [torch.ones(1, 11), torch.tensor([[1] * 9 + [0] * 55]), torch.ones(1, 64, dtype=torch.bool)])
def test_masks_longer_than_the_sequence_say_nothing_of_it(more: torch.Tensor) -> None:
    """As in Hugging Face's own computation: what is behind the last token is masked as the future in any case."""
    model = tiny()
    want, masked = (
        model(torch.tensor([[5]]), past_key_values=prefilled(model), attention_mask=mask).logits for mask in (torch.ones(1, 9), more)
    )
    assert masked.equal(want)
    patch(model, backend="oracle")
    got = model(torch.tensor([[5]]), past_key_values=prefilled(model), attention_mask=more).logits
    assert (got - want).norm() < 2e-2 * want.norm()


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
