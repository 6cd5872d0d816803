"""What is wrong with a decoder's arguments, all of it at once and before anything is compiled or launched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import cfdsl as cf
from fusions.decoder.step import GIVEN, LAYERS, options
from fusions.decoder.weights import DTYPES

BACKENDS = ("kernel", "oracle")


def setting_errors(capacity: int, dtype: str, backend: str, part: Any, layers: str, settings: Mapping[str, Any]) -> Iterator[cf.CfdslError]:
    """Arguments of the decoder that are no tensors."""
    if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
        yield _argument("capacity", "a positive number of tokens", capacity)
    if dtype not in DTYPES:
        yield _argument("dtype", "'bf16' or 'f16'", dtype)
    if backend not in BACKENDS:
        yield _argument("backend", "'kernel' or 'oracle'", backend)
    if backend == "oracle" and part is not None:
        yield _argument("part", "None with backend 'oracle', which compiles nothing", part)
    if layers not in LAYERS:
        yield _argument("layers", " or ".join(map(repr, LAYERS)), layers)
        return
    needed = options(layers)
    given: object = settings  # whatever a caller passed
    if not isinstance(given, Mapping):
        yield _argument("settings", f"a dictionary by fusion: {', '.join(needed)}", settings)
        return
    for name, chosen in settings.items():
        if name not in needed:
            yield _argument("settings", f"a dictionary by fusion: {', '.join(needed)}", name)
        elif not isinstance(chosen, Mapping):
            yield _argument(f"settings[{name!r}]", f"a dictionary of options of {name} and fields of its config", chosen)
        else:
            yield from _fixed(name, chosen, needed[name])


def _fixed(name: str, chosen: Mapping[str, Any], needed: Mapping[str, Any]) -> Iterator[cf.CfdslError]:
    """Settings of one fusion that are not the caller's to choose."""
    for key, value in chosen.items():
        argument, advice = f"settings[{name!r}][{key!r}]", f"leave {key!r} out of settings"
        if key in GIVEN:
            yield cf.errors.ArgumentError(argument=argument, expected="what the decoder itself says", got=repr(value), advice=advice)
        elif key in needed and value != needed[key]:
            expected = f"{needed[key]!r}, which the rest of a step needs"
            yield cf.errors.ArgumentError(argument=argument, expected=expected, got=repr(value), advice=advice)


def cache_errors(
    model: cf.ModelConfig, caches: Sequence[tuple[Tensor, Tensor]], capacity: int, dtype: torch.dtype
) -> Iterator[cf.CfdslError]:
    """The caller's caches: a pair per layer, each (1, kv_heads, capacity, head_dim)."""
    shape = (1, model.kv_heads, capacity, model.head_dim)
    if len(caches) != model.layers:
        yield cf.errors.ArgumentError(argument="caches", expected=f"{model.layers} pairs, one per layer", got=f"{len(caches)} of them")
    batches = {cache.shape[0] for pair in caches for cache in pair if cache.dim() == 4}
    for batch in sorted(batches - {1}):
        yield cf.errors.BatchUnsupported(batch=batch)
    what = f"a contiguous {str(dtype).removeprefix('torch.')} tensor of shape {shape}"
    for layer, pair in enumerate(caches):
        for name, cache in zip("kv", pair, strict=True):
            if tuple(cache.shape)[1:] != shape[1:] or cache.dtype != dtype or not cache.is_contiguous():
                got = f"a {str(cache.dtype).removeprefix('torch.')} one of shape {tuple(cache.shape)} and strides {cache.stride()}"
                yield cf.errors.ArgumentError(argument=f"caches[{layer}] {name}", expected=what, got=got)


def _argument(name: str, expected: str, got: object) -> cf.CfdslError:
    return cf.errors.ArgumentError(argument=name, expected=expected, got=repr(got))
