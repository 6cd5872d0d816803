"""Type rules of rotary embedding, cache append and attention."""

from __future__ import annotations

from cfdsl.dsl.graph import FLOATS, Type
from cfdsl.dsl.type_rules.call import Call, Rule, appended, needs_cache, number, per_sequence, show
from cfdsl.errors import ArgumentError, TraceError


def _rope(call: Call) -> tuple[Type, ...]:
    call.floats("x")
    batch, heads, dim = call.rank(0, "x", "batch, heads, dim")
    x, cos, sin, pos = call.args
    rotary = call.attrs["rotary_dim"]
    if call.attrs["style"] not in ("half", "interleaved"):
        raise ArgumentError(argument="style", expected="'half' or 'interleaved'", got=repr(call.attrs["style"]), src=call.src)
    if not isinstance(dim, int) or not isinstance(rotary, int) or rotary % 2 or not 0 < rotary <= dim:
        raise ArgumentError(argument="rotary_dim", expected=f"an even number up to {dim}", got=repr(rotary), src=call.src)
    for arg, name in ((cos, "cos"), (sin, "sin")):
        call.dtype(arg, name, ("f32",))
        if len(arg.type.shape) != 2 or arg.type.shape[1] != rotary // 2:
            raise call.mismatch(f"{name} of shape (positions, {rotary // 2})", show(arg.type.shape))
    if sin.type.shape != cos.type.shape:  # one position is looked up in both
        raise call.mismatch(f"sin of the shape of cos, {show(cos.type.shape)}", show(sin.type.shape))
    per_sequence(call, pos, "pos", batch)
    return (Type((batch, heads, dim), "f32"),)


def _append(call: Call) -> tuple[Type, ...]:
    cache, k, v, at = call.args
    needs_cache(call, cache)
    batch, heads, _, dim = cache.type.shape
    for arg, name in ((k, "k"), (v, "v")):
        call.dtype(arg, name, FLOATS)
        if arg.type.shape != (batch, heads, dim):
            raise call.mismatch(f"{name} of shape {show((batch, heads, dim))}", show(arg.type.shape))
    per_sequence(call, at, "at", batch)
    if appended(cache):
        problem = "a cache is appended to twice"
        raise TraceError(problem=problem, advice="append one token per call of the kernel", src=call.src)
    return (cache.type,)


def _attend(call: Call) -> tuple[Type, ...]:
    call.floats("q")
    q, cache = call.args[:2]
    if call.attrs["scale"] is not None:
        number(call, "scale", "a finite number", lambda scale: True)
    needs_cache(call, cache)
    if call.attrs["shard"] not in (None, "tokens"):
        raise ArgumentError(argument="shard", expected="None or 'tokens'", got=repr(call.attrs["shard"]), src=call.src)
    if call.attrs["across"] not in ("cluster", "all"):
        raise ArgumentError(argument="across", expected="'cluster' or 'all'", got=repr(call.attrs["across"]), src=call.src)
    if call.attrs["across"] == "all" and call.attrs["shard"] != "tokens":
        expected = "'cluster' where the tokens are not sharded"
        raise ArgumentError(argument="across", expected=expected, got="'all'", advice="say shard='tokens' too", src=call.src)
    batch, heads, dim = call.rank(0, "q", "batch, heads, dim")
    cache_batch, kv_heads, _, cache_dim = cache.type.shape
    divides = isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads == 0
    if (batch, dim) != (cache_batch, cache_dim) or not divides:
        raise call.mismatch(f"a cache of batch {batch}, dim {dim} and a number of heads that divides {heads}", show(cache.type.shape))
    if appended(cache) and len(call.args) == 3:
        expected = "left out for a cache that was appended to (it ends with the appended token)"
        raise ArgumentError(argument="length", expected=expected, got="a value", advice="leave it out", src=call.src)
    if not appended(cache) and len(call.args) == 2:
        raise ArgumentError(
            argument="length", expected="the number of tokens in a cache that was not appended to", got="None", src=call.src
        )
    if len(call.args) == 3:
        per_sequence(call, call.args[2], "length", batch)
    return (Type((batch, heads, dim), "f32"),)


RULES: dict[str, Rule] = {
    "rope": _rope,
    "append": _append,
    "attend": _attend,
}
