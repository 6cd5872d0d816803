"""The config of a model: its fields, what each must be, which sizes there are kernels for, and its rotary frequencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from cfdsl.errors import ArgumentError, is_whole, listed, raise_all

HEAD_DIMS = (64, 128)
MAX_GROUP = 16
HIDDEN_MULTIPLE = 64
ROW_MULTIPLE = 8  # elements of 16 bits in the 16 bytes that a bulk copy moves at least
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
ROPE_SCALINGS = ("linear", "llama3")
ROPE_STYLES = ("half", "interleaved")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


Rules = Mapping[str, tuple[str, Callable[[Any], bool]]]  # of a field: what it must be, and whether a value is that
_ANY_OF = {"kind": ROPE_SCALINGS, "rope_style": ROPE_STYLES, "activation": ACTIVATIONS}
_CHOICES: Rules = {name: (listed([repr(each) for each in known]), known.__contains__) for name, known in _ANY_OF.items()}
_POSITIVE = ("a positive number", lambda value: _is_number(value) and value > 0)
_COUNT = ("a positive number", lambda value: is_whole(value, 1))
_COUNT_OR_0 = ("a whole number that is not negative", lambda value: is_whole(value, 0))
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
        even = is_whole(self.rotary_dim, 2) and self.rotary_dim % 2 == 0
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
        from cfdsl.models.hugging_face import read

        return read(source, name)

    def with_(self, **fields: Any) -> ModelConfig:
        """A copy with other values."""
        return replace(self, **fields)


def expect(given: object, kinds: tuple[type, ...], argument: str, expected: str) -> None:
    """Raise ArgumentError for anything but one of these kinds."""
    if not isinstance(given, kinds):
        raise ArgumentError(argument=argument, expected=expected, got="None" if given is None else f"a {type(given).__name__}")


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
