"""Type rules of slices and views."""

from __future__ import annotations

from math import prod

from cfdsl.dsl.graph import Dim, Type
from cfdsl.dsl.type_rules.call import Call, Rule, dim_of, is_cache, show
from cfdsl.errors import ArgumentError, ShardDoesNotDivide, is_whole


def _slice_grid(call: Call) -> tuple[Type, ...]:
    size = _sliceable(call)
    if call.over is None or size % call.over:
        parts, axis = call.over or 0, "work units"
        advice = "write clusters(over=) with a number of units that divides it"
        raise ShardDoesNotDivide(op="x[axis]", dim=call.attrs["dim"], size=size, parts=parts, axis=axis, advice=advice, src=call.src)
    return (call.args[0].type,)


def _slice_cluster(call: Call) -> tuple[Type, ...]:
    if is_cache(call.args[0]):
        raise ArgumentError(argument="x", expected="a tensor value in shard", got="a kv_cache", src=call.src)
    _sliceable(call)
    return (call.args[0].type,)


def _sliceable(call: Call) -> int:
    shape, dim = call.shape(0), call.attrs["dim"]
    size = shape[dim_of(call, dim, shape)]
    if not isinstance(size, int):
        raise call.mismatch("a dimension of known size", f"dimension {dim} of {show(shape)}")
    return size


def _split_heads(call: Call) -> tuple[Type, ...]:
    (of,), heads, dim = (arg.type for arg in call.args), call.attrs["heads"], call.attrs["dim"]
    if not is_whole(heads, 1):
        raise ArgumentError(argument="heads", expected="a positive number", got=repr(heads), src=call.src)
    size = of.shape[dim_of(call, dim, of.shape)]
    if len(of.shape) > 2 or not isinstance(size, int) or size % heads:
        raise call.mismatch(f"{heads} heads to divide dimension {dim} of a vector or matrix", show(of.shape))
    return (Type((*of.shape[:dim], heads, size // heads, *of.shape[dim + 1 :]), of.dtype),)


def _merge_heads(call: Call) -> tuple[Type, ...]:
    call.floats("x")
    batch, heads, dim = call.rank(0, "x", "batch, heads, dim")
    if not isinstance(heads, int) or not isinstance(dim, int):
        raise call.mismatch("heads of known number and size", show(call.shape(0)))
    return (Type((batch, heads * dim), call.args[0].type.dtype),)


def _split(call: Call) -> tuple[Type, ...]:
    call.floats("x")
    (of,), sizes = (arg.type for arg in call.args), call.attrs["sizes"]
    dim = dim_of(call, call.attrs["dim"], of.shape)
    whole = all(isinstance(size, int) and size > 0 for size in sizes)
    if not sizes or not whole or sum(sizes) != of.shape[dim]:
        raise call.mismatch(f"sizes that add up to dimension {dim} of {show(of.shape)}", " + ".join(map(str, sizes)))
    return tuple(Type((*of.shape[:dim], size, *of.shape[dim + 1 :]), of.dtype) for size in sizes)


def _concat(call: Call) -> tuple[Type, ...]:
    call.floats(*(f"xs[{i}]" for i in range(len(call.args))))
    first = call.args[0].type
    dim = dim_of(call, call.attrs["dim"], first.shape)
    rests = {arg.type.shape[:dim] + arg.type.shape[dim + 1 :] for arg in call.args}
    sizes = [arg.type.shape[dim] for arg in call.args if len(arg.type.shape) > dim]
    if len(rests) != 1 or len(sizes) != len(call.args) or not all(isinstance(size, int) for size in sizes):
        got = " and ".join(show(arg.type.shape) for arg in call.args)
        raise call.mismatch(f"shapes that are equal but for dimension {dim}", got)
    total = sum(size for size in sizes if isinstance(size, int))
    dtypes = {arg.type.dtype for arg in call.args}
    return (Type((*first.shape[:dim], total, *first.shape[dim + 1 :]), first.dtype if len(dtypes) == 1 else "f32"),)


def _reshape(call: Call) -> tuple[Type, ...]:
    call.floats("x")
    of, shape = call.args[0].type, call.attrs["shape"]
    if _count(of.shape) != _count(shape):
        raise call.mismatch(f"a shape of as many elements as {show(of.shape)}", show(shape))
    return (Type(shape, of.dtype),)


def _count(shape: tuple[Dim, ...]) -> int:
    return prod(dim if isinstance(dim, int) and dim > 0 else -1 for dim in shape)


def _item(call: Call) -> tuple[Type, ...]:
    return (call.args[0].types[call.attrs["index"]],)


RULES: dict[str, Rule] = {
    "slice_grid": _slice_grid,
    "slice_cluster": _slice_cluster,
    "split_heads": _split_heads,
    "merge_heads": _merge_heads,
    "split": _split,
    "concat": _concat,
    "reshape": _reshape,
    "item": _item,
}
