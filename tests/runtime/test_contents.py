"""Lengths and positions that a kernel would clamp, told from plans of the shipped block and tensors on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cfdsl as cf
from cfdsl.compiler.config import Config
from cfdsl.compiler.plan import KernelPlan
from cfdsl.compiler.schedule import schedule
from cfdsl.errors import CacheFull, LengthOutOfRange
from cfdsl.runtime.contents import content_errors
from fusions.attention_block import attention_block
from fusions.embedding import embedding
from fusions.rms_norm import rms_norm

MODEL = "smollm2-135m"
CAPACITY, POSITIONS = 12, 20


def plan_of(**options: Any) -> KernelPlan:
    placed = cf.place(attention_block.trace(MODEL, **options), cf.Mesh(3, 2))
    return schedule(placed, Config(clusters=3, cluster_size=2, stages=4))


def tensors(length: int, pos: int, layout: str = "bhtd") -> dict[str, torch.Tensor]:
    shape = (1, 3, CAPACITY, 64) if layout == "bhtd" else (1, CAPACITY, 3, 64)
    return {
        "length": torch.tensor([length], dtype=torch.int32),
        "pos": torch.tensor([pos], dtype=torch.int32),
        "cos": torch.zeros(POSITIONS, 32),
        "cache_k": torch.zeros(shape),
    }


@pytest.mark.parametrize("options", [{}, {"qkv": "rows"}, {"layout": "bthd"}, {"qkv": "rows", "out": "atomic"}], ids=str)
def test_what_is_in_range_passes(options: dict[str, str]) -> None:
    plan = plan_of(**options)
    for length, pos in ((0, 0), (CAPACITY - 1, POSITIONS - 1), (3, 7)):
        assert content_errors(plan, tensors(length, pos, options.get("layout", "bhtd"))) == []


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
@pytest.mark.parametrize(
    ("length", "message"),
    [
        (-1, "argument 'length' is -1, outside of 0 to 11.\n  remedy: pass the number of tokens that the cache holds before the call."),
        (CAPACITY + 1, "argument 'length' is 13, outside of 0 to 11."),
        (CAPACITY, "the cache 'cache' is full: it holds 12 of 12 tokens and a call appends one.\n  remedy: allocate a larger cache"),
    ],
)
def test_lengths(layout: str, length: int, message: str) -> None:
    (found,) = content_errors(plan_of(layout=layout), tensors(length, 0, layout))
    assert str(found).startswith(message)
    assert type(found) is (CacheFull if length == CAPACITY else LengthOutOfRange)


@pytest.mark.parametrize("pos", [-1, POSITIONS])
def test_positions(pos: int) -> None:
    (found,) = content_errors(plan_of(), tensors(0, pos))
    assert str(found) == (
        f"argument 'pos' is {pos}, outside of 0 to 19.\n  remedy: pass the new token's row of 'cos', or make the tables longer."
    )


def test_all_at_once() -> None:
    assert [type(error) for error in content_errors(plan_of(), tensors(CAPACITY, -4))] == [CacheFull, LengthOutOfRange]


def test_what_is_not_given_is_left_out() -> None:
    given = tensors(CAPACITY, POSITIONS)
    assert [type(error) for error in content_errors(plan_of(), {n: t for n, t in given.items() if n != "cos"})] == [CacheFull]
    assert [type(error) for error in content_errors(plan_of(), {n: t for n, t in given.items() if n != "cache_k"})] == [LengthOutOfRange]


def test_a_kernel_without_lengths_has_none_to_check() -> None:
    plan = schedule(cf.place(rms_norm.trace(MODEL), cf.Mesh(1, 2)), Config(clusters=1, cluster_size=2, stages=0))
    assert content_errors(plan, {"x": torch.zeros(1, 576)}) == []


def test_tokens() -> None:
    plan = schedule(cf.place(embedding.trace(MODEL), cf.Mesh(4, 1)), Config(clusters=4, cluster_size=1, stages=0))
    rows = cf.PRESETS[MODEL].vocab
    for token in (0, rows - 1):
        assert content_errors(plan, {"token": torch.tensor([token])}) == []
    for token in (-1, rows):
        (found,) = content_errors(plan, {"token": torch.tensor([token])})
        assert str(found) == f"argument 'token' is {token}, outside of 0 to {rows - 1}.\n  remedy: pass a row of the table."
