"""One decode step as a list of launches: embedding, the layers, each as one kernel or as two, the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import cfdsl as cf
import fusions
from fusions._tensors import rope_tables
from fusions.decoder.weights import DTYPES, EMBEDDING, FINAL_NORM, attention_weights, ffn_weights, head_name
from fusions.decoder_layer import NORM as FFN_NORM

Runner = cf.Kernel | cf.Oracle
LAYERS: dict[str, dict[str, dict[str, Any]]] = {  # the fusions of a layer, with the options that make them fit together
    "blocks": {"attention_block": {"residual": False, "layout": "bhtd"}, "ffn_block": {}},
    "whole": {"decoder_layer": {"layout": "bhtd"}},
}
DATAFLOWS: tuple[Mapping[str, Any], ...] = ({"qkv": "grid"}, {"qkv": "rows"})  # of attention, the deterministic ones that pay
GIVEN = ("fusion", "model", "batch", "dtype", "part", "sizes")  # what `kernels` tells `cfdsl.compile` itself


def options(layers: str) -> dict[str, dict[str, Any]]:
    """The fusions of a step by name, in launch order, each with the options that it must have."""
    return {"embedding": {}, **LAYERS[layers], "lm_head": {"out": "both"}}


@dataclass(frozen=True)
class Launch:
    """One kernel of a step with its tensors, in the kernel's order. layer: None for the embedding and the head."""

    name: str
    layer: int | None
    kernel: Runner
    args: tuple[Tensor, ...]

    def __call__(self) -> None:
        """Launch it on the current stream."""
        self.kernel(*self.args)


@dataclass(frozen=True)
class State:
    """What a step reads and writes apart from weights and caches. Allocated once; nothing here ever moves.

    counters (12,) i32: three numbers, 16 bytes apart, that are passed as `length` (1,): tokens in the caches, and the position of the
    token that is fed; `token` (1,): that token; `next_token` (1,): the one chosen. logits (1, vocab) f32; x, h (1, hidden): the residual
    stream before and after a layer's attention; cos, sin (positions, rotary_dim / 2) f32.

    Two buffers of activations are enough although every kernel starts while the one before it still runs. What a kernel reads ahead
    are weights, which nobody writes. All else it touches only after its griddepcontrol.wait, which returns when the kernel before has
    ended and its writes are visible; that one had waited for its own predecessor in turn. So for every buffer here stream order holds:
    a layer's feed-forward block writes x after attention, which read x, has ended. The same goes for the workspace of the one kernel
    object that all layers share. torch's kernels (the update of `length`, the copy of `token`) start in plain stream order.
    """

    counters: Tensor
    more: Tensor
    logits: Tensor
    x: Tensor
    h: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def length(self) -> Tensor:
        return self.counters[0:1]

    @property
    def token(self) -> Tensor:
        return self.counters[4:5]

    @property
    def next_token(self) -> Tensor:
        return self.counters[8:9]

    def count_and_advance(self) -> None:
        """length += 1 and token = next_token, as one kernel: (length, next_token) + (1, 0), stored over (length, token)."""
        torch.add(self.counters[0::8], self.more, out=self.counters[0:8:4])


def new_state(model: cf.ModelConfig, dtype: str, positions: int, device: torch.device) -> State:
    """Buffers for one sequence, on `device`: no token, an empty cache."""
    x, h = (torch.zeros((1, model.hidden), dtype=DTYPES[dtype], device=device) for _ in range(2))
    counters, more = torch.zeros(12, dtype=torch.int32, device=device), torch.tensor([1, 0], dtype=torch.int32, device=device)
    logits = torch.zeros((1, model.vocab), dtype=torch.float32, device=device)
    return State(counters, more, logits, x, h, *rope_tables(model, positions, device))


def kernels(
    model: cf.ModelConfig, dtype: str, backend: str, part: Any, capacity: int, layers: str, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Runner]:
    """One kernel (or oracle) per fusion, by its name: all layers have the same shapes and share it. The dataflow of attention, where
    settings do not have it, is the one that the cost model expects to be faster."""
    made: dict[str, Runner] = {}
    for name, needed in options(layers).items():
        fusion, chosen = fusions.find(name), {**needed, **settings.get(name, {})}
        if backend == "oracle":
            made[name] = cf.oracle(fusion, model, 1, dtype, **chosen)
        else:
            made[name] = cf.compile(fusion, model, 1, dtype, **_how(fusion, model, dtype, part, capacity, chosen))
    return made


def plan_errors(model: cf.ModelConfig, dtype: str, part: Any, capacity: int) -> list[cf.CfdslError]:
    """What the compiler has against the kernels of a step, one kernel per layer: all of them are planned, and none is compiled."""

    def planned(name: str, needed: Mapping[str, Any]) -> None:
        fusion = fusions.find(name)
        cf.plan(fusion, model, 1, dtype, **_how(fusion, model, dtype, part, capacity, needed))

    errors: list[cf.CfdslError] = []
    for name, needed in options("whole").items():
        cf.errors.attempt(errors, planned, name, needed)
    return errors


def _how(fusion: cf.Fusion, model: cf.ModelConfig, dtype: str, part: Any, capacity: int, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for `cf.compile`: what is chosen, the dataflow of attention where that is not, and how full a cache is planned for."""
    how: dict[str, Any] = {**chosen, "part": part, "sizes": {"tokens": min(capacity, 4096)}}  # it is seldom full
    if "qkv" in fusion.options and "qkv" not in chosen:
        how |= cf.best_options(fusion, model, 1, dtype, among=DATAFLOWS, **how)
    return how


def launches(
    model: cf.ModelConfig, weights: Mapping[str, Tensor], caches: Sequence[tuple[Tensor, Tensor]], state: State,
    runners: Mapping[str, Runner],
) -> list[Launch]:  # fmt: skip
    """The step, in order. Every tensor is bound here once; nothing is looked up or allocated later."""
    at = {"pos": state.length, "length": state.length, "cos": state.cos, "sin": state.sin}  # the token's position: how many came before
    step = [_launch("embedding", None, runners, {"token": state.token, "table": weights[EMBEDDING], "y": state.x})]
    x, h = state.x, state.h  # a layer leaves its result in x, one that is a single kernel in the other buffer
    for layer, (k, v) in enumerate(caches):
        attention = {**attention_weights(model, weights, layer), **at, "cache_k": k, "cache_v": v}
        feed_forward = ffn_weights(weights, layer)
        if "decoder_layer" in runners:
            both = {**feed_forward, **attention, FFN_NORM: feed_forward["norm"]}
            step.append(_launch("decoder_layer", layer, runners, {**both, "x": x, "y": h}))
            x, h = h, x
        else:
            step.append(_launch("attention_block", layer, runners, {**attention, "x": x, "y": h}))
            step.append(_launch("ffn_block", layer, runners, {**feed_forward, "x": h, "y": x}))
    head = {"x": x, "norm": weights[FINAL_NORM], "w_head": weights[head_name(model)]}
    step.append(_launch("lm_head", None, runners, {**head, "token": state.next_token, "logits": state.logits}))
    return step


def _launch(name: str, layer: int | None, runners: Mapping[str, Runner], tensors: Mapping[str, Tensor]) -> Launch:
    kernel = runners[name]
    return Launch(name, layer, kernel, tuple(tensors[arg.name] for arg in kernel.args))
