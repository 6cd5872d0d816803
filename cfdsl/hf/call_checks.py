"""What cfdsl cannot decode of a call: every reason found, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cfdsl.errors import CfdslError, DecodeRefused
from cfdsl.hf.caches import KNOWN, static_tensors
from cfdsl.models import ModelConfig

INDEX_DTYPES = (torch.int64, torch.int32)  # what an embedding takes
UNWANTED = {"output_attentions": "attention weights", "output_hidden_states": "hidden states"}


def call_errors(model: Any, call: Mapping[str, Any]) -> list[CfdslError]:
    """What speaks against decoding a call, its cache aside, as far as the host can see."""
    return [DecodeRefused(problem=problem, advice=advice) for problem, advice in _call(model, call)]


def cache_errors(model: Any, sizes: ModelConfig, cache: Any) -> list[CfdslError]:
    """What speaks against decoding with a cache."""
    return [DecodeRefused(problem=problem, advice=advice) for problem, advice in _cache(model, sizes, cache)]


def single_mask(mask: Any) -> Tensor | None:
    """The mask of a call; of several, one per kind of layer, that of full attention, or else the first (the others must be like it)."""
    if not isinstance(mask, Mapping):
        return mask
    found: Tensor | None = mask.get("full_attention", next(iter(mask.values()), None))
    return found


def sliding_window(model: Any) -> int | None:
    """Tokens that attention looks back, where the config limits them."""
    window = getattr(model.config, "sliding_window", None)
    used = getattr(model.config, "use_sliding_window", True)  # a switch that Qwen2 has
    return window if used and isinstance(window, int) else None


def _call(model: Any, call: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    ids = call.get("input_ids")
    if call.get("inputs_embeds") is not None:
        both = "it gives inputs_embeds" if ids is None else "it gives both input_ids and inputs_embeds"
        yield both, "give input_ids alone: the kernels look embeddings up themselves"
    if ids is not None:
        yield from _ids(ids)
    mask: object = single_mask(call.get("attention_mask"))
    if mask is not None and not isinstance(mask, Tensor):
        yield f"its attention_mask is a {type(mask).__name__}", "give a tensor, or none"
    for name, what in UNWANTED.items():
        asked = call.get(name)
        if asked if asked is not None else getattr(model.config, name, False):
            yield f"{name}: {what} stay inside the kernels", f"call it without {name}"
    if call.get("labels") is not None:
        yield "it gives labels", "compute a loss without a cache, over whole sequences"
    if call.get("use_cache") is False:
        yield "it has a cache and use_cache=False", "leave use_cache out"
    if model.training:
        yield "the model is in training mode", "call model.eval()"


def _ids(ids: Tensor) -> Iterator[tuple[str, str]]:
    if ids.dim() != 2:
        yield f"its input_ids are of shape {tuple(ids.shape)}", "give input_ids of shape (1, 1)"
    elif ids.shape[0] != 1:
        yield f"it has a batch of {ids.shape[0]} sequences", "decode one sequence at a time"
    if ids.dtype not in INDEX_DTYPES:
        yield f"its input_ids are {str(ids.dtype).removeprefix('torch.')}", "give input_ids in int64 or int32"


def _cache(model: Any, sizes: ModelConfig, cache: Any) -> Iterator[tuple[str, str]]:
    found = static_tensors(cache)
    if found is None:
        problem = f"its cache is a {type(cache).__name__} without the tensors of a StaticCache ({KNOWN})"
        yield problem, "use a StaticCache, or model.generate(..., cache_implementation='static')"
        return
    if len(found.layers) != sizes.layers:
        yield f"its cache has {len(found.layers)} layers and the model {sizes.layers}", "make the cache with this model's config"
    weight = next(model.parameters())
    capacity = found.capacity
    want = (1, sizes.kv_heads, capacity, sizes.head_dim)
    shapes = {tuple(tensor.shape) for pair in found.layers for tensor in pair} - {want}
    if shapes:
        advice = "make the cache with this model's config, for one sequence"
        yield f"its cache has tensors of shape {shapes.pop()} where {want} is needed", advice
    kinds = {(tensor.dtype, tensor.device) for pair in found.layers for tensor in pair} - {(weight.dtype, weight.device)}
    if kinds:
        dtype, device = kinds.pop()
        yield f"its cache is {dtype} on {device}, and the weights are {weight.dtype} on {weight.device}", "make the cache like the weights"
    if not all(tensor.is_contiguous() for pair in found.layers for tensor in pair):
        yield "its cache has tensors that are not contiguous", "make a new StaticCache"
    if getattr(cache, "offloading", False):
        yield "its cache is offloaded to the CPU", "make the StaticCache without offloading"
    window, rolls = sliding_window(model), bool(found.sliding)
    if window is not None and (capacity > window or rolls and capacity == window):
        yield (
            f"the model attends to the last {window} tokens only, and its cache is for {'at least ' if rolls else ''}{capacity}",
            f"make a StaticCache with max_cache_len below {window}",
        )


def causal(mask: Tensor | None, position_ids: Tensor | None, length: Tensor, capacity: int) -> Tensor:
    """Whether a call attends to all `length` cached tokens and its own, at position `length`, and fits: a bool on the device, 0-d.

    mask: (1, n), not 0 for a token that is attended to, with n tokens or more; or (1, 1 or heads, 1, n) of bools, or of numbers to add
    (0 for a token that is attended to). length: 0-d integers, on the mask's device. Launches a few small kernels, and does not wait for
    them.
    """
    good = length < capacity
    if position_ids is not None:
        good = good & (position_ids.reshape(-1)[-1] == length)
    if mask is None:
        return good
    cached = torch.arange(mask.shape[-1], device=mask.device) <= length
    good = good & (length < mask.shape[-1])  # Hugging Face attends to nothing behind the end of a mask
    if mask.dim() == 2:
        return good & ((mask != 0) | ~cached).all()  # what is behind the last token may be anything: it is masked as the future
    row = mask[:1, :, -1:]
    attended = row if row.dtype == torch.bool else row == 0
    return good & (attended == cached).all()
