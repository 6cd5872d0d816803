"""The tensors inside a Hugging Face cache, whichever of its versions' names they have.

A StaticCache holds per layer keys and values of (batch, kv_heads, capacity, head_dim), which is the kernels' layout "bhtd". transformers
since 4.54 has them as `cache.layers[i].keys` and `.values`, made by the first update; before that they are lists `cache.key_cache` and
`.value_cache`. Since 5.x each layer counts its tokens itself, on the device (`cumulative_length`); before that the model is told by
`cache_position`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KNOWN = "transformers 4.51 to 5.x"
COUNTS = ("cumulative_length", "cumulative_length_int")


@dataclass(frozen=True)
class StaticTensors:
    """A StaticCache's tensors: (k, v) per layer, and what counts its tokens.

    counters  of each layer, 0-d integers on the device; none where the model is told by `cache_position`
    sliding   layers that forget: they also count on the host
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    counters: tuple[Tensor, ...]
    sliding: tuple[Any, ...]

    @property
    def capacity(self) -> int:
        """Tokens that every layer has room for."""
        return int(self.layers[0][0].shape[2])

    def still_in(self, cache: Any) -> bool:
        """Whether `cache` has these very tensors."""
        layers = getattr(cache, "layers", None)
        if layers is None:
            now = list(zip(cache.key_cache, cache.value_cache, strict=True))
            return len(now) == len(self.layers) and all(a is k and b is v for (a, b), (k, v) in zip(now, self.layers, strict=True))
        if len(layers) != len(self.layers):
            return False
        return all(layer.keys is k and layer.values is v for layer, (k, v) in zip(layers, self.layers, strict=True))

    def advance(self) -> None:
        """One token more, as the layers' own update would count it; on the device, in one launch."""
        if self.counters:
            torch._foreach_add_(list(self.counters), 1)
        for layer in self.sliding:
            for name in COUNTS:
                if isinstance(getattr(layer, name, None), int):
                    setattr(layer, name, getattr(layer, name) + 1)


def has_tokens(cache: Any) -> bool:
    """Whether a call with this cache continues a sequence. On the host: a cache that was reset counts as one with tokens."""
    if cache is None:
        return False
    layers = getattr(cache, "layers", None)
    if layers is not None:
        return any(getattr(layer, "is_initialized", getattr(layer, "keys", None) is not None) for layer in layers)
    if hasattr(cache, "key_cache"):
        return any(isinstance(keys, Tensor) and keys.numel() > 0 for keys in cache.key_cache)
    return True  # a tuple of an early version, or something else that the call will refuse by name


def static_tensors(cache: Any) -> StaticTensors | None:
    """The tensors of a StaticCache whose layers are all initialised; None for any other cache."""
    pairs: list[Any]
    layers = getattr(cache, "layers", None)
    if layers is not None:
        if not layers or any("Static" not in type(layer).__name__ for layer in layers):
            return None
        pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    elif type(cache).__name__ == "StaticCache" and hasattr(cache, "key_cache"):
        layers, pairs = (), list(zip(cache.key_cache, cache.value_cache, strict=True))
    else:
        return None
    if not pairs or not all(isinstance(tensor, Tensor) and tensor.dim() == 4 for pair in pairs for tensor in pair):
        return None
    counters = tuple(layer.cumulative_length for layer in layers if isinstance(getattr(layer, "cumulative_length", None), Tensor))
    return StaticTensors(tuple(pairs), counters, tuple(layer for layer in layers if getattr(layer, "is_sliding", False)))


def tokens_before(cache: Any, found: StaticTensors, call: Mapping[str, Any]) -> Tensor | int:
    """How many tokens the cache holds before a call with one new token: a tensor on the device wherever the version has one there."""
    if found.counters:
        return found.counters[0]
    position = call.get("cache_position")
    if isinstance(position, Tensor):
        return position
    held: Tensor | int = cache.get_seq_length()
    return held
