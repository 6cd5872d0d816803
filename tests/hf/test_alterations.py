"""Models that no longer compute what their class and config say: each way is refused by patch, and by the next decode call after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from calls import decoded, patch_refused, prefilled, refused
from plain_decoder import PlainDecoder
from tiny import PROMPT, tiny
from torch import nn

from cfdsl.errors import DecodeRefused
from cfdsl.hf import patch
from cfdsl.hf.alterations import Watch

pytestmark = pytest.mark.usefixtures("plain")


def biased(linear: nn.Linear) -> None:
    linear.bias = nn.Parameter(torch.ones(linear.out_features, dtype=linear.weight.dtype))


def set_in(model: Any, where: str, name: str, value: Any) -> None:
    setattr(model.get_submodule(where), name, value)


LAYER = "model.layers.1"
ALTERATIONS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a bias on q": (lambda m: biased(m.model.layers[1].self_attn.q_proj), f"{LAYER}.self_attn.q_proj.bias is more than its config"),
    "a bias on the head": (lambda m: biased(m.lm_head), "lm_head.bias is more than its config speaks of"),
    "another norm": (
        lambda m: set_in(m, LAYER, "input_layernorm", nn.LayerNorm(128, dtype=m.dtype)),
        f"{LAYER}.input_layernorm is of class LayerNorm, not LlamaRMSNorm",
    ),
    "another activation": (
        lambda m: [set_in(m, f"model.layers.{n}.mlp", "act_fn", nn.ReLU()) for n in (0, 1)],
        "model.layers.0.mlp.act_fn and 1 more are of class ReLU, not SiLU",
    ),
    "a hook": (lambda m: m.model.layers[1].mlp.register_forward_hook(lambda *a: a[2] * 2), f"{LAYER}.mlp is called with a forward hook"),
    "a hook before": (lambda m: m.lm_head.register_forward_pre_hook(lambda *a: None), "lm_head is called with a forward hook"),
    "a forward": (lambda m: set_in(m, f"{LAYER}.mlp", "forward", torch.relu), f"{LAYER}.mlp is given a forward of its own"),
    "another scaling": (lambda m: set_in(m, f"{LAYER}.self_attn", "scaling", 1.0), f"{LAYER}.self_attn.scaling is 1.0, not 0.125"),
    "another eps": (lambda m: set_in(m, "model.norm", "variance_epsilon", 0.5), "model.norm.variance_epsilon is 0.5, not 1e-06"),
    "a layer less": (lambda m: m.model.layers.__delitem__(1), "model.layers.1 is missing"),
    "a layer more": (lambda m: m.model.layers.append(nn.Identity()), "model.layers.2 is more than its config speaks of"),
    "a layer twice": (lambda m: m.model.layers.__setitem__(1, m.model.layers[0]), f"{LAYER}.self_attn.layer_idx is 0, not 1"),
    "fewer layers in the config": (lambda m: setattr(m.config, "num_hidden_layers", 1), f"{LAYER} is more than its config speaks of"),
    "a longer head": (lambda m: set_in(m, "lm_head", "weight", nn.Parameter(torch.ones(9, 128).to(m.dtype))), "lm_head.weight is of shape"),
    "a class of another package": (
        lambda m: set_in(m, f"{LAYER}.mlp", "act_fn", type("SiLUActivation", (nn.Module,), {})()),
        f"{LAYER}.mlp.act_fn is of class SiLUActivation, not SiLUActivation",
    ),
}


@pytest.mark.parametrize("way", ALTERATIONS)
def test_what_was_altered_is_refused_by_patch_and_after_it(way: str) -> None:
    alter, problem = ALTERATIONS[way]
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    decoded(model, cache)
    alter(model)
    for _ in range(2):  # and so it stays until it is undone
        assert problem in refused(model, past_key_values=cache)
    model = tiny()
    alter(model)
    assert problem in patch_refused(model, backend="oracle")


def test_a_config_that_was_changed_after_the_modules_were_made() -> None:
    model = tiny()
    model.config.rms_norm_eps = 1e-3
    assert "model.layers.0.input_layernorm.variance_epsilon and 4 more are 1e-06, not 0.001" in patch_refused(model, backend="oracle")
    model = tiny()
    model.config.rope_parameters["rope_theta"] = 77.0
    assert "its rotary frequencies are not those of its config" in patch_refused(model, backend="oracle")
    model = tiny()
    model.config.pad_token_id, model.config.use_cache = 10**6, False  # nothing that is computed depends on these
    patch(model, backend="oracle")


def test_all_that_was_altered_is_said_at_once() -> None:
    model = tiny()
    ways = list(ALTERATIONS.values())[1:5]
    for alter, _ in ways:
        alter(model)
    text = patch_refused(model, backend="oracle")
    assert text.startswith("4 mistakes:")
    assert all(problem in text for _, problem in ways)


def test_code_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr(type(model.model.norm), "forward", lambda self, x: x)
    assert "model.layers.0.input_layernorm and 4 more are computed by code of 'test" in patch_refused(model, backend="oracle")


def test_a_hook_for_all_modules_is_refused_while_it_is_there() -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    handle = nn.modules.module.register_module_forward_hook(lambda *call: None)
    try:
        assert "a forward hook was registered for all modules there are" in refused(model, past_key_values=cache)
    finally:
        handle.remove()
    decoded(model, cache)


def test_what_changes_nothing_is_not_refused() -> None:
    """Hooks of the model itself are called around its forward; those of transformers only record."""
    model, seen = tiny(), []
    patch(model, backend="oracle")
    model.register_forward_hook(lambda *call: seen.append(call[2].logits.shape))
    cache = prefilled(model)
    with torch.no_grad():
        model(torch.tensor(PROMPT), output_hidden_states=True, output_attentions=True)
    model.model.layers[0].note = "mine"
    decoded(model, cache)
    assert seen[-1] == (1, 1, 96)


def test_frequencies_as_they_are_rounded_with_the_model() -> None:
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny(dtype=dtype, rope_parameters={**scaled, "rope_theta": 500000.0})
        assert model.model.rotary_emb.inv_freq.dtype == dtype
        patch(model, backend="oracle")


# ---- weights that moved --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embed_tokens", "layers.0.self_attn.k_proj", "layers.1.post_attention_layernorm"])
def test_a_weight_that_moved_is_read_from_where_it_is(name: str) -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    before = decoded(model, cache)
    held = model.model.get_submodule(name).weight
    held.data = held.data * 2
    cache.reset()
    prefilled(model, cache)
    after = decoded(model, cache)
    assert (after - before).norm() > 1e-3 * before.norm()
    assert [decoder.weights[f"model.{name}.weight"].data_ptr() for decoder in PlainDecoder.made][-1] == held.data_ptr()
    with torch.no_grad():
        held.mul_(0.5)  # written in place: simply used
    cache.reset()
    prefilled(model, cache)
    assert decoded(model, cache).equal(before)
    assert len(PlainDecoder.made) == 2


def test_a_parameter_that_was_replaced_or_removed() -> None:
    model = tiny()
    patch(model, backend="oracle")
    cache = prefilled(model)
    norm = model.model.norm
    norm.weight = nn.Parameter(norm.weight.detach().clone())
    decoded(model, cache)
    assert PlainDecoder.made[-1].weights["model.norm.weight"].data_ptr() == norm.weight.data_ptr()
    del norm.weight
    with pytest.raises(DecodeRefused, match="model.norm.weight is missing"):
        decoded(model, cache)


def test_looking_takes_no_time_to_speak_of() -> None:
    """About 70 us for 32 layers on a quiet machine; much more would be felt in every token."""
    watch = Watch(tiny(num_hidden_layers=32))
    times = []
    for _ in range(200):
        began = time.perf_counter()
        assert watch.holds()
        times.append(time.perf_counter() - began)
    assert min(times) < 500e-6
