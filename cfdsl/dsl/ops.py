"""The words of the language. Each records one node; its type rule is in `type_rules`, its placement rule in `place_rules`.

Shapes are logical (of the whole value, whoever holds it). Everything computed is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from cfdsl.dsl.graph import FLOATS, Dim, Src, Type
from cfdsl.dsl.source import user_line
from cfdsl.dsl.trace import Tracer, current, describe
from cfdsl.dsl.type_rules import is_cache, is_weight
from cfdsl.dsl.values import Axis, Outputs, Value
from cfdsl.dsl.word import word
from cfdsl.errors import ArgumentError, CfdslError, DuplicateName, TraceError

# ---- leaves ------------------------------------------------------------------------------------------------------------------------


@word
def input(name: str, shape: Sequence[Dim], dtype: str | None = None) -> Value:
    """A tensor argument of the kernel. dtype: f16, bf16, f32 or i32; the fusion's dtype if left out. A size may be a name."""
    return _leaf("input", name, shape, dtype)


@word
def weight(name: str, shape: Sequence[int], dtype: str | None = None) -> Value:
    """A weight as Hugging Face stores it: (out, in) of a linear, or (n,) of a norm or a bias."""
    return _leaf("weight", name, shape, dtype)


@word
def kv_cache(name: str, batch: int, heads: int, tokens: Dim, dim: int, layout: str = "bhtd", dtype: str | None = None) -> Value:
    """A contiguous key/value cache: two tensors `{name}_k` and `{name}_v`.

    Its logical shape is (batch, heads, tokens, dim) whatever the layout. tokens: the capacity, a name such as "tokens" if it is known
    only when tensors arrive. layout: the tensors' physical order, "bhtd" or "bthd".
    """
    return _leaf("kv_cache", name, (batch, heads, tokens, dim), dtype, {"layout": layout})


def _leaf(op: str, name: str, shape: Sequence[Dim], dtype: str | None, attrs: dict[str, Any] | None = None) -> Value:
    tracer = current(op)
    if not _is_several(shape):
        expected = "a tuple of positive sizes or names"
        return tracer.refuse(ArgumentError(argument="shape", expected=expected, got=describe(shape), src=user_line()))
    return tracer.leaf(op, name, Type(tuple(shape), tracer.dtype if dtype is None else dtype), attrs)


# ---- slices and views --------------------------------------------------------------------------------------------------------------


def slice_grid(x: Value, key: object) -> Value:
    """`x[axis]` or `x[:, axis]`: each cluster's slice. Replicated -> sharded on the grid, free."""
    tracer = current("x[axis]")
    if x.poisoned:  # it may stand for the results of a call whose number is not known
        return x
    keys = key if isinstance(key, tuple) else (key,)
    axes = [dim for dim, part in enumerate(keys) if isinstance(part, Axis)]
    if len(axes) != 1 or any(part != slice(None) for part in keys[: axes[0]] + keys[axes[0] + 1 :]):
        got = ", ".join(map(repr, keys))
        expected = "the axis of a clusters block, as in x[axis] or x[:, axis]"
        return tracer.refuse(ArgumentError(argument="index", expected=expected, got=got, src=user_line()))
    if tracer.axis is None:
        problem = "the axis of a clusters block is used outside of the block"
        return tracer.refuse(TraceError(problem=problem, advice="move the line into the block", src=user_line()))
    of_cache = is_cache(x.node)
    return tracer.value("slice_grid", (x,), {"dim": 1 if of_cache else axes[0]}, ("x",))


@word
def shard(x: Value, dim: int) -> Value:
    """Each rank of a cluster takes its slice along `dim`. Replicated -> sharded on the cluster, free."""
    return current("shard").value("slice_cluster", (x,), {"dim": _positive(x, dim)}, ("x",))


@word
def split_heads(x: Value, heads: int) -> Value:
    """A view by heads: a weight (H*D, in) -> (H, D, in) or (H*D,) -> (H, D); an activation (batch, H*D) -> (batch, H, D)."""
    tracer = current("split_heads")
    known = isinstance(x, Value) and not x.poisoned
    dim = 0 if known and (is_weight(x.node) or len(x.shape) == 1) else 1
    return tracer.value("split_heads", (x,), {"heads": heads, "dim": dim}, ("x",))


@word
def merge_heads(x: Value) -> Value:
    """A view: (batch, H, D) -> (batch, H*D)."""
    return current("merge_heads").value("merge_heads", (x,), {}, ("x",))


@word
def split(x: Value, sizes: Sequence[int], dim: int) -> tuple[Value, ...]:
    """Pieces of the given sizes along an unsharded dimension."""
    tracer = current("split")
    if not _is_several(sizes):
        return tracer.refuse(_no_list("sizes", sizes, "the sizes of all pieces"))  # type: ignore[return-value]
    sizes = tuple(sizes)
    return tracer.values("split", (x,), {"sizes": sizes, "dim": _positive(x, dim)}, len(sizes), ("x",))


@word
def concat(xs: Sequence[Value], dim: int) -> Value:
    """Values put together along an unsharded dimension."""
    tracer = current("concat")
    if not _is_several(xs):
        return tracer.refuse(_no_list("xs", xs, "one or several values"))
    if not xs:
        return tracer.refuse(ArgumentError(argument="xs", expected="one or several values", got="none", src=user_line()))
    return tracer.value("concat", tuple(xs), {"dim": _positive(xs[0], dim)})


@word
def reshape(x: Value, shape: Sequence[int]) -> Value:
    """A view of another shape with as many elements; sharded dimensions must survive."""
    tracer = current("reshape")
    if not _is_several(shape):
        return tracer.refuse(_no_list("shape", shape, "the sizes of all dimensions"))
    return tracer.value("reshape", (x,), {"shape": tuple(shape)}, ("x",))


def _is_several(given: object) -> bool:
    """Whether it is a list or tuple, and not one thing that the user wrote without brackets."""
    return isinstance(given, Sequence) and not isinstance(given, str)


def _no_list(argument: str, given: object, of: str) -> CfdslError:
    return ArgumentError(argument=argument, expected=f"a list or tuple of {of}", got=describe(given), src=user_line())


def _number(given: Any) -> Any:
    """A number as a float; anything that is no number stays for the rule of the op to refuse."""
    return given if isinstance(given, bool) or not isinstance(given, Real) else float(given)


def _positive(x: object, dim: int) -> int:
    """A dimension counted from the front."""
    if isinstance(x, Value) and not x.poisoned and isinstance(dim, int) and -len(x.shape) <= dim < 0:
        return dim + len(x.shape)
    return dim


# ---- arithmetic --------------------------------------------------------------------------------------------------------------------


@word
def add(a: object, b: object) -> Value:
    """a + b: equal shapes, or broadcasting from the last dimension."""
    return current("add").value("add", (a, b), {}, ("a", "b"))


@word
def mul(a: object, b: object) -> Value:
    """a * b: equal shapes, or broadcasting from the last dimension."""
    return current("mul").value("mul", (a, b), {}, ("a", "b"))


@word
def silu(x: Value) -> Value:
    """x * sigmoid(x)."""
    return current("silu").value("silu", (x,), {}, ("x",))


@word
def gelu(x: Value, tanh: bool = True) -> Value:
    """GELU, by its tanh approximation or exactly (erf)."""
    return current("gelu").value("gelu", (x,), {"tanh": bool(tanh)}, ("x",))


@word
def cast(x: Value, dtype: str) -> Value:
    """x rounded to a dtype: f16, bf16 or f32."""
    return current("cast").value("cast", (x,), {"dtype": dtype}, ("x",))


@word
def linear(x: Value, w: Value, bias: Value | None = None, *, shard: str | None = None) -> Value:
    """x @ w.T + bias: (batch, in) with w (out, in) -> (batch, out); with w (heads, dim, in) -> (batch, heads, dim).

    shard="out": each rank computes its slice of the last dimension (outside of a clusters block: each CTA of the launch).
    shard="in": each rank takes its slice of the contraction, and the result is Partial(sum) on the cluster.
    """
    tracer = current("linear")
    across = "all" if shard == "out" and tracer.axis is None else "cluster"
    args = (x, w) if bias is None else (x, w, bias)
    return tracer.value("linear", args, {"shard": shard, "across": across}, ("x", "w", "bias"))


@word
def mean_square(x: Value) -> Value:
    """The mean of x*x over the last dimension: (batch, hidden) -> (batch, 1). Partial(sum) where that dimension is sharded."""
    return current("mean_square").value("mean_square", (x,), {}, ("x",))


@word
def rms_norm(x: Value, weight: Value, eps: float, mean_square: Value | None = None) -> Value:
    """x / sqrt(mean(x*x) + eps) * weight over the last dimension: (batch, hidden).

    Where the last dimension is sharded, the mean is an exchange of its own: mean_square=cluster_reduce(mean_square(x)), (batch, 1).
    """
    tracer = current("rms_norm")
    args = (x, weight) if mean_square is None else (x, weight, mean_square)
    return tracer.value("rms_norm", args, {"eps": _number(eps)}, ("x", "weight", "mean_square"))


@word
def rope(x: Value, cos: Value, sin: Value, pos: Value, *, style: str = "half", rotary_dim: int | None = None) -> Value:
    """Rotary embedding of (batch, heads, dim) at positions pos (batch,) i32.

    cos, sin: (positions, rotary_dim / 2) f32 tables. style: "half" rotates x[i] with x[i + rotary_dim/2], "interleaved" x[2i] with
    x[2i+1]. rotary_dim: the first dimensions that rotate, all of them if left out.
    """
    if rotary_dim is None and isinstance(x, Value) and not x.poisoned and isinstance(x.shape[-1], int):
        rotary_dim = x.shape[-1]
    attrs = {"style": style, "rotary_dim": rotary_dim}
    return current("rope").value("rope", (x, cos, sin, pos), attrs, ("x", "cos", "sin", "pos"))


@word
def embedding(token: Value, table: Value) -> Value:
    """Rows of a table (rows, columns), a weight, by index: token (batch,) i32 -> (batch, columns).

    A kernel clamps an index out of range to the table, and flags it (`Kernel.status`).
    """
    return current("embedding").value("embedding", (token, table), {}, ("token", "table"))


@word
def argmax(x: Value) -> Value:
    """The index of the greatest of the last dimension: (batch, n) -> (batch,) i32. Of equal ones the lowest; NaN counts as greatest.

    Where that dimension is sharded, the result is Partial(argmax): pairs of a value and its index, which a reduce makes one index of.
    """
    return current("argmax").value("argmax", (x,), {}, ("x",))


@word
def append(cache: Value, k: Value, v: Value, *, at: Value) -> Value:
    """See `Value.append`."""
    tracer = current("append")
    result = tracer.value("append", (cache, k, v, at), {}, ("cache", "k", "v", "at"))
    if not result.poisoned and result.node not in tracer.effects:
        tracer.effects.append(result.node)
    return result


@word
def attend(
    q: Value, cache: Value, length: Value | None = None, *, scale: float | None = None, shard: str | None = None, across: str = "cluster"
) -> Value:
    """Decode attention of q (batch, heads, dim) over a cache of (batch, kv heads, tokens, dim) -> (batch, heads, dim).

    Attends over the tokens up to and with the appended one, or over the first `length` (batch,) i32 of a cache that was not appended
    to. scale: of the scores, 1/sqrt(dim) if left out.

    shard="tokens": each rank takes a slice of the tokens, and the result is Partial(lse) on the cluster. With across="all" the tokens
    are dealt to the ranks of all splits, the clusters that share a unit (see `Mesh`): the result is Partial(lse) on the cluster and on
    the splits, even where a mesh has one split only; a cluster collective and then grid_reduce make a value of it.
    """
    args = (q, cache) if length is None else (q, cache, length)
    attrs = {"scale": _number(scale), "shard": shard, "across": across}
    return current("attend").value("attend", args, attrs, ("q", "cache", "length"))


# ---- collectives -------------------------------------------------------------------------------------------------------------------


@word
def cluster_reduce(*xs: Value) -> Any:
    """Partial -> replicated on the cluster. Several values share one exchange."""
    return _exchange("cluster_reduce", xs, {})


@word
def cluster_gather(*xs: Value) -> Any:
    """Sharded -> replicated on the cluster. Several values share one exchange."""
    return _exchange("cluster_gather", xs, {})


@word
def cluster_reduce_scatter(*xs: Value, dim: int) -> Any:
    """Partial -> sharded along `dim` on the cluster. Several values share one exchange."""
    return _exchange("cluster_reduce_scatter", xs, {"dim": _positive(xs[0] if xs else None, dim)})


@word
def grid_gather(*xs: Value) -> Any:
    """Sharded on the grid (and the cluster) -> replicated everywhere. Several values share one exchange."""
    return _exchange("grid_gather", xs, {})


@word
def grid_reduce(*xs: Value) -> Any:
    """Partial on the grid or on the splits (whole or sharded on the cluster) -> replicated everywhere. Several values share one."""
    return _exchange("grid_reduce", xs, {})


@word
def grid_reduce_scatter(*xs: Value, dim: int) -> Any:
    """Partial on the grid -> sharded along `dim` over every CTA of the launch. Several values share one exchange."""
    return _exchange("grid_reduce_scatter", xs, {"dim": _positive(xs[0] if xs else None, dim)})


def _exchange(op: str, xs: tuple[Value, ...], attrs: dict[str, Any]) -> Any:
    results = current(op).values(op, xs, attrs, len(xs) or 1)
    return results[0] if len(results) == 1 else results


# ---- outputs -----------------------------------------------------------------------------------------------------------------------


@word
def outputs(**values: Value) -> Outputs:
    """What the kernel returns, by name. Call it once, at the end: `return outputs(y=y)`.

    A value is rounded to the fusion's dtype, unless it is a cast: `outputs(y=cast(y, "f32"))` is stored as f32. Indices (argmax) are i32.
    """
    tracer = current("outputs")
    src = user_line()
    if tracer.outputs is not None:
        raise TraceError(problem="outputs is called twice", advice="name all outputs in one call at the end of the spec", src=src)
    tracer.outputs, tracer.outputs_src = [], src
    if not values:
        raise ArgumentError(argument="outputs", expected="one or several named values", got="none", src=src)
    for name, value in values.items():
        error = _bad_output(tracer, name, value, src)
        if error is not None:
            tracer.errors.append(error)
        elif not value.poisoned:
            tracer.outputs.append((name, value.node))
    return Outputs(tuple(values))


def _bad_output(tracer: Tracer, name: str, value: object, src: Src) -> CfdslError | None:
    expected = "a floating-point value of the spec"
    if not name.isidentifier():  # `outputs(**{...})`
        return ArgumentError(argument="name", expected="a Python identifier", got=repr(name), src=src)
    if not isinstance(value, Value) or value.tracer is not tracer:
        return ArgumentError(argument=name, expected=expected, got=type(value).__name__, src=src)
    if name in tracer.names:
        first = tracer.names[name]
        return DuplicateName(name=name, first=f"{first.op} {first.type} (line {first.src.line})", second="output", src=src)
    found = not value.poisoned and value.dtype == "i32" and value.node.op != "input"
    if not value.poisoned and not found and (is_cache(value.node) or value.dtype not in FLOATS):
        got = "a kv_cache (it is updated in place)" if is_cache(value.node) else str(value.node.type)
        return ArgumentError(argument=name, expected=expected, got=got, src=src)
    return None
