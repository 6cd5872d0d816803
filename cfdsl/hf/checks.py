"""What cfdsl cannot take over of a Hugging Face model: every reason found, each with what to do about it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cfdsl.dsl.fusion import DTYPES as NAMES
from cfdsl.errors import ArgumentError, CfdslError, DecodeRefused, ModelUnsupported, NoTarget, PatchRefused
from cfdsl.hf.alterations import alterations, first_of
from cfdsl.models import ModelConfig

MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}
SPELLED = {"bf16": "bfloat16", "f16": "float16"}
BACKENDS = ("kernel", "oracle")
Reason = tuple[str, str]  # the problem, and what to do about it


def patch_errors(model: Any, dtype: str | None, backend: str | None) -> list[CfdslError]:
    """Everything that speaks against patching `model`; empty if nothing does."""
    kind, errors = type(model).__name__, list(_argument_errors(dtype, backend))
    if kind not in MODELS:
        return [_refuse(model, *_wrong_class(kind)), *errors]
    sizes, unsupported = _sizes(model)
    reasons = [*_taken(model), *alterations(model, sizes), *_weights(model), *_asked(model, dtype), *_places(model, backend)]
    return [*errors, *(_refuse(model, *reason) for reason in reasons), *unsupported, *_target_errors(model, backend)]


def changed_errors(model: Any, dtype: str, backend: str) -> list[CfdslError]:
    """What speaks against a patched model as it is now. dtype: what its weights had when it was patched."""
    sizes, unsupported = _sizes(model)
    reasons = [*alterations(model, sizes), *_weights(model), *_converted(model, dtype), *_places(model, backend)]
    refused = (DecodeRefused(problem=problem, advice=advice) for problem, advice in reasons)
    return [*refused, *unsupported, *_target_errors(model, backend)]


def plan_errors(sizes: ModelConfig, dtype: str, part: Any = None) -> list[CfdslError]:
    """What the compiler has against a decode step of these sizes, which is planned and not compiled. part: None for the GPU at hand."""
    step = importlib.import_module("fusions.decoder.step")  # fusions lie above this floor: see `session.decoder_class`
    found: list[CfdslError] = step.plan_errors(sizes, dtype, part, sizes.max_positions)
    return found


def model_config(model: Any) -> ModelConfig:
    """The sizes and conventions of a model. A sliding window is left out here: each call's cache says whether it is ever reached."""
    raw = {**model.config.to_dict(), "sliding_window": None}
    head, table = (getattr(module, "weight", None) for module in (model.lm_head, model.model.embed_tokens))
    tied = isinstance(head, Tensor) and isinstance(table, Tensor) and head.data_ptr() == table.data_ptr()
    return ModelConfig.from_hf(raw, name=raw.get("_name_or_path") or type(model).__name__).with_(tied_embeddings=tied)


def _sizes(model: Any) -> tuple[ModelConfig | None, list[CfdslError]]:
    try:
        return model_config(model), []
    except ModelUnsupported as refused:
        return None, [refused]


def weights(model: Any) -> dict[str, Tensor]:
    """The model's weights by Hugging Face's names, where they are; no "lm_head.weight" where it is the embedding's."""
    found = {name: weight.detach() for name, weight in model.named_parameters(remove_duplicate=False)}
    if found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr():
        del found["lm_head.weight"]
    return found


def _refuse(model: Any, problem: str, advice: str) -> PatchRefused:
    return PatchRefused(model=f"the {type(model).__name__}", problem=problem, advice=advice)


def _wrong_class(kind: str) -> Reason:
    if kind == "OptimizedModule":
        return "it is a torch.compile'd wrapper", "patch the model inside of it (model._orig_mod), and do not compile it"
    if kind.startswith("Peft"):
        return "it has adapters", "merge them (model.merge_and_unload()) and patch the model that this returns"
    return f"its class is not one of {', '.join(MODELS)}", f"use one of {', '.join(MODELS)} itself, not a subclass"


def _argument_errors(dtype: str | None, backend: str | None) -> Iterator[CfdslError]:
    if dtype is not None and not (isinstance(dtype, str) and dtype in NAMES):
        yield ArgumentError(argument="dtype", expected="'bf16' or 'f16'", got=repr(dtype))
    if backend is not None and backend not in BACKENDS:
        yield ArgumentError(argument="backend", expected="'kernel' or 'oracle'", got=repr(backend))


def _taken(model: Any) -> Iterator[Reason]:
    if "_cfdsl" in model.__dict__:
        yield "it is patched already", "call unpatch first"
    elif "forward" in model.__dict__:
        yield "its forward was replaced (by accelerate's hooks, or by hand)", "load the model on one device, without device_map"
    if getattr(model, "_compiled_call_impl", None) is not None:
        yield "it was compiled in place (model.compile())", "load the model anew and do not compile it: decode steps are CUDA graphs"


def _weights(model: Any) -> Iterator[Reason]:
    found = _dtypes(model)
    if len(found) > 1:
        yield f"its weights have several dtypes: {', '.join(found)}", "convert it to one: model.to(torch.bfloat16)"
    elif not set(found) <= set(SPELLED.values()):
        yield f"its weights are {found[0]}; the kernels take bfloat16 and float16", "load it in bfloat16, or call model.to(torch.bfloat16)"
    loose = [name for name, weight in model.named_parameters() if not weight.is_contiguous()]
    if loose:
        yield f"{first_of(loose)} not contiguous", "make the weights contiguous (weight.data = weight.data.contiguous())"


def _dtypes(model: Any) -> list[str]:
    """Those of its weights; whole numbers are of quantised ones, which their modules tell."""
    return sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.is_floating_point()})


def _asked(model: Any, dtype: str | None) -> Iterator[Reason]:
    found = _other_than(model, NAMES.get(dtype) if isinstance(dtype, str) else None)
    if found:
        advice = "leave dtype out, or convert the model first: weights are not copied"
        yield f"its weights are {found}, and dtype={dtype!r} was asked for", advice


def _converted(model: Any, then: str) -> Iterator[Reason]:
    found = _other_than(model, then)
    if found:
        advice = "convert it back, or unpatch it and patch it anew"
        yield f"its weights were {SPELLED[then]} when it was patched, and are {found} now", advice


def _other_than(model: Any, dtype: str | None) -> str | None:
    """The dtype of the weights where it is one that the kernels take, and another than `dtype`."""
    found = _dtypes(model)
    return found[0] if dtype and len(found) == 1 and found[0] in SPELLED.values() and found != [SPELLED[dtype]] else None


def _places(model: Any, backend: str | None) -> Iterator[Reason]:
    devices = _devices(model)
    if len(devices) > 1 or "meta" in devices:
        where = f"on several devices ({', '.join(devices)})" if len(devices) > 1 else "offloaded (on meta)"
        yield f"its weights are {where}", "load all of it on one GPU"
        return
    kind = devices[0].partition(":")[0]
    if backend == "oracle" and kind != "cpu":
        yield f"the oracle runs on the CPU, and its weights are on {kind}", "call model.to('cpu')"
    if backend != "oracle" and kind != "cuda":
        advice = "call model.to('cuda'); backend='oracle' runs the same graphs on the CPU, slowly"
        yield f"its weights are on {kind}, and kernels run on a GPU", advice


def _devices(model: Any) -> list[str]:
    return sorted({str(weight.device) for weight in model.parameters()})


def _target_errors(model: Any, backend: str | None) -> Iterator[CfdslError]:
    devices = _devices(model)
    if backend != "oracle" and len(devices) == 1 and devices[0].startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(devices[0])
        if major != 9:
            yield NoTarget(found=f"one of {major}.{minor}")
