"""Bound launches, without a GPU: a stand-in for the compiled function says what it was given, in which order, and as what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cfdsl.errors import ArgumentError, Errors
from cfdsl.runtime import from_lowered
from cfdsl.runtime import kernel as kernel_module
from cfdsl.runtime.arguments import call_errors, check_arguments, in_order
from cfdsl.runtime.kernel import Kernel

pytestmark = pytest.mark.compile


class Launched(list[tuple[Any, ...]]):
    """What calls took. Refuses x of any size but 64, as the compiled function would."""

    def __call__(self, *tensors: Any) -> None:
        if tuple(tensors[0].shape) != (1, 64):
            raise ValueError("Mismatched x.shape[1] on argument #0")
        self.append(tensors)


@pytest.fixture
def launched() -> Launched:
    return Launched()


@pytest.fixture
def kernel(lower: Callable[..., Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch, launched: Launched) -> Kernel:
    """Checks are of tensors on the CPU; the workspace is one of them too."""
    kernel = from_lowered(lower())
    monkeypatch.setattr(kernel_module, "call_errors", lambda *given, **how: call_errors(*given, "cpu", **how))
    monkeypatch.setattr(kernel_module, "check_arguments", lambda *given: check_arguments(*given, "cpu"))
    monkeypatch.setattr(kernel_module, "in_order", lambda *given: in_order(*given, "cpu"))
    monkeypatch.setattr(kernel, "prepare", lambda index: None)
    kernel._function, kernel._workspace = launched, (torch.full((32,), 9, dtype=torch.int32),)
    return kernel


def tensors() -> dict[str, torch.Tensor]:
    """Each one full of its own number."""
    room = torch.zeros(128, dtype=torch.bfloat16)
    w = room[-room.data_ptr() % 128 // 2 :][:64]  # from an address that is a multiple of 128
    made = {"x": torch.zeros(1, 64), "w": w, "cache_k": torch.zeros(1, 2, 5, 64), "y": torch.zeros(1, 64)}
    return {name: tensor.to(torch.bfloat16).fill_(n) for n, (name, tensor) in enumerate(made.items())}


def numbers(given: tuple[Any, ...]) -> list[int]:
    """Which tensor came in which place; bound ones come as the launcher sees them."""
    return [int(torch.from_dlpack(tensor).flatten()[0]) for tensor in given]


@pytest.mark.parametrize(
    "bound", [(), ("w",), ("x",), ("cache_k", "w"), ("y", "x"), ("w", "cache_k", "y"), ("y", "cache_k", "x", "w")], ids=str
)
def test_every_tensor_comes_in_its_place(kernel: Kernel, launched: Launched, bound: tuple[str, ...]) -> None:
    given = tensors()
    rest = {name: tensor for name, tensor in given.items() if name not in bound}
    launch = kernel.bind(**{name: given[name] for name in bound})
    launch(*rest.values())
    launch(**dict(reversed(rest.items())))
    assert [numbers(call) for call in launched] == [[0, 1, 2, 3, 9]] * 2
    for call in launched:
        plain = {arg.name for arg, tensor in zip(kernel.args, call) if isinstance(tensor, torch.Tensor)}
        assert plain == set(rest) or (plain == {"x"} and not rest), "what is left out is given as it is; of a whole call x, for its stream"


def test_some_by_position(kernel: Kernel, launched: Launched) -> None:
    given = tensors()
    kernel.bind(given["x"], given["w"], y=given["y"])(given["cache_k"])
    assert numbers(launched[0]) == [0, 1, 2, 3, 9]


def test_what_is_wrong_is_told_when_it_is_bound(kernel: Kernel, launched: Launched) -> None:
    given = tensors()
    with pytest.raises(Errors) as caught:
        kernel.bind(given["x"], x=given["x"], y=given["y"].float(), cache=given["cache_k"])
    assert [error.message for error in caught.value.errors] == [
        "argument 'x' must be given once, got a value by position and one by name.",
        "argument 'cache' must be one of x, w, cache_k, y, got an unknown name.",
        "argument 'y' must be a bfloat16 tensor of shape (1, 64), got dtype float32.",
    ]


def test_what_is_wrong_with_a_launch_is_told_then(kernel: Kernel, launched: Launched) -> None:
    given = tensors()
    launch = kernel.bind(w=given["w"], cache_k=given["cache_k"])
    with pytest.raises(ArgumentError, match=r"argument 'x' must be a bfloat16 tensor of shape \(1, 64\), got shape \(1, 32\)"):
        launch(given["x"][:, :32], given["y"])
    with pytest.raises(ArgumentError, match="argument 'y' must be a bfloat16 tensor of shape .*, got nothing"):
        launch(given["x"])
    with pytest.raises(Errors, match=r"must be 2 arguments \(x, y\), got 3 of them"):
        launch(given["x"], given["w"], given["y"])
    with pytest.raises(Errors, match="argument 'w' must be one of x, y, got an unknown name"):
        launch(given["x"], w=given["w"])
    assert not launched


def test_an_error_that_is_none_of_the_arguments_is_passed_on(kernel: Kernel, launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*tensors: Any) -> None:
        raise RuntimeError("the GPU is gone")

    given = tensors()
    launch = kernel.bind(w=given["w"])
    kernel._function = broken
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        launch(given["x"], given["cache_k"], given["y"])
