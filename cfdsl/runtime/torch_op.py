"""Kernels as torch ops: `cfdsl::<fusion>_<hash>`, with a schema that names the mutated arguments, and a fake implementation."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cfdsl.compiler.plan import Arg
from cfdsl.runtime.arguments import check_arguments

NAMESPACE = "cfdsl"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_ops: dict[str, Any] = {}
NOT_IN_A_SCHEMA = ("self", "Ellipsis", "NoneType")  # names that torch's parser of schemas keeps for itself


def schema(name: str, args: Sequence[Arg]) -> str:
    """The op's schema: tensors in calling order, those that the kernel writes marked as mutated, no result."""
    alias = iter("abcdefghijklmnopqrstuvwxyz")
    params = [f"Tensor({next(alias)}!) {_param(arg)}" if arg.mutated else f"Tensor {_param(arg)}" for arg in args]
    return f"{name}({', '.join(params)}) -> ()"


def _param(arg: Arg) -> str:
    return f"{arg.name}_" if keyword.iskeyword(arg.name) or arg.name in NOT_IN_A_SCHEMA else arg.name


def register(name: str, args: Sequence[Arg], run: Callable[[tuple[torch.Tensor, ...]], None]) -> Any:
    """Define `cfdsl::<name>` and return its OpOverload. `run` takes a tuple of the tensors in calling order; not on CUDA it only explains.

    The same name must mean the same kernel: a second registration replaces what the first one runs.
    """
    if name in _ops:
        _ops[name][1][0] = run
        return _ops[name][0]
    target = [run]

    def launch(*tensors: torch.Tensor) -> None:
        target[0](tensors)

    def fake(*tensors: torch.Tensor) -> None:
        check_arguments(args, tensors, device_type="meta")

    # Strides are part of the contract: without this tag, Inductor may hand over a transposed buffer.
    _library.define(schema(name, args), tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
    _library.impl(name, launch, "CUDA")
    _library.impl(name, launch, "CPU")
    _library.impl(name, fake, "Meta")  # FakeTensors use it too; register_fake would search all modules for its caller, in 10 ms
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    _ops[name] = (op, target)
    return op
