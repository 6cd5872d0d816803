"""Type rules of inputs, weights and caches: their types are declared, and checked."""

from __future__ import annotations

from cfdsl.dsl.graph import FLOATS, ITEMSIZE, Type
from cfdsl.dsl.type_rules.call import Call, Rule, show
from cfdsl.errors import ArgumentError, is_whole, listed


def _input(call: Call) -> tuple[Type, ...]:
    return _leaf(call, tuple(ITEMSIZE))


def _weight(call: Call) -> tuple[Type, ...]:
    (declared,) = _leaf(call, FLOATS)
    if len(declared.shape) not in (1, 2) or not all(isinstance(dim, int) for dim in declared.shape):
        raise call.mismatch(f"the shape of weight {call.attrs['name']!r} to be (n,) or (out, in)", show(declared.shape))
    return (declared,)


def _kv_cache(call: Call) -> tuple[Type, ...]:
    (declared,) = _leaf(call, FLOATS)
    if len(declared.shape) != 4:
        raise call.mismatch("a cache of shape (batch, heads, tokens, dim)", show(declared.shape))
    if call.attrs["layout"] not in ("bhtd", "bthd"):
        raise ArgumentError(argument="layout", expected="'bhtd' or 'bthd'", got=repr(call.attrs["layout"]), src=call.src)
    return (declared,)


def _leaf(call: Call, dtypes: tuple[str, ...]) -> tuple[Type, ...]:
    name = call.attrs["name"]
    if not (isinstance(name, str) and name.isidentifier()):
        raise ArgumentError(argument="name", expected="a Python identifier", got=repr(name), src=call.src)
    (declared,) = call.declared
    if declared.dtype not in dtypes:
        raise ArgumentError(argument="dtype", expected=listed(map(repr, dtypes)), got=repr(declared.dtype), src=call.src)
    for dim in declared.shape:
        named = isinstance(dim, str) and dim.isidentifier()
        if not named and not is_whole(dim, 1):
            raise ArgumentError(argument="shape", expected="positive sizes or names", got=show(declared.shape), src=call.src)
    return call.declared


RULES: dict[str, Rule] = {
    "input": _input,
    "weight": _weight,
    "kv_cache": _kv_cache,
}
