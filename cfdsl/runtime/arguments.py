"""The arguments of a kernel call, explained: run when a call was refused, never before one.

The compiled function checks count, dtype, rank, sizes, strides, device and alignment itself, in a fraction of a microsecond, but names
one argument by number, or none. Here all of them are looked at, and every one that is wrong is named with what was expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from cfdsl.compiler.plan import Arg
from cfdsl.errors import ArgumentError, raise_all

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "i32": torch.int32, "i64": torch.int64}


def in_order(specs: Sequence[Arg], args: Sequence[Any], kwargs: Mapping[str, Any], device_type: str = "cuda") -> tuple[Any, ...]:
    """Positional and named arguments as one tuple in calling order.

    Raises for missing, unexpected and doubly given names, and then for every argument that is there and wrong too.
    """
    given = {spec.name: value for spec, value in zip(specs, args)} | dict(kwargs)
    if len(args) + len(kwargs) != len(specs) or given.keys() != {spec.name for spec in specs}:
        raise_all(call_errors(specs, args, kwargs, device_type))
    return tuple(given[spec.name] for spec in specs)


def call_errors(
    specs: Sequence[Arg], args: Sequence[Any], kwargs: Mapping[str, Any], device_type: str = "cuda", *, some: bool = False
) -> list[ArgumentError]:
    """Every mistake of a call: names first, then each argument in calling order, missing or wrong. `some`: none need be there."""
    names = [spec.name for spec in specs]
    errors = []
    if len(args) > len(names):
        count = f"{len(names)} arguments ({', '.join(names)})"
        errors.append(ArgumentError(argument="*args", expected=count, got=f"{len(args)} of them"))
    for name in kwargs:
        if name not in names:
            errors.append(ArgumentError(argument=name, expected=f"one of {', '.join(names)}", got="an unknown name"))
        elif name in names[: len(args)]:
            errors.append(ArgumentError(argument=name, expected="given once", got="a value by position and one by name"))
    values = {**kwargs, **dict(zip(names, args))}
    return errors + _value_errors([spec for spec in specs if not some or spec.name in values], values, device_type)


def describe(spec: Arg) -> str:
    """An argument in words: dtype and shape, as an error says what was expected."""
    shape = ", ".join(map(str, spec.shape)) + ("," if len(spec.shape) == 1 else "")
    dtype = _short(DTYPES[spec.dtype])
    return f"{'an' if dtype[0] in 'aeiou' else 'a'} {dtype} tensor of shape ({shape})"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_arguments(specs: Sequence[Arg], args: Sequence[Any], device_type: str = "cuda") -> None:
    """Raise one error that lists every argument which the kernel cannot take; return if there is none.

    `args` are in calling order, without workspaces. `device_type` "meta" leaves devices, strides and storage out: shapes only.
    """
    raise_all(call_errors(specs, args, {}, device_type))


def _value_errors(specs: Sequence[Arg], values: Mapping[str, Any], device_type: str) -> list[ArgumentError]:
    errors: list[ArgumentError] = []
    sizes: dict[str, tuple[int, str]] = {}
    devices: dict[str, torch.device] = {}
    for spec in specs:
        faults = _faults(spec, values[spec.name], sizes, devices, device_type) if spec.name in values else [(describe(spec), "nothing")]
        errors += [ArgumentError(argument=spec.name, expected=expected, got=got) for expected, got in faults]
    return errors


def _faults(
    spec: Arg, value: Any, sizes: dict[str, tuple[int, str]], devices: dict[str, torch.device], device_type: str
) -> Iterator[tuple[str, str]]:
    if not isinstance(value, torch.Tensor):
        yield describe(spec), "None" if value is None else f"a {type(value).__name__}"
        return
    if value.dtype != DTYPES[spec.dtype]:
        yield describe(spec), f"dtype {_short(value.dtype)}"
    wrong = _wrong_shape(spec, value, sizes)
    if wrong:
        yield wrong
    if device_type == "meta":
        return
    if value.device.type != device_type:
        yield f"a tensor on a {device_type} device", f"one on {value.device}"
        return
    first_name, first = next(iter(devices.items()), (spec.name, value.device))
    if value.device != first:
        yield f"a tensor on {first}, like {first_name!r}", f"one on {value.device}"
    devices.setdefault(spec.name, value.device)
    if not value.is_contiguous():
        yield "a contiguous tensor (row-major, without gaps)", f"strides {value.stride()}"
    elif value.numel() and (past := value.data_ptr() % spec.align):
        yield f"a tensor aligned to {spec.align} bytes", f"storage {past} bytes past such an address"


def _wrong_shape(spec: Arg, value: torch.Tensor, sizes: dict[str, tuple[int, str]]) -> tuple[str, str] | None:
    shape = tuple(value.shape)
    if len(shape) != len(spec.shape) or any(isinstance(want, int) and want != got for want, got in zip(spec.shape, shape)):
        return describe(spec), f"shape {shape}"
    for want, got in zip(spec.shape, shape):
        if isinstance(want, str):
            size, name = sizes.setdefault(want, (got, spec.name))
            if size != got:
                return f"{describe(spec)} with {want} = {size}, as in {name!r}", f"shape {shape}"
    return None
