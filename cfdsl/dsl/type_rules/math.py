"""Type rules of arithmetic."""

from __future__ import annotations

from cfdsl.dsl.graph import FLOATS, Dim, Type
from cfdsl.dsl.type_rules.call import Call, Rule, number, show
from cfdsl.errors import ArgumentError, listed


def _pointwise(call: Call) -> tuple[Type, ...]:
    call.floats("a", "b")
    call.one_16_bit_dtype("a", "b")
    return (Type(broadcast(call, call.shape(0), call.shape(1)), "f32"),)


def broadcast(call: Call, a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of a pointwise result: aligned at the last dimension, sizes equal or 1."""
    size = max(len(a), len(b))
    wide_a, wide_b = (1,) * (size - len(a)) + a, (1,) * (size - len(b)) + b
    if any(x != y and 1 not in (x, y) for x, y in zip(wide_a, wide_b)):
        raise call.mismatch("equal shapes (or dimensions of size 1)", f"{show(a)} and {show(b)}")
    return tuple(y if x == 1 else x for x, y in zip(wide_a, wide_b))


def _activation(call: Call) -> tuple[Type, ...]:
    call.floats("x")
    return (Type(call.shape(0), "f32"),)


def _cast(call: Call) -> tuple[Type, ...]:
    call.floats("x")
    if call.attrs["dtype"] not in FLOATS:
        raise ArgumentError(argument="dtype", expected=listed(map(repr, FLOATS)), got=repr(call.attrs["dtype"]), src=call.src)
    return (Type(call.shape(0), call.attrs["dtype"]),)


def _linear(call: Call) -> tuple[Type, ...]:
    call.floats("x", "w", "bias")
    call.one_16_bit_dtype("x", "w", "bias")
    if call.attrs["shard"] not in (None, "out", "in"):
        raise ArgumentError(argument="shard", expected="None, 'out' or 'in'", got=repr(call.attrs["shard"]), src=call.src)
    batch, inner = call.rank(0, "x", "batch, in")
    w = call.shape(1)
    if len(w) not in (2, 3):
        raise call.mismatch("w of shape (out, in) or (heads, dim, in)", show(w))
    if w[-1] != inner:
        raise call.mismatch(f"x and w with equal last dimensions (x is {show(call.shape(0))})", f"w of {show(w)}")
    if len(call.args) == 3 and call.shape(2) != w[:-1]:
        raise call.mismatch(f"a bias of shape {show(w[:-1])}", show(call.shape(2)))
    return (Type((batch, *w[:-1]), "f32"),)


def _rms_norm(call: Call) -> tuple[Type, ...]:
    call.floats("x", "weight", "mean_square")
    number(call, "eps", "a finite number that is not negative", lambda eps: eps >= 0)
    call.one_16_bit_dtype("x", "weight")
    batch, hidden = call.rank(0, "x", "batch, hidden")
    if call.shape(1) != (hidden,):
        raise call.mismatch(f"a weight of shape {show((hidden,))}", show(call.shape(1)))
    if len(call.args) == 3 and call.shape(2) != (batch, 1):
        raise call.mismatch(f"a mean_square of shape {show((batch, 1))}", show(call.shape(2)))
    return (Type((batch, hidden), "f32"),)


def _mean_square(call: Call) -> tuple[Type, ...]:
    call.floats("x")
    batch, _ = call.rank(0, "x", "batch, hidden")
    return (Type((batch, 1), "f32"),)


RULES: dict[str, Rule] = {
    "add": _pointwise,
    "mul": _pointwise,
    "silu": _activation,
    "gelu": _activation,
    "cast": _cast,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "mean_square": _mean_square,
}
