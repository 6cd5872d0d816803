"""The torch op of a kernel, without a GPU: schema, fake implementation, and what torch.compile makes of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cfdsl.compiler.plan import Arg
from cfdsl.errors import ArgumentError, Errors
from cfdsl.runtime import from_lowered, torch_op
from cfdsl.runtime.kernel import Kernel

pytestmark = pytest.mark.compile


@pytest.fixture
def kernel(lower: Callable[..., Any]) -> Kernel:
    return from_lowered(lower())


def tensors(device: str = "cpu") -> dict[str, torch.Tensor]:
    shapes = {"x": (1, 64), "w": (64,), "cache_k": (1, 2, 7, 64), "y": (1, 64)}
    return {name: torch.zeros(shape, dtype=torch.bfloat16, device=device) for name, shape in shapes.items()}


def test_schema_names_what_is_mutated() -> None:
    specs = (
        Arg("x", (1,), "f32", "input"),
        Arg("c_k", (1,), "f32", "cache", mutated=True),
        Arg("lambda", (1,), "f32", "output", mutated=True),
        *(Arg(name, (1,), "f32", "input") for name in ("self", "Ellipsis", "NoneType")),
    )
    text = "f_0(Tensor x, Tensor(a!) c_k, Tensor(b!) lambda_, Tensor self_, Tensor Ellipsis_, Tensor NoneType_) -> ()"
    assert torch_op.schema("f_0", specs) == text
    torch._C.parse_schema(f"cfdsl::{text}")


def test_the_op_leaves_workspaces_out(kernel: Kernel) -> None:
    assert str(kernel.op._schema) == f"cfdsl::{kernel.name}(Tensor x, Tensor w, Tensor(a!) cache_k, Tensor(b!) y) -> ()"
    assert kernel.name.startswith("scale_")
    assert torch.Tag.needs_exact_strides in kernel.op.tags


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors_go_through_the_fake_implementation(kernel: Kernel, device: str) -> None:
    with FakeTensorMode():
        assert kernel(*tensors(device).values()) is None
        assert kernel(**tensors(device)) is None
        with pytest.raises(ArgumentError, match="argument 'w' must be a bfloat16 tensor of shape"):
            kernel(**{**tensors(device), "w": torch.zeros(64, device=device)})


def test_fake_tensors_outside_of_their_mode_are_not_launched(kernel: Kernel) -> None:
    with FakeTensorMode():
        fakes = tensors("cuda")
    assert kernel(**fakes) is None


def test_meta_tensors(kernel: Kernel) -> None:
    assert kernel(**tensors("meta")) is None
    with pytest.raises(Errors, match="'cache_k'"):
        kernel(**{name: value.float() for name, value in tensors("meta").items()})


def test_torch_compile_makes_one_graph_with_the_op_in_it(kernel: Kernel) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def step(x: torch.Tensor, w: torch.Tensor, cache_k: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        kernel(x * 2, w, y=y, cache_k=cache_k)
        return y + 1

    with pytest.raises(Errors, match="argument 'x' must be a tensor on a cuda device, got one on cpu"):
        step(*tensors().values())
    assert [node.target for node in graphs[0].graph.nodes if node.op == "call_function"].count(kernel.op) == 1


def test_functionalisation_sees_the_mutations(kernel: Kernel) -> None:
    """Through AOTAutograd the op becomes its functional form, and both mutated arguments come back as results."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2

    graphs = []

    def inner(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        raise RuntimeError("seen")

    with pytest.raises(Exception, match="seen"):
        torch.compile(lambda *args: kernel(*args), fullgraph=True, backend=aot_autograd(fw_compiler=inner))(*tensors().values())
    (output,) = graphs[0].graph.find_nodes(op="output")
    assert len(output.args[0]) == 2
    functional = {node.target for node in graphs[0].graph.find_nodes(op="call_function", target=auto_functionalized_v2)}
    assert functional == {auto_functionalized_v2}


def test_a_plain_cpu_call_explains_itself(kernel: Kernel) -> None:
    with pytest.raises(Errors) as caught:
        kernel(**tensors())
    assert [error.argument for error in caught.value.errors] == ["x", "w", "cache_k", "y"]
    assert caught.value.__context__ is None
