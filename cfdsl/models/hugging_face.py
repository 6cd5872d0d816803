"""Reading a Hugging Face config.json: a ModelConfig, or all the reasons against it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from cfdsl.errors import ModelUnreadable, ModelUnsupported, UnknownModel, is_whole
from cfdsl.models.config import ModelConfig, RopeScaling, expect, problems

MODEL_TYPES = ("llama", "mistral", "qwen2")
OLD = {"type": "rope_type"}  # names of rotary settings, and what they are called now
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")  # those of ModelConfig that there is code for
WINDOWS = {"mistral": 4096}  # sliding windows of configs that do not name theirs
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def read(source: str | PathLike[str] | Mapping[str, Any], name: str | None = None) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    expect(source, (str, PathLike, Mapping), "source", "the path of a config.json or of its folder, or its contents as a dict")
    if isinstance(source, Mapping):
        raw, fallback = dict(source), str(source.get("_name_or_path") or source.get("model_type") or "model")
    else:
        raw, fallback = _file(Path(source))
    return _from_hf(raw, name or fallback)


def _file(path: Path) -> tuple[dict[str, Any], str]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        from cfdsl.models.presets import PRESETS

        raise UnknownModel(name=str(path), known=tuple(PRESETS))
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelUnreadable(file=str(file), problem=str(error.strerror or error)) from error
    except ValueError as error:
        raise ModelUnreadable(file=str(file), problem=f"it is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelUnreadable(file=str(file), problem="it is not a JSON object")
    return raw, file.resolve().parent.name


class _Reader:
    """Reads the fields of a config and collects everything that is wrong with them."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw, self.reasons = raw, []  # type: tuple[Mapping[str, Any], list[str]]

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number; 0 stands for one that is missing or wrong."""
        value = self.raw.get(key)
        value = default if value is None else value
        if value is None:
            self.reasons.append(f"{key} is missing")
        elif not is_whole(value, 1):
            self.reasons.append(f"{key} is {value!r}, not a positive whole number")
        else:
            return value
        return 0

    def flag(self, key: str) -> bool:
        """True or false; false if it is missing."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            self.reasons.append(f"{key} is {value!r}, neither true nor false")
        return value is True

    def number(self, raw: Mapping[str, Any], key: str, default: float | None = None) -> float:
        value = raw.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            self.reasons.append(f"{key} is {'missing' if value is None else f'{value!r}, not a positive number'}")
            return 1.0
        return float(value)


def _from_hf(raw: Mapping[str, Any], name: str) -> ModelConfig:
    read = _Reader(raw)
    read.reasons += _unsupported(raw)
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads")
    # only of llama does a config that does not name them mean as many as query heads; in all of them null means so
    named = raw.get("model_type") == "llama" or "num_key_value_heads" in raw
    kv_heads = read.size("num_key_value_heads", heads if named else None) if heads else 0
    head_dim = _head_dim(read, hidden, heads)
    fields: dict[str, Any] = {
        "layers": read.size("num_hidden_layers"),
        "intermediate": read.size("intermediate_size"),
        "vocab": read.size("vocab_size"),
        "max_positions": read.size("max_position_embeddings"),
        "norm_eps": read.number(raw, "rms_norm_eps"),
        "rope_theta": read.number({**raw, **_rope_parameters(raw)}, "rope_theta", 10000.0),
        "rope_scaling": _rope_scaling(read),
        "rotary_dim": _rotary_dim(read, head_dim),
        "qkv_bias": raw.get("model_type") == "qwen2",
        "tied_embeddings": read.flag("tie_word_embeddings"),
        "activation": raw.get("hidden_act", "silu"),
    }
    read.reasons += problems(hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, intermediate=fields["intermediate"])
    if read.reasons:
        raise ModelUnsupported(name=name, reasons=tuple(read.reasons))
    return ModelConfig(name, hidden, heads, kv_heads, head_dim, **fields)


def _head_dim(read: _Reader, hidden: int, heads: int) -> int:
    if read.raw.get("head_dim") is not None:
        return read.size("head_dim")
    if heads and hidden % heads:
        read.reasons.append(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is missing")
        return 0
    return hidden // heads if heads else 0


def _rotary_dim(read: _Reader, head_dim: int) -> int:
    factor = read.number({**read.raw, **_rope_parameters(read.raw)}, "partial_rotary_factor", 1.0)
    rotary = int(head_dim * factor)
    if head_dim and (rotary % 2 or not 0 < rotary <= head_dim):
        read.reasons.append(f"partial_rotary_factor {factor} rotates {rotary} of {head_dim} dimensions, not an even part of them")
    return rotary


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """The things that a config may ask for and that cfdsl does not do."""
    reasons = []
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        reasons.append(f"model_type is {'missing' if model_type is None else repr(model_type)}; known are {', '.join(MODEL_TYPES)}")
    if raw.get("quantization_config"):
        quantised = raw["quantization_config"]
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        reasons.append(f"its weights are quantised ({method or 'method not named'})")
    window, longest = raw.get("sliding_window", WINDOWS.get(str(model_type))), raw.get("max_position_embeddings")
    used = raw.get("use_sliding_window", model_type != "qwen2")
    if used and isinstance(window, int) and not (isinstance(longest, int) and window >= longest):
        default = "" if "sliding_window" in raw else ", as a config has that does not say null"
        reasons.append(f"its attention has a sliding window of {window} tokens{default}")
    if raw.get("attention_bias"):
        reasons.append("attention_bias: its output projection has a bias")
    if raw.get("mlp_bias"):
        reasons.append("mlp_bias: its feed-forward projections have biases")
    for key in EXPERTS:
        if isinstance(raw.get(key), int) and raw[key] > 1:
            reasons.append(f"it is a mixture of {raw[key]} experts ({key})")
    if raw.get("hidden_act", "silu") not in ACTIVATIONS:
        reasons.append(f"hidden_act is {raw['hidden_act']!r}; known are {', '.join(ACTIVATIONS)}")
    return reasons


def _rope_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings: `rope_scaling` of older configs, `rope_parameters` (with rope_theta in it) of newer ones."""
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return dict(found) if isinstance(found, Mapping) else {"rope_type": found}


def _rope_misfits(raw: Mapping[str, Any]) -> list[str]:
    """Rotary settings that do not say one thing about all layers."""
    newer, older = raw.get("rope_parameters"), raw.get("rope_scaling")
    reasons = []
    if isinstance(newer, Mapping) and isinstance(older, Mapping) and any(newer.get(OLD.get(key, key)) != older[key] for key in older):
        reasons.append("rope_parameters and rope_scaling are both there, and say different things")
    kinds = [name for name, value in _rope_parameters(raw).items() if isinstance(value, Mapping)]
    if kinds:
        reasons.append(f"its rotary settings differ by the type of layer ({', '.join(kinds)})")
    return reasons


def _rope_scaling(read: _Reader) -> RopeScaling | None:
    read.reasons += _rope_misfits(read.raw)
    rope = _rope_parameters(read.raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", read.number(rope, "factor"))
    if kind != "llama3":
        read.reasons.append(f"rope type {kind!r} is not understood; known are default, linear, llama3")
        return None
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    known = len(read.reasons)
    factor, low, high, original = (read.number(rope, key) for key in keys)
    if len(read.reasons) == known and low >= high:
        read.reasons.append(f"low_freq_factor {low} is not below high_freq_factor {high}")
    if original != int(original):
        read.reasons.append(f"original_max_position_embeddings is {original}, not a positive whole number")
    return None if len(read.reasons) > known else RopeScaling("llama3", factor, low, high, int(original))
