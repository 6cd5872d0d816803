"""What is wrong with a decoder's arguments, all of it at once and before anything is compiled or launched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import cfdsl as cf
from fusions.decoder.request import argument_error, whole
from fusions.decoder.step import GIVEN, LAYERS, options
from fusions.decoder.weights import DTYPES

BACKENDS = ("kernel", "oracle")


def size_errors(model: cf.ModelConfig) -> Iterator[cf.CfdslError]:
    """A config of attention alone, as one may write it for a fusion: a whole model has a feed-forward part and a vocabulary too."""
    for field in ("intermediate", "vocab"):
        if not getattr(model, field):
            advice = f"give its ModelConfig {field!r}, as model.with_({field}=...) does"
            yield cf.errors.ArgumentError(argument="model", expected=f"one with {field!r}", got=f"{model.name} without", advice=advice)


def setting_errors(capacity: int, dtype: str, backend: str, part: Any, layers: str, settings: Mapping[str, Any]) -> Iterator[cf.CfdslError]:
    """Arguments of the decoder that are no tensors."""
    if not cf.errors.is_whole(capacity, 1):
        yield argument_error("capacity", "a positive number of tokens", capacity)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        yield argument_error("dtype", "'bf16' or 'f16'", dtype)
    if backend not in BACKENDS:
        yield argument_error("backend", "'kernel' or 'oracle'", backend)
    if backend == "oracle" and part is not None:
        yield argument_error("part", "None with backend 'oracle', which compiles nothing", part)
    if not isinstance(layers, str) or layers not in LAYERS:
        yield argument_error("layers", " or ".join(map(repr, LAYERS)), layers)
        return
    needed = options(layers)
    given: object = settings  # whatever a caller passed
    if not isinstance(given, Mapping):
        yield argument_error("settings", f"a dictionary by fusion: {', '.join(needed)}", settings)
        return
    for name, chosen in settings.items():
        if name not in needed:
            yield argument_error("settings", f"a dictionary by fusion: {', '.join(needed)}", name)
        elif not isinstance(chosen, Mapping):
            yield argument_error(f"settings[{name!r}]", f"a dictionary of options of {name} and fields of its config", chosen)
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
    model: cf.ModelConfig, caches: Any, capacity: int, dtype: torch.dtype, device: torch.device | None
) -> Iterator[cf.CfdslError]:
    """The caller's caches: a pair per layer, each (1, kv_heads, capacity, head_dim) and a tensor of its own, on `device` (None: any)."""
    if not isinstance(caches, Sequence) or isinstance(caches, str):
        yield argument_error("caches", f"{model.layers} pairs, one per layer", caches)
        return
    if len(caches) != model.layers:
        yield cf.errors.ArgumentError(argument="caches", expected=f"{model.layers} pairs, one per layer", got=f"{len(caches)} of them")
    pairs: dict[str, Tensor] = {}
    for layer, pair in enumerate(caches):
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(cache, Tensor) for cache in pair):
            pairs |= {f"caches[{layer}] {name}": cache for name, cache in zip("kv", pair, strict=True)}
        else:
            got = f"{len(pair)} tensors" if isinstance(pair, (tuple, list)) and len(pair) != 2 else repr(pair)
            yield cf.errors.ArgumentError(argument=f"caches[{layer}]", expected="a pair of tensors, keys and values", got=got)
    for batch in sorted({cache.shape[0] for cache in pairs.values() if cache.dim() == 4} - {1}):
        yield cf.errors.BatchUnsupported(batch=batch)
    yield from _cache_tensor_errors(pairs, (1, model.kv_heads, capacity, model.head_dim), dtype, device)


def _cache_tensor_errors(
    caches: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None
) -> Iterator[cf.CfdslError]:
    on = "" if device is None else f" on {device}"
    what = f"a contiguous {str(dtype).removeprefix('torch.')} tensor of shape {shape}{on}"
    first: dict[int, str] = {}
    for name, cache in caches.items():
        fits = cache.shape[1:] == torch.Size(shape[1:]) and cache.dtype == dtype and cache.is_contiguous()
        if not fits or device not in (None, cache.device):
            kind = f"{str(cache.dtype).removeprefix('torch.')} one on {cache.device}"
            got = f"a {kind} of shape {tuple(cache.shape)} and strides {cache.stride()}"
            yield cf.errors.ArgumentError(argument=name, expected=what, got=got)
        elif first.setdefault(cache.data_ptr(), name) != name:
            yield cf.errors.ArgumentError(argument=name, expected="a tensor of its own", got=f"that of {first[cache.data_ptr()]}")


def length_errors(length: Any, capacity: int) -> Iterator[cf.CfdslError]:
    """A number of tokens that the caches cannot hold."""
    if not whole(length) or not 0 <= int(length) <= capacity:
        yield argument_error("length", f"0 to {capacity}, the decoder's capacity", length)


def sampled(token: Any) -> Tensor:
    """What a sampler returned, as it is; ArgumentError where that is no tensor of one whole number. The number itself is on the device,
    and not looked at."""
    if not isinstance(token, Tensor):
        got = repr(token)
    elif token.numel() == 1 and not (token.is_floating_point() or token.is_complex()):
        return token
    else:
        got = f"a {str(token.dtype).removeprefix('torch.')} tensor of shape {tuple(token.shape)}"
    advice = "let it return logits.argmax(-1).int(), or what it drew in that form"
    raise cf.errors.ArgumentError(argument="sampler", expected="to return a token as a tensor (1,) i32", got=got, advice=advice)


def place_errors(backend: str, part: Any) -> Iterator[cf.CfdslError]:
    """A decoder for the GPU at hand where there is none."""
    if backend == "kernel" and part is None and not torch.cuda.is_available():
        yield cf.errors.NoTarget(without="backend='oracle' runs the same graphs on the CPU, slowly; part='h100-sxm' only compiles")
