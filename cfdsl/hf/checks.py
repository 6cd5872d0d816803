"""What cfdsl cannot take over of a Hugging Face model, and of a call: every reason found, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cfdsl.errors import ArgumentError, CfdslError, DecodeRefused, ModelUnsupported, NoTarget, PatchRefused
from cfdsl.hf.caches import KNOWN, static_tensors
from cfdsl.models import ModelConfig

MODELS = ("LlamaForCausalLM", "MistralForCausalLM")
DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}
NAMES = {"bf16": "bf16", "bfloat16": "bf16", "f16": "f16", "fp16": "f16", "float16": "f16"}
SPELLED = {"bf16": "bfloat16", "f16": "float16"}
BACKENDS = ("kernel", "oracle")
UNWANTED = {"output_attentions": "attention weights", "output_hidden_states": "hidden states"}


# ---- the model, when it is patched ---------------------------------------------------------------------------------------------------


def patch_errors(model: Any, dtype: str | None, backend: str | None) -> list[CfdslError]:
    """Everything that speaks against patching `model`; empty if nothing does."""
    kind = type(model).__name__
    if kind not in MODELS:
        return [_refuse(model, *_wrong_class(kind)), *_argument_errors(dtype, backend)]
    errors: list[CfdslError] = [*_argument_errors(dtype, backend), *(_refuse(model, *why) for why in _taken(model))]
    try:
        model_config(model)
    except ModelUnsupported as refused:
        errors.append(refused)
    return errors + weight_errors(model, dtype, backend)


def weight_errors(model: Any, dtype: str | None, backend: str | None) -> list[CfdslError]:
    """What speaks against a model's weights as they are now, and where they are."""
    return [*(_refuse(model, *why) for why in _weights(model, dtype)), *_device_errors(model, backend)]


def model_config(model: Any) -> ModelConfig:
    """The sizes and conventions of a model. A sliding window is left out here: each call's cache says whether it is ever reached."""
    raw = {name: value for name, value in model.config.to_dict().items() if name != "sliding_window"}
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    return ModelConfig.from_hf(raw, name=raw.get("_name_or_path") or type(model).__name__).with_(tied_embeddings=tied)


def weights(model: Any) -> dict[str, Tensor]:
    """The model's weights by Hugging Face's names, where they are; no "lm_head.weight" where it is the embedding's."""
    found = {name: weight.detach() for name, weight in model.named_parameters(remove_duplicate=False)}
    if found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr():
        del found["lm_head.weight"]
    return found


def end_addresses(model: Any) -> tuple[int, int]:
    """Where the first and the last weight lie: where they have moved, the others have."""
    inner = model.model
    return inner.embed_tokens.weight.data_ptr(), inner.norm.weight.data_ptr()


def single_mask(mask: Any) -> Tensor | None:
    """The mask of a call; of several, one per kind of layer, that of full attention, or else the first (the others must be like it)."""
    if not isinstance(mask, Mapping):
        return mask
    found: Tensor | None = mask.get("full_attention", next(iter(mask.values()), None))
    return found


def sliding_window(model: Any) -> int | None:
    """Tokens that attention looks back, where the config limits them."""
    window = getattr(model.config, "sliding_window", None)
    return window if isinstance(window, int) else None


def _refuse(model: Any, problem: str, advice: str) -> PatchRefused:
    return PatchRefused(model=f"the {type(model).__name__}", problem=problem, advice=advice)


def _wrong_class(kind: str) -> tuple[str, str]:
    if kind == "OptimizedModule":
        return "it is a torch.compile'd wrapper", "patch the model inside of it (model._orig_mod), and do not compile it"
    if kind.startswith("Peft"):
        return "it has adapters", "merge them (model.merge_and_unload()) and patch the model that this returns"
    return f"its class is not one of {', '.join(MODELS)}", f"use one of {', '.join(MODELS)} itself, not a subclass"


def _argument_errors(dtype: str | None, backend: str | None) -> Iterator[CfdslError]:
    if dtype is not None and dtype not in NAMES:
        yield ArgumentError(argument="dtype", expected="'bf16' or 'f16'", got=repr(dtype))
    if backend is not None and backend not in BACKENDS:
        yield ArgumentError(argument="backend", expected="'kernel' or 'oracle'", got=repr(backend))


def _taken(model: Any) -> Iterator[tuple[str, str]]:
    if "_cfdsl" in model.__dict__:
        yield "it is patched already", "call unpatch first"
    elif "forward" in model.__dict__:
        yield "its forward was replaced (by accelerate's hooks, or by hand)", "load the model on one device, without device_map"
    if getattr(model, "_compiled_call_impl", None) is not None:
        yield "it was compiled in place (model.compile())", "load the model anew and do not compile it: decode steps are CUDA graphs"


def _weights(model: Any, dtype: str | None) -> Iterator[tuple[str, str]]:
    linears = {name: type(module) for name, module in model.named_modules() if name.endswith(("_proj", "lm_head"))}
    odd = [f"{name} ({kind.__name__})" for name, kind in linears.items() if kind is not nn.Linear]
    if odd:
        yield f"{_first(odd)} no plain nn.Linear: quantised, or with an adapter", "load it without quantisation, and merge adapters"
    named = dict(model.named_parameters())
    found = {str(weight.dtype).removeprefix("torch.") for weight in named.values()}
    wanted = NAMES.get(dtype or "")
    if not odd and len(found) > 1:
        yield f"its weights have several dtypes: {', '.join(sorted(found))}", "convert it to one: model.to(torch.bfloat16)"
    elif not odd and not found <= set(SPELLED.values()):
        advice = "load it in bfloat16, or call model.to(torch.bfloat16)"
        yield f"its weights are {found.pop()}; the kernels take bfloat16 and float16", advice
    elif not odd and wanted and SPELLED[wanted] not in found:
        advice = "leave dtype out, or convert the model first: weights are not copied"
        yield f"its weights are {found.pop()}, and dtype={dtype!r} was asked for", advice
    loose = [name for name, weight in named.items() if not weight.is_contiguous()]
    if loose:
        yield f"{_first(loose)} not contiguous", "make the weights contiguous (weight.data = weight.data.contiguous())"


def _first(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _device_errors(model: Any, backend: str | None) -> list[CfdslError]:
    devices = {str(weight.device) for weight in model.parameters()}
    if len(devices) > 1 or "meta" in devices:
        where = f"on several devices ({', '.join(sorted(devices))})" if len(devices) > 1 else "offloaded (on meta)"
        return [_refuse(model, f"its weights are {where}", "load all of it on one GPU")]
    kind = devices.pop().partition(":")[0]
    if backend == "oracle":
        problem = f"the oracle runs on the CPU, and its weights are on {kind}"
        return [] if kind == "cpu" else [_refuse(model, problem, "call model.to('cpu')")]
    if kind != "cuda":
        advice = "call model.to('cuda'); backend='oracle' runs the same graphs on the CPU, slowly"
        return [_refuse(model, f"its weights are on {kind}, and kernels run on a GPU", advice)]
    capability = torch.cuda.get_device_capability(next(model.parameters()).device)
    return [] if capability[0] == 9 else [NoTarget(found=f"one of {capability[0]}.{capability[1]}")]


# ---- a call with one new token -------------------------------------------------------------------------------------------------------


def call_errors(model: Any, call: Mapping[str, Any]) -> list[CfdslError]:
    """What speaks against decoding a call, its cache aside, as far as the host can see."""
    return [DecodeRefused(problem=problem, advice=advice) for problem, advice in _call(model, call)]


def cache_errors(model: Any, sizes: ModelConfig, cache: Any) -> list[CfdslError]:
    """What speaks against decoding with a cache."""
    return [DecodeRefused(problem=problem, advice=advice) for problem, advice in _cache(model, sizes, cache)]


def _call(model: Any, call: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    ids = call.get("input_ids")
    if ids is None:
        yield "it gives inputs_embeds", "give input_ids: the kernels look embeddings up themselves"
    elif ids.shape[0] != 1:
        yield f"it has a batch of {ids.shape[0]} sequences", "decode one sequence at a time"
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

    mask: (1, n) of ones, or (1, 1 or heads, 1, n) of bools, or of numbers to add (0 for a token that is attended to).
    length: 0-d integers, on the mask's device. Launches a few small kernels, and does not wait for them.
    """
    good = length < capacity
    if position_ids is not None:
        good = good & (position_ids.reshape(-1)[-1] == length)
    if mask is None:
        return good
    if mask.dim() == 2:
        return good & (mask != 0).all()
    row = mask[:1, :, -1:]
    attended = row if row.dtype == torch.bool else row == 0
    expected = torch.arange(mask.shape[-1], device=mask.device) <= length
    return good & (attended == expected).all()
