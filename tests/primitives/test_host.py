"""What the host works out in a launch, run on tensors of the host: gaps as torch sees them, places in a workspace."""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass.cute.runtime import make_fake_tensor
from cutlass.cute.typing import AddressSpace

from cfdsl.compiler.plan import Arg
from cfdsl.runtime.toolchain import fake_tensors
from primitives import host

pytestmark = pytest.mark.compile

ANSWER = Arg("out", (1,), "i32", "output")
TENSORS = torch.arange(2 * 3 * 4 * 8, dtype=torch.float32).view(2, 3, 4, 8)


@cute.jit
def ask(tensor: cute.Tensor, out: cute.Tensor):
    out[0] = host.gapless(tensor)


@cute.jit
def ask_both(first: cute.Tensor, second: cute.Tensor, out: cute.Tensor):
    out[0] = host.gapless(first, second)


@cute.jit
def take(workspace: cute.Tensor, tensor: cute.Tensor, out: cute.Tensor):
    ints = host.room(workspace, 0, cutlass.Int32, 8)
    floats = host.room(workspace, 128, cutlass.Float32, 32)
    vector = host.flat(tensor)
    out[0], out[1], out[2], out[3] = ints[7], floats[31].to(cutlass.Int32), vector[23].to(cutlass.Int32), cute.size(floats)


def compiled(function: Any, *args: Arg) -> Any:
    """For tensors of the host that are described as the runtime describes a kernel's arguments."""
    made = [on_the_host(tensor) for tensor in fake_tensors(args)]
    return cute.compile(function, *made, options="--enable-tvm-ffi")


def on_the_host(fake: Any) -> Any:
    return make_fake_tensor(fake.element_type, fake.shape, fake.stride, memspace=AddressSpace.generic, assumed_align=4)


@pytest.mark.parametrize(
    ("shape", "tensors"),
    [
        ((2, 3, "n", 8), [TENSORS, TENSORS[:, :, :3], TENSORS[:, :, :1], TENSORS[:, :, :0], TENSORS[:, :, :3].contiguous()]),
        ((1, 3, "n", 8), [TENSORS[:1], TENSORS[1:], TENSORS[:1, :, :3], TENSORS.as_strided((1, 3, 4, 8), (7, 32, 8, 1))]),
        ((2, 1, "n", 8), [TENSORS[:, :1], TENSORS[:, 2:].contiguous(), TENSORS[:, 1:2, :3]]),
        ((2, "n", 4, 8), [TENSORS, TENSORS[:, :2], TENSORS[:, :1], TENSORS[:, :0]]),
        (("n", "m", 8), [TENSORS[0], TENSORS[0, :, :1], TENSORS[0, :1, :2], TENSORS[0, ::2], TENSORS[0, :0], TENSORS[0, :, :0]]),
    ],
    ids=str,
)
def test_gaps_are_told_as_torch_tells_them(shape: tuple[int | str, ...], tensors: list[Any]) -> None:
    function = compiled(ask, Arg("t", shape, "f32", "cache"), ANSWER)
    found = []
    for tensor in tensors:
        out = torch.full((1,), -1, dtype=torch.int32)
        function(tensor, out)
        found.append(bool(out.item()))
        assert out.item() in (0, 1)
    assert found == [tensor.is_contiguous() for tensor in tensors]
    assert len(set(found)) == 2, "a row of this table must show both answers"


def test_one_tensor_with_gaps_is_enough() -> None:
    function = compiled(ask_both, *(Arg(name, (2, "n", 8), "f32", "cache") for name in "kv"), ANSWER)
    whole, gap = TENSORS[0, :2, :3].contiguous(), TENSORS[0, :2, :3]
    for first, second, answer in ((whole, whole, 1), (gap, whole, 0), (whole, gap, 0), (gap, gap, 0)):
        out = torch.full((1,), -1, dtype=torch.int32)
        function(first, second, out)
        assert out.item() == answer


def test_places_in_a_workspace_and_vectors() -> None:
    workspace, out = torch.arange(64, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    workspace[32:] = torch.arange(100, 132, dtype=torch.float32).view(torch.int32)
    matrix, four = Arg("t", (3, 8), "f32", "weight"), Arg("out", (4,), "i32", "output")
    compiled(take, Arg("ws", (64,), "i32", "workspace"), matrix, four)(workspace, TENSORS[0, 0, :3], out)
    assert out.tolist() == [7, 131, 23, 32]
