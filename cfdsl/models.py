"""What a fusion needs to know of a model: its sizes and conventions, from a preset or a Hugging Face config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from cfdsl.errors import ArgumentError, ModelUnreadable, ModelUnsupported, UnknownModel, raise_all
from cfdsl.errors.base import listed

MODEL_TYPES = ("llama", "mistral", "qwen2")
HEAD_DIMS = (64, 128)
MAX_GROUP = 16
HIDDEN_MULTIPLE = 64
ROW_MULTIPLE = 8  # elements of 16 bits in the 16 bytes that a bulk copy moves at least
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
ROPE_SCALINGS = ("linear", "llama3")
ROPE_STYLES = ("half", "interleaved")
OLD = {"type": "rope_type"}  # names of rotary settings, and what they are called now
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


Rules = Mapping[str, tuple[str, Callable[[Any], bool]]]  # of a field: what it must be, and whether a value is that
_ANY_OF = {"kind": ROPE_SCALINGS, "rope_style": ROPE_STYLES, "activation": ACTIVATIONS}
_CHOICES: Rules = {name: (listed([repr(each) for each in known]), known.__contains__) for name, known in _ANY_OF.items()}
_POSITIVE = ("a positive number", lambda value: _is_number(value) and value > 0)
_COUNT = ("a positive number", lambda value: _is_whole(value, 1))
_COUNT_OR_0 = ("a whole number that is not negative", lambda value: _is_whole(value, 0))
_FLAG = ("True or False", lambda value: isinstance(value, bool))
_SCALING: Rules = {
    "kind": _CHOICES["kind"],
    "factor": _POSITIVE,
    "low_freq_factor": _POSITIVE,
    "high_freq_factor": _POSITIVE,
    "original_max_positions": _COUNT,
}
_MODEL: Rules = {
    "name": ("a string", lambda value: isinstance(value, str)),
    **dict.fromkeys(("hidden", "heads", "kv_heads", "head_dim", "layers", "max_positions"), _COUNT),
    **dict.fromkeys(("intermediate", "vocab"), _COUNT_OR_0),
    **dict.fromkeys(("qkv_bias", "tied_embeddings"), _FLAG),
    "norm_eps": ("a finite number that is not negative", lambda value: _is_number(value) and value >= 0),
    "rope_theta": _POSITIVE,
    "rope_style": _CHOICES["rope_style"],
    "activation": _CHOICES["activation"],
    "rope_scaling": ("None or a RopeScaling", lambda value: value is None or isinstance(value, RopeScaling)),
}


def _misfits(record: object, rules: Rules) -> list[ArgumentError]:
    """ArgumentError for each field of a record that is not what its rule says."""
    return [
        ArgumentError(argument=name, expected=expected, got=repr(getattr(record, name)))
        for name, (expected, fits) in rules.items()
        if not fits(getattr(record, name))
    ]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of the first training.

    kind "linear" divides every frequency by `factor`. kind "llama3" divides those whose wavelength is above
    `original_max_positions / low_freq_factor`, keeps those below `original_max_positions / high_freq_factor`, and blends in between.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        errors = _misfits(self, _SCALING)
        if not errors and self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            expected = f"more than low_freq_factor {self.low_freq_factor}"
            errors.append(ArgumentError(argument="high_freq_factor", expected=expected, got=repr(self.high_freq_factor)))
        raise_all(errors)


@dataclass(frozen=True)
class ModelConfig:
    """The sizes (in elements) and conventions of a transformer's layers.

    `rotary_dim` is the number of dimensions of a head that rotate (0: all of them); `rope_style` is "half" or "interleaved";
    `qkv_bias`: the query, key and value projections have biases; `activation` is one of ACTIVATIONS. What this takes is more than the
    kernels do: see `problems`.
    """

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rotary_dim: int = 0
    rope_style: str = "half"
    qkv_bias: bool = False
    layers: int = 1
    intermediate: int = 0
    vocab: int = 0
    tied_embeddings: bool = False
    max_positions: int = 4096
    activation: str = "silu"
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        """Raises one error with every field that is not what it must be."""
        if self.rotary_dim == 0:
            object.__setattr__(self, "rotary_dim", self.head_dim)
        errors = _misfits(self, _MODEL)
        wrong = {error.argument for error in errors}
        if not wrong & {"heads", "kv_heads"} and self.heads % self.kv_heads:
            errors.append(ArgumentError(argument="kv_heads", expected=f"a divisor of the {self.heads} heads", got=repr(self.kv_heads)))
        even = _is_whole(self.rotary_dim, 2) and self.rotary_dim % 2 == 0
        if "head_dim" not in wrong and not (even and self.rotary_dim <= self.head_dim):
            expected = f"an even number up to head_dim {self.head_dim}"
            errors.append(ArgumentError(argument="rotary_dim", expected=expected, got=repr(self.rotary_dim)))
        raise_all(errors)

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads

    @classmethod
    def from_hf(cls, source: str | PathLike[str] | Mapping[str, Any], name: str | None = None) -> ModelConfig:
        """The config of a Hugging Face model: a config.json, a folder that holds one, or its contents as a dict.

        name: for messages; else the config's `_name_or_path`, the folder's name or the model type. Raises ModelUnsupported with all
        the reasons why the kernels cannot run the model, UnknownModel if there is no such file.
        """
        _expect(source, (str, PathLike, Mapping), "source", "the path of a config.json or of its folder, or its contents as a dict")
        if isinstance(source, Mapping):
            raw, fallback = dict(source), str(source.get("_name_or_path") or source.get("model_type") or "model")
        else:
            raw, fallback = _read(Path(source))
        return _from_hf(raw, name or fallback)

    def with_(self, **fields: Any) -> ModelConfig:
        """A copy with other values."""
        return replace(self, **fields)


def _expect(given: object, kinds: tuple[type, ...], argument: str, expected: str) -> None:
    """Raise ArgumentError for anything but one of these kinds."""
    if not isinstance(given, kinds):
        raise ArgumentError(argument=argument, expected=expected, got="None" if given is None else f"a {type(given).__name__}")


def _read(path: Path) -> tuple[dict[str, Any], str]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
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


# ---- Hugging Face ------------------------------------------------------------------------------------------------------------------


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
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
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
    kv_heads = read.size("num_key_value_heads", heads or None) if heads else 0
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


def problems(*, hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int = 0) -> list[str]:
    """Why a model of these sizes is not read (0: not known, and not judged): the kernels have no code for it, or no model has such sizes.
    docs/concepts.md says what else compiles, and what the oracle runs."""
    reasons = []
    if head_dim and head_dim not in HEAD_DIMS:
        reasons.append(f"head_dim is {head_dim}; the kernels have {' and '.join(map(str, HEAD_DIMS))}")
    if hidden % HIDDEN_MULTIPLE:
        reasons.append(f"hidden_size is {hidden}, not a multiple of {HIDDEN_MULTIPLE}")
    if intermediate % ROW_MULTIPLE:
        reasons.append(f"intermediate_size is {intermediate}, not a multiple of {ROW_MULTIPLE}")
    if heads and kv_heads and heads % kv_heads:
        reasons.append(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    elif heads and kv_heads and heads // kv_heads > MAX_GROUP:
        reasons.append(f"{heads // kv_heads} query heads share a key/value head; the kernels have up to {MAX_GROUP}")
    return reasons


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
        reasons.append(f"model_type is {model_type!r}; known are {', '.join(MODEL_TYPES)}")
    if raw.get("quantization_config"):
        quantised = raw["quantization_config"]
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        reasons.append(f"its weights are quantised ({method or 'method not named'})")
    window, longest = raw.get("sliding_window"), raw.get("max_position_embeddings")
    used = raw.get("use_sliding_window", model_type != "qwen2")
    if used and isinstance(window, int) and not (isinstance(longest, int) and window >= longest):
        reasons.append(f"its attention has a sliding window of {window} tokens")
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


# ---- rotary frequencies ------------------------------------------------------------------------------------------------------------


def rope_inv_freq(model: ModelConfig) -> tuple[float, ...]:
    """The angle in radians per position of each rotating pair: rotary_dim / 2 Python floats, scaled as the model says."""
    pairs = (model.rope_theta ** (-2 * pair / model.rotary_dim) for pair in range(model.rotary_dim // 2))
    scaling = model.rope_scaling
    return tuple(pairs) if scaling is None else tuple(_scaled(freq, scaling) for freq in pairs)


def _scaled(freq: float, scaling: RopeScaling) -> float:
    if scaling.kind == "linear":
        return freq / scaling.factor
    turns = scaling.original_max_positions * freq / (2 * math.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if turns < low:
        return freq / scaling.factor
    if turns > high:
        return freq
    blend = (turns - low) / (high - low)
    return (1 - blend) * freq / scaling.factor + blend * freq


# ---- presets -----------------------------------------------------------------------------------------------------------------------


def _llama3(factor: float) -> RopeScaling:
    return RopeScaling("llama3", factor, 1.0, 4.0, 8192)


_ALL = (
    ModelConfig("llama-2-7b", 4096, 32, 32, 128, layers=32, intermediate=11008, vocab=32000, max_positions=4096),
    ModelConfig(
        "llama-3.1-8b", 4096, 32, 8, 128, rope_theta=500000.0, layers=32, intermediate=14336, vocab=128256, max_positions=131072,
        rope_scaling=_llama3(8.0),
    ),
    ModelConfig(
        "llama-3.2-1b", 2048, 32, 8, 64, rope_theta=500000.0, layers=16, intermediate=8192, vocab=128256, max_positions=131072,
        rope_scaling=_llama3(32.0), tied_embeddings=True,
    ),
    ModelConfig("tinyllama-1.1b", 2048, 32, 4, 64, layers=22, intermediate=5632, vocab=32000, max_positions=2048),
    ModelConfig(
        "smollm2-135m", 576, 9, 3, 64, rope_theta=100000.0, layers=30, intermediate=1536, vocab=49152, max_positions=8192,
        tied_embeddings=True,
    ),
    ModelConfig(
        "mistral-7b-v0.3", 4096, 32, 8, 128, rope_theta=1000000.0, layers=32, intermediate=14336, vocab=32768, max_positions=32768,
    ),
)  # fmt: skip
PRESETS: dict[str, ModelConfig] = {model.name: model for model in _ALL}


def resolve(model: ModelConfig | str | PathLike[str]) -> ModelConfig:
    """A ModelConfig as it is, a preset by its name, or a config.json (or its folder) by its path. Raises ArgumentError for anything else,
    and what `ModelConfig.from_hf` raises."""
    if isinstance(model, ModelConfig):
        return model
    _expect(model, (str, PathLike), "model", "a ModelConfig, the name of a preset, or the path of a config.json")
    preset = PRESETS.get(str(model))
    return preset or ModelConfig.from_hf(model)
