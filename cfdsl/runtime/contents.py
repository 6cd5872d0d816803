"""Lengths, positions and tokens, looked at on the host: what a launch never does, and `Kernel.check` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from cfdsl.compiler.plan import KernelPlan
from cfdsl.dsl.graph import TOKENS_DIM
from cfdsl.errors import CacheFull, CfdslError, LengthOutOfRange


def content_errors(plan: KernelPlan, tensors: Mapping[str, torch.Tensor]) -> list[CfdslError]:
    """One error for every length, position and token in `tensors` that the kernel would clamp. Reads them, and so synchronises.

    tensors   a call's arguments by name; what is not among them is left out
    """
    return [*_lengths(plan, tensors), *_positions(plan, tensors), *_tokens(plan, tensors)]


def _lengths(plan: KernelPlan, tensors: Mapping[str, torch.Tensor]) -> Iterator[CfdslError]:
    """A cache that a call appends to must have room for one more token; another may be full."""
    uses = {(p["length"], p["cache"], p["layout"]): False for p in (step.params for step in plan.steps if step.op == "length")}
    uses |= {(p["length"], p["cache"].name, p["cache"].layout): True for p in (step.params for step in plan.steps if step.op == "append")}
    for (length, cache, layout), appends in uses.items():
        keys = tensors.get(f"{cache}_k")
        if length not in tensors or keys is None:
            continue
        capacity = keys.shape[TOKENS_DIM[layout]]
        for value in tensors[length].tolist():
            if appends and value == capacity:
                yield CacheFull(cache=cache, length=value, capacity=capacity)
            elif not 0 <= value <= capacity:
                yield LengthOutOfRange(argument=length, value=value, low=0, high=capacity - appends)


def _positions(plan: KernelPlan, tensors: Mapping[str, torch.Tensor]) -> Iterator[CfdslError]:
    for pos, cos in dict.fromkeys((step.params["pos"], step.params["cos"]) for step in plan.steps if step.op == "angles"):
        if pos in tensors and cos in tensors:
            rows = len(tensors[cos])
            for value in tensors[pos].tolist():
                if not 0 <= value < rows:
                    advice = f"pass the new token's row of {cos!r}, or make the tables longer"
                    yield LengthOutOfRange(argument=pos, value=value, low=0, high=rows - 1, advice=advice)


def _tokens(plan: KernelPlan, tensors: Mapping[str, torch.Tensor]) -> Iterator[CfdslError]:
    for token, rows in dict.fromkeys((step.params["token"], step.params["rows"]) for step in plan.steps if step.op == "index"):
        for value in tensors[token].tolist() if token in tensors else ():
            if not 0 <= value < rows:
                yield LengthOutOfRange(argument=token, value=value, low=0, high=rows - 1, advice="pass a row of the table")
