"""A model's weights by their Hugging Face names: which there must be, and which argument of which kernel each one is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

import cfdsl as cf

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
DTYPES = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "f16": torch.float16, "fp16": torch.float16, "float16": torch.float16}

# Argument of the kernel -> name within model.layers.N.
ATTENTION = {
    "norm": "input_layernorm.weight", "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight", "wo": "self_attn.o_proj.weight",
}  # fmt: skip
BIASES = {"bq": "self_attn.q_proj.bias", "bk": "self_attn.k_proj.bias", "bv": "self_attn.v_proj.bias"}
FFN = {
    "norm": "post_attention_layernorm.weight", "w_gate": "mlp.gate_proj.weight", "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
}  # fmt: skip


def head_name(model: cf.ModelConfig) -> str:
    """The weight of the vocabulary projection: the embedding's, where they are tied."""
    return EMBEDDING if model.tied_embeddings else HEAD


def attention_weights(model: cf.ModelConfig, weights: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    """What attention_block takes of layer `layer`, by argument name."""
    names = {**ATTENTION, **(BIASES if model.qkv_bias else {})}
    return {argument: weights[f"model.layers.{layer}.{name}"] for argument, name in names.items()}


def ffn_weights(weights: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    """What ffn_block takes of layer `layer`, by argument name."""
    return {argument: weights[f"model.layers.{layer}.{name}"] for argument, name in FFN.items()}


def weight_shapes(model: cf.ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every weight of a model, as Hugging Face has them: projections are (out, in)."""
    hidden, wide, q, kv = model.hidden, model.intermediate, model.heads * model.head_dim, model.kv_heads * model.head_dim
    layer: dict[str, tuple[int, ...]] = {
        ATTENTION["norm"]: (hidden,), ATTENTION["wq"]: (q, hidden), ATTENTION["wk"]: (kv, hidden), ATTENTION["wv"]: (kv, hidden),
        ATTENTION["wo"]: (hidden, q), FFN["norm"]: (hidden,), FFN["w_gate"]: (wide, hidden), FFN["w_up"]: (wide, hidden),
        FFN["w_down"]: (hidden, wide),
    }  # fmt: skip
    if model.qkv_bias:
        layer |= {BIASES["bq"]: (q,), BIASES["bk"]: (kv,), BIASES["bv"]: (kv,)}
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (model.vocab, hidden)}
    for number in range(model.layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes[FINAL_NORM] = (hidden,)
    if not model.tied_embeddings:
        shapes[HEAD] = (model.vocab, hidden)
    return shapes


def weight_errors(model: cf.ModelConfig, weights: Mapping[str, Tensor], dtype: str, device: str | None) -> list[cf.CfdslError]:
    """One WeightsMismatch that lists everything wrong with `weights`, or nothing; names beyond those needed do no harm. ArgumentError if
    they are no mapping.

    device   the type of device they must be on; None: any, but all on one
    """
    given: object = weights  # whatever a caller passed
    if not isinstance(given, Mapping):
        return [cf.errors.ArgumentError(argument="weights", expected="a mapping of names to tensors", got=type(given).__name__)]
    problems = [f"{name}: {fault}" for name, fault in _faults(model, weights, DTYPES[dtype], device)]
    return [cf.errors.WeightsMismatch(model=model.name, problems=problems)] if problems else []


def _faults(
    model: cf.ModelConfig, weights: Mapping[str, Tensor], dtype: torch.dtype, device: str | None
) -> Iterator[tuple[str, str]]:
    shapes = weight_shapes(model)
    tensors = [tensor for name in shapes if isinstance(tensor := weights.get(name), Tensor)]
    kinds, places = {tensor.dtype for tensor in tensors}, {tensor.device.type for tensor in tensors}
    alike, elsewhere = len(kinds) == 1 and dtype not in kinds, len(places) == 1 and device is not None and device not in places
    if alike:  # said once, and not of each
        yield "all of them", f"their dtype is {_short(kinds.pop())}, it must be {_short(dtype)}"
    if elsewhere:
        yield "all of them", f"they are on {places.pop()}, they must be on a {device} device"
    first: tuple[str, torch.device] | None = None
    for name, shape in shapes.items():
        tensor = weights.get(name)
        if tensor is None:
            yield name, f"missing, of shape {shape}"
            continue
        given: object = tensor
        if not isinstance(given, Tensor):
            yield name, f"it is no tensor, but {type(given).__name__}"
            continue
        if tuple(tensor.shape) != shape:
            yield name, f"its shape is {tuple(tensor.shape)}, it must be {shape}"
        if tensor.dtype != dtype and not alike:
            yield name, f"its dtype is {_short(tensor.dtype)}, it must be {_short(dtype)}"
        if not tensor.is_contiguous():
            yield name, f"it is not contiguous: its strides are {tensor.stride()}"
        first = first or (name, tensor.device)
        if device is not None and tensor.device.type != device and not elsewhere:
            yield name, f"it is on {tensor.device}, it must be on a {device} device"
        elif tensor.device != first[1]:
            yield name, f"it is on {tensor.device}, but {first[0]} is on {first[1]}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
