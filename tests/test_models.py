"""Model configs: the presets' true values, reading Hugging Face configs, refusing what is unsupported, rotary frequencies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from cfdsl.models import resolve

LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
# The configs as they are published, but for keys that say nothing of sizes (dtype, token ids, initialisation).
LLAMA2 = {
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
    "vocab_size": 32000,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-2-7b": LLAMA2,
    "llama-3.1-8b": {
        "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0,
        "tie_word_embeddings": False, "vocab_size": 128256,
    },
    "llama-3.2-1b": {
        "attention_bias": False, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": {**LLAMA3_ROPE, "factor": 32.0}, "rope_theta": 500000.0,
        "tie_word_embeddings": True, "vocab_size": 128256,
    },
    "tinyllama-1.1b": {
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "smollm2-135m": {
        "attention_bias": False, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True,
        "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
        "tie_word_embeddings": True, "vocab_size": 49152,
    },
    "mistral-7b-v0.3": {
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "vocab_size": 32768,
    },
}  # fmt: skip
QWEN2 = {
    "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 32768, "max_window_layers": 28,
    "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 4096, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


# ---- presets -----------------------------------------------------------------------------------------------------------------------


def test_the_presets_are_those_named() -> None:
    assert set(cf.PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_what_its_published_config_says(name: str) -> None:
    assert cf.ModelConfig.from_hf(PUBLISHED[name], name) == cf.PRESETS[name]


def test_derived_sizes() -> None:
    sizes = {name: (model.head_dim, model.group, model.rotary_dim) for name, model in cf.PRESETS.items()}
    assert sizes == {
        "llama-2-7b": (128, 1, 128),
        "llama-3.1-8b": (128, 4, 128),
        "llama-3.2-1b": (64, 4, 64),
        "tinyllama-1.1b": (64, 8, 64),
        "smollm2-135m": (64, 3, 64),
        "mistral-7b-v0.3": (128, 4, 128),
    }


def test_a_config_can_be_varied() -> None:
    assert cf.PRESETS["llama-2-7b"].with_(kv_heads=8).group == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": 0}, "argument 'hidden' must be a positive number, got 0."),
        ({"heads": 2.5}, "argument 'heads' must be a positive number, got 2.5."),
        ({"kv_heads": 3}, "argument 'kv_heads' must be a divisor of the 4 heads, got 3."),
        ({"rotary_dim": 18}, "argument 'rotary_dim' must be an even number up to head_dim 16, got 18."),
        ({"rotary_dim": 7}, "argument 'rotary_dim' must be an even number up to head_dim 16, got 7."),
        ({"rope_style": "neox"}, "argument 'rope_style' must be 'half' or 'interleaved', got 'neox'."),
        ({"activation": "relu"}, "argument 'activation' must be 'silu', 'gelu' or 'gelu_pytorch_tanh', got 'relu'."),
        ({"rotary_dim": "16"}, "argument 'rotary_dim' must be an even number up to head_dim 16, got '16'."),
        ({"norm_eps": "a"}, "argument 'norm_eps' must be a finite number that is not negative, got 'a'."),
        ({"norm_eps": float("inf")}, "argument 'norm_eps' must be a finite number that is not negative, got inf."),
        ({"rope_theta": -1.0}, "argument 'rope_theta' must be a positive number, got -1.0."),
        ({"intermediate": 1.5}, "argument 'intermediate' must be a whole number that is not negative, got 1.5."),
        ({"qkv_bias": "false"}, "argument 'qkv_bias' must be True or False, got 'false'."),
        ({"name": None}, "argument 'name' must be a string, got None."),
        ({"rope_scaling": {"factor": 2}}, "argument 'rope_scaling' must be None or a RopeScaling, got {'factor': 2}."),
        ({"activation": None}, "argument 'activation' must be 'silu', 'gelu' or 'gelu_pytorch_tanh', got None."),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(cf.errors.ArgumentError) as caught:
        cf.ModelConfig(**{"name": "toy", "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, **fields})
    assert caught.value.message == message


def test_all_impossible_fields_are_told_at_once() -> None:
    with pytest.raises(cf.Errors) as caught:
        cf.ModelConfig("toy", hidden=0, heads=3, kv_heads=2, head_dim=16, rotary_dim=3, vocab=-1)
    assert [error.argument for error in caught.value.errors] == ["hidden", "vocab", "kv_heads", "rotary_dim"]


def test_scalings_that_are_none_are_refused() -> None:
    with pytest.raises(cf.errors.ArgumentError, match="argument 'kind' must be 'linear' or 'llama3', got 'yarn'"):
        cf.RopeScaling("yarn", 4.0)
    with pytest.raises(cf.errors.ArgumentError, match="argument 'factor' must be a positive number, got 0"):
        cf.RopeScaling("linear", 0)
    with pytest.raises(cf.errors.ArgumentError, match="argument 'high_freq_factor' must be more than low_freq_factor 4.0, got 4.0"):
        cf.RopeScaling("llama3", 8.0, 4.0, 4.0)
    with pytest.raises(cf.errors.ArgumentError, match="argument 'original_max_positions' must be a positive number, got 0.5"):
        cf.RopeScaling("llama3", 8.0, original_max_positions=0.5)  # type: ignore[arg-type]


# ---- reading -----------------------------------------------------------------------------------------------------------------------


def test_from_a_file_or_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA2))
    for source in (folder, str(folder), folder / "config.json"):
        assert cf.ModelConfig.from_hf(source) == cf.PRESETS["llama-2-7b"].with_(name="my-llama")
    assert resolve(str(folder)).name == "my-llama"


def test_a_name_for_messages() -> None:
    assert cf.ModelConfig.from_hf(LLAMA2).name == "llama"
    assert cf.ModelConfig.from_hf({**LLAMA2, "_name_or_path": "meta/llama"}).name == "meta/llama"
    assert cf.ModelConfig.from_hf(LLAMA2, name="mine").name == "mine"


def test_qwen2_has_biases_on_q_k_v_and_no_window_unless_it_says_so() -> None:
    model = cf.ModelConfig.from_hf(QWEN2)
    assert (model.qkv_bias, model.head_dim, model.group, model.norm_eps) == (True, 128, 6, 1e-6)


def test_a_window_that_covers_everything_is_no_window() -> None:
    assert cf.ModelConfig.from_hf({**PUBLISHED["mistral-7b-v0.3"], "sliding_window": 32768}).max_positions == 32768


def test_new_configs_keep_theta_with_the_scaling() -> None:
    new = {key: value for key, value in PUBLISHED["llama-3.1-8b"].items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**LLAMA3_ROPE, "rope_theta": 500000.0}
    assert cf.ModelConfig.from_hf(new, "llama-3.1-8b") == cf.PRESETS["llama-3.1-8b"]


def test_the_older_name_beside_the_newer_one_does_no_harm_where_they_agree() -> None:
    both = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert cf.ModelConfig.from_hf({**LLAMA2, **both}).rope_scaling == cf.RopeScaling("linear", 2.0)


def test_partial_rotary() -> None:
    assert cf.ModelConfig.from_hf({**LLAMA2, "partial_rotary_factor": 0.5}).rotary_dim == 64


def test_missing_kv_heads_means_one_per_head() -> None:
    config = {key: value for key, value in LLAMA2.items() if key != "num_key_value_heads"}
    assert cf.ModelConfig.from_hf(config).kv_heads == 32


# ---- refusing ----------------------------------------------------------------------------------------------------------------------


def reasons(**changes: Any) -> list[str]:
    config = {**LLAMA2, **changes}
    with pytest.raises(cf.errors.ModelUnsupported) as caught:
        cf.ModelConfig.from_hf({key: value for key, value in config.items() if value != "missing"})
    return list(caught.value.reasons)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; known are llama, mistral, qwen2"),
        ({"model_type": "missing"}, "model_type is missing; known are llama, mistral, qwen2"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantised (gptq)"),
        ({"model_type": "mistral", "sliding_window": 1024}, "its attention has a sliding window of 1024 tokens"),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, "its attention has a sliding window of 64 tokens"),
        (
            {"model_type": "mistral", "max_position_embeddings": 32768},
            "its attention has a sliding window of 4096 tokens, as a config has that does not say null",
        ),
        ({"model_type": "mistral", "num_key_value_heads": "missing"}, "num_key_value_heads is missing"),
        ({"model_type": "qwen2", "num_key_value_heads": "missing"}, "num_key_value_heads is missing"),
        ({"attention_bias": True}, "attention_bias: its output projection has a bias"),
        ({"mlp_bias": True}, "mlp_bias: its feed-forward projections have biases"),
        ({"num_local_experts": 8}, "it is a mixture of 8 experts (num_local_experts)"),
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2'; known are silu, gelu_pytorch_tanh"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; known are silu, gelu_pytorch_tanh"),
        ({"head_dim": 96}, "head_dim is 96; the kernels have 64 and 128"),
        ({"hidden_size": 4128, "head_dim": 128}, "hidden_size is 4128, not a multiple of 64"),
        ({"intermediate_size": 11004}, "intermediate_size is 11004, not a multiple of 8"),
        ({"hidden_size": 4160}, "head_dim is 130; the kernels have 64 and 128"),
        ({"num_attention_heads": 30}, "hidden_size 4096 is not a multiple of num_attention_heads 30, and head_dim is missing"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple of num_key_value_heads 5"),
        ({"num_key_value_heads": 1}, "32 query heads share a key/value head; the kernels have up to 16"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not understood; known are default, linear, llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"vocab_size": "missing"}, "vocab_size is missing"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers is '32', not a positive whole number"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 rotates 192 of 128 dimensions, not an even part of them"),
        ({"quantization_config": True}, "its weights are quantised (method not named)"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a positive number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', neither true nor false"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            "its rotary settings differ by the type of layer (full_attention, sliding_attention)",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_parameters and rope_scaling are both there, and say different things",
        ),
        ({"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}, "low_freq_factor 1.0 is not below high_freq_factor 1.0"),
        (
            {"rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": 0.5}},
            "original_max_position_embeddings is 0.5, not a positive whole number",
        ),
    ],
)
def test_a_reason(changes: dict[str, Any], reason: str) -> None:
    assert reason in reasons(**changes)


def test_one_reason_is_not_repeated_as_others() -> None:
    assert len(reasons(model_type="gpt2")) == 1
    assert len(reasons(num_attention_heads="missing")) == 1
    assert len(reasons(num_attention_heads=30)) == 2  # ... and 30 is not a multiple of the 32 key/value heads


def test_up_to_sixteen_query_heads_may_share_a_key_value_head() -> None:
    assert cf.ModelConfig.from_hf({**LLAMA2, "num_key_value_heads": 2}).group == 16


def test_all_reasons_in_one_message() -> None:
    with pytest.raises(cf.errors.ModelUnsupported) as caught:
        cf.ModelConfig.from_hf({**LLAMA2, "model_type": "mixtral", "num_local_experts": 8, "head_dim": 80, "_name_or_path": "some/model"})
    assert str(caught.value) == (
        "the model 'some/model' is not supported:\n"
        "  - model_type is 'mixtral'; known are llama, mistral, qwen2\n"
        "  - it is a mixture of 8 experts (num_local_experts)\n"
        "  - head_dim is 80; the kernels have 64 and 128\n"
        "  remedy: use a model without these; cfdsl computes llama, mistral and qwen2 attention (docs/concepts.md)."
    )


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(cf.errors.ArgumentError, match="argument 'source' must be the path of a config.json .*, got None"):
        cf.ModelConfig.from_hf(None)  # type: ignore[arg-type]
    with pytest.raises(cf.errors.UnknownModel) as unknown:
        resolve("llama-9")
    assert str(unknown.value) == (
        "there is no model 'llama-9': no preset has this name and no config.json lies there.\n"
        "  remedy: use one of llama-2-7b, llama-3.1-8b, llama-3.2-1b, tinyllama-1.1b, smollm2-135m, mistral-7b-v0.3, "
        "or the path of a Hugging Face config.json."
    )
    file = tmp_path / "config.json"
    for text, reason in (("{", "it is not JSON: "), ("[]", "it is not a JSON object")):
        file.write_text(text)
        with pytest.raises(cf.errors.ModelUnreadable) as caught:
            cf.ModelConfig.from_hf(tmp_path)
        assert caught.value.problem.startswith(reason)
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA2).encode())  # a byte-order mark
    assert cf.ModelConfig.from_hf(file).hidden == 4096


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.text(max_size=3), st.floats(), st.just({}), st.just({"rope_type": 3}), st.just([1])
)
KEYS = [*LLAMA2, "head_dim", "partial_rotary_factor", "rope_scaling", "rope_parameters", "sliding_window", "quantization_config"]


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
def test_any_config_is_read_or_refused_with_reasons(changes: dict[str, Any]) -> None:
    reasons: list[str] = []
    try:
        model = cf.ModelConfig.from_hf({**LLAMA2, **changes})
    except cf.errors.ModelUnsupported as error:
        reasons = list(error.reasons)
    assert reasons or (model.heads % model.kv_heads == 0 and model.head_dim in (64, 128))


# ---- rotary frequencies ------------------------------------------------------------------------------------------------------------


def test_plain_frequencies() -> None:
    model = cf.ModelConfig("toy", 64, 4, 2, 16, rope_theta=10000.0, rotary_dim=8)
    assert cf.rope_inv_freq(model) == pytest.approx((1.0, 0.1, 0.01, 0.001), rel=1e-15)


def test_linear_scaling_divides() -> None:
    model = cf.ModelConfig("toy", 64, 4, 2, 16, rotary_dim=8, rope_scaling=cf.RopeScaling("linear", 4.0))
    assert cf.rope_inv_freq(model) == pytest.approx((0.25, 0.025, 0.0025, 0.00025), rel=1e-15)


def test_llama3_scaling_keeps_short_waves_stretches_long_ones_and_blends_between() -> None:
    model = cf.PRESETS["llama-3.1-8b"]
    plain, scaled = cf.rope_inv_freq(model.with_(rope_scaling=None)), cf.rope_inv_freq(model)
    assert len(scaled) == 64
    for before, after in zip(plain, scaled):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4:
            assert after == before
        elif wavelength > 8192:
            assert after == before / 8
        else:  # by hand: weight (8192 / wavelength - 1) / (4 - 1) on the plain frequency, the rest on the stretched one
            weight = (8192 / wavelength - 1) / 3
            assert after == pytest.approx(weight * before + (1 - weight) * before / 8, rel=1e-12)
    kept, stretched = (sum(a == b / by for a, b in zip(scaled, plain)) for by in (1, 8))
    assert (kept, stretched) == (29, 29)  # so six are blended
    assert list(scaled) == sorted(scaled, reverse=True)
