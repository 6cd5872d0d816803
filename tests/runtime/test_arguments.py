from __future__ import annotations

from typing import Any

import pytest
import torch

from cfdsl.compiler.plan import Arg
from cfdsl.errors import ArgumentError, Errors
from cfdsl.runtime.arguments import check_arguments, describe, in_order

SPECS = (
    Arg("x", (1, 64), "bf16", "input"),
    Arg("cache_k", (1, 2, "tokens", 64), "bf16", "cache", mutated=True),
    Arg("cache_v", (1, 2, "tokens", 64), "bf16", "cache", mutated=True),
    Arg("pos", (1,), "i32", "input", align=4),
)


def good() -> dict[str, torch.Tensor]:
    cache = torch.zeros(2, 1, 2, 7, 64, dtype=torch.bfloat16)
    return {
        "x": torch.zeros(1, 64, dtype=torch.bfloat16),
        "cache_k": cache[0],
        "cache_v": cache[1],
        "pos": torch.zeros(1, dtype=torch.int32),
    }


def complaints(**changes: Any) -> list[str]:
    """The messages for `good()` with changes, all on the CPU."""
    try:
        check_arguments(SPECS, tuple({**good(), **changes}.values()), device_type="cpu")
    except Errors as many:
        return [error.message for error in many.errors]
    except ArgumentError as one:
        return [one.message]
    return []


def misaligned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    flat = torch.zeros(int(torch.tensor(shape).prod()) + 64, dtype=dtype)
    start = 1 + (-flat.data_ptr() // flat.element_size()) % (16 // flat.element_size())
    return flat[start : start + torch.Size(shape).numel()].view(shape)


def test_good_arguments_pass() -> None:
    assert complaints() == []
    assert complaints(cache_k=torch.zeros(1, 2, 0, 64, dtype=torch.bfloat16), cache_v=torch.zeros(1, 2, 0, 64, dtype=torch.bfloat16)) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", None, "argument 'x' must be a bfloat16 tensor of shape (1, 64), got None."),
        ("pos", 3, "argument 'pos' must be an int32 tensor of shape (1,), got a int."),
        ("x", torch.zeros(1, 64), "argument 'x' must be a bfloat16 tensor of shape (1, 64), got dtype float32."),
        ("x", torch.zeros(64, dtype=torch.bfloat16), "argument 'x' must be a bfloat16 tensor of shape (1, 64), got shape (64,)."),
        ("x", torch.zeros(1, 65, dtype=torch.bfloat16), "argument 'x' must be a bfloat16 tensor of shape (1, 64), got shape (1, 65)."),
        (
            "cache_v",
            torch.zeros(1, 2, 8, 64, dtype=torch.bfloat16),
            "argument 'cache_v' must be a bfloat16 tensor of shape (1, 2, tokens, 64) with tokens = 7, as in 'cache_k', "
            "got shape (1, 2, 8, 64).",
        ),
        (
            "cache_k",
            torch.zeros(1, 2, 9, 64, dtype=torch.bfloat16)[:, :, :7],
            "argument 'cache_k' must be a contiguous tensor (row-major, without gaps), got strides (1152, 576, 64, 1).",
        ),
        (
            "x",
            misaligned((1, 64), torch.bfloat16),
            "argument 'x' must be a tensor aligned to 16 bytes, got storage 2 bytes past such an address.",
        ),
        ("x", torch.zeros(1, 64, dtype=torch.bfloat16, device="meta"), "argument 'x' must be a tensor on a cpu device, got one on meta."),
    ],
)
def test_one_bad_argument_is_named_with_what_was_expected(name: str, value: Any, message: str) -> None:
    assert complaints(**{name: value}) == [message]


def test_all_bad_arguments_are_listed_at_once() -> None:
    found = complaints(x=torch.zeros(1, 64), cache_v=None, pos=torch.zeros(2, dtype=torch.int64))
    assert [message.split("'")[1] for message in found] == ["x", "cache_v", "pos", "pos"]


def test_shapes_only_for_meta_tensors() -> None:
    fine = [value.to("meta") for value in good().values()]
    check_arguments(SPECS, fine, device_type="meta")
    with pytest.raises(ArgumentError, match="'x'"):
        check_arguments(SPECS, [fine[0].float(), *fine[1:]], device_type="meta")


def test_named_arguments_are_put_in_order() -> None:
    assert in_order(SPECS, (1, 2), {"pos": 4, "cache_v": 3}) == (1, 2, 3, 4)


def test_wrong_names_are_all_reported() -> None:
    with pytest.raises(Errors) as caught:
        in_order(SPECS, (1,), {"x": 1, "cach_k": 2, "cache_v": 3})
    assert [error.message for error in caught.value.errors] == [
        "argument 'x' must be given once, got a value by position and one by name.",
        "argument 'cach_k' must be one of x, cache_k, cache_v, pos, got an unknown name.",
        "argument 'x' must be a bfloat16 tensor of shape (1, 64), got a int.",
        "argument 'cache_k' must be a bfloat16 tensor of shape (1, 2, tokens, 64), got nothing.",
        "argument 'cache_v' must be a bfloat16 tensor of shape (1, 2, tokens, 64), got a int.",
        "argument 'pos' must be an int32 tensor of shape (1,), got nothing.",
    ]


def test_what_is_missing_does_not_hide_what_is_wrong() -> None:
    given = {**good(), "x": torch.zeros(1, 64), "cache_k": torch.zeros(1, 2, 6, 64, dtype=torch.bfloat16)}
    del given["pos"]
    with pytest.raises(Errors) as caught:
        in_order(SPECS, (), given, "cpu")
    assert [error.message for error in caught.value.errors] == [
        "argument 'x' must be a bfloat16 tensor of shape (1, 64), got dtype float32.",
        "argument 'cache_v' must be a bfloat16 tensor of shape (1, 2, tokens, 64) with tokens = 6, as in 'cache_k', "
        "got shape (1, 2, 7, 64).",
        "argument 'pos' must be an int32 tensor of shape (1,), got nothing.",
    ]


def test_too_many_positional_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"4 arguments \(x, cache_k, cache_v, pos\), got 5 of them"):
        in_order(SPECS, (*good().values(), 5), {}, "cpu")


def test_describe() -> None:
    assert describe(Arg("cos", ("positions", 32), "f32", "input")) == "a float32 tensor of shape (positions, 32)"
