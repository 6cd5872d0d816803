"""What every op says about arguments that are wrong, at the user's line."""

from __future__ import annotations

from typing import Any

import pytest
from tracing import MODEL, refused

import cfdsl as cf

X = ("x", (1, 64))
REFUSED: dict[str, tuple[Any, type[cf.CfdslError], str]] = {
    "add shapes": (
        lambda: cf.input("x", (1, 64)) + cf.input("z", (1, 32)),
        cf.errors.ShapeMismatch,
        "add expects equal shapes (or dimensions of size 1), got (1, 64) and (1, 32).",
    ),
    "add dtypes": (
        lambda: cf.input("x", (1, 64), "f16") + cf.input("z", (1, 64)),
        cf.errors.DtypeMismatch,
        "add expects b of dtype f16, got bf16.",
    ),
    "linear dtypes": (
        lambda: cf.linear(cf.input("x", (1, 64), "f32"), cf.weight("w", (8, 64), "f16"), cf.weight("b", (8,))),
        cf.errors.DtypeMismatch,
        "linear expects bias of dtype f16, got bf16.",
    ),
    "linear rank": (
        lambda: cf.linear(cf.input("x", (64,)), cf.weight("w", (64, 64))),
        cf.errors.ShapeMismatch,
        "linear expects x of shape (batch, in), got (64,).",
    ),
    "linear weight rank": (
        lambda: cf.linear(cf.input(*X), cf.weight("w", (64,))),
        cf.errors.ShapeMismatch,
        "linear expects w of shape (out, in) or (heads, dim, in), got (64,).",
    ),
    "linear bias": (
        lambda: cf.linear(cf.input(*X), cf.weight("w", (32, 64)), cf.weight("b", (64,))),
        cf.errors.ShapeMismatch,
        "linear expects a bias of shape (32,), got (64,).",
    ),
    "linear shard": (
        lambda: cf.linear(cf.input(*X), cf.weight("w", (32, 64)), shard="rows"),
        cf.errors.ArgumentError,
        "argument 'shard' must be None, 'out' or 'in', got 'rows'.",
    ),
    "weight rank": (
        lambda: cf.weight("w", (1, 2, 3)),
        cf.errors.ShapeMismatch,
        "weight expects the shape of weight 'w' to be (n,) or (out, in), got (1, 2, 3).",
    ),
    "weight dtype": (
        lambda: cf.weight("w", (2,), "i8"),
        cf.errors.ArgumentError,
        "argument 'dtype' must be 'f32', 'f16' or 'bf16', got 'i8'.",
    ),
    "input name": (lambda: cf.input("a.b", (2,)), cf.errors.ArgumentError, "argument 'name' must be a Python identifier, got 'a.b'."),
    "input shape": (
        lambda: cf.input("x", (0, 2)),
        cf.errors.ArgumentError,
        "argument 'shape' must be positive sizes or names, got (0, 2).",
    ),
    "cache layout": (
        lambda: cf.kv_cache("kv", 1, 2, "tokens", 16, layout="bdht"),
        cf.errors.ArgumentError,
        "argument 'layout' must be 'bhtd' or 'bthd', got 'bdht'.",
    ),
    "split heads": (
        lambda: cf.weight("w", (64, 64)).split_heads(5),
        cf.errors.ShapeMismatch,
        "split_heads expects 5 heads to divide dimension 0 of a vector or matrix, got (64, 64).",
    ),
    "split heads of a named dimension": (
        lambda: cf.split_heads(cf.input("x", (1, "n")), 4),
        cf.errors.ShapeMismatch,
        "split_heads expects 4 heads to divide dimension 1 of a vector or matrix, got (1, n).",
    ),
    "merge heads": (
        lambda: cf.merge_heads(cf.input(*X)),
        cf.errors.ShapeMismatch,
        "merge_heads expects x of shape (batch, heads, dim), got (1, 64).",
    ),
    "split sizes": (
        lambda: cf.split(cf.input(*X), (32, 16), dim=1)[0],
        cf.errors.ShapeMismatch,
        "split expects sizes that add up to dimension 1 of (1, 64), got 32 + 16.",
    ),
    "split dim": (
        lambda: cf.split(cf.input(*X), (64,), dim=2)[0],
        cf.errors.ArgumentError,
        "argument 'dim' must be a dimension of (1, 64), got 2.",
    ),
    "concat": (
        lambda: cf.concat([cf.input(*X), cf.input("z", (2, 64))], dim=1),
        cf.errors.ShapeMismatch,
        "concat expects shapes that are equal but for dimension 1, got (1, 64) and (2, 64).",
    ),
    "concat nothing": (lambda: cf.concat([], dim=1), cf.errors.ArgumentError, "argument 'xs' must be one or several values, got none."),
    "reshape": (
        lambda: cf.reshape(cf.input(*X), (1, 65)),
        cf.errors.ShapeMismatch,
        "reshape expects a shape of as many elements as (1, 64), got (1, 65).",
    ),
    "cast": (lambda: cf.cast(cf.input(*X), "f8"), cf.errors.ArgumentError, "argument 'dtype' must be 'f32', 'f16' or 'bf16', got 'f8'."),
    "mean square": (
        lambda: cf.rms_norm(cf.input(*X), cf.weight("w", (64,)), 1e-5, cf.input("ms", (1, 2), "f32")),
        cf.errors.ShapeMismatch,
        "rms_norm expects a mean_square of shape (1, 1), got (1, 2).",
    ),
    "rope tables": (
        lambda: cf.rope(
            cf.input("q", (1, 4, 16)), cf.input("c", ("p", 4), "f32"), cf.input("s", ("p", 8), "f32"), cf.input("i", (1,), "i32")
        ),
        cf.errors.ShapeMismatch,
        "rope expects cos of shape (positions, 8), got (p, 4).",
    ),
    "rope tables dtype": (
        lambda: cf.rope(cf.input("q", (1, 4, 16)), cf.input("c", ("p", 8)), cf.input("s", ("p", 8), "f32"), cf.input("i", (1,), "i32")),
        cf.errors.DtypeMismatch,
        "rope expects cos of dtype f32, got bf16.",
    ),
    "rope positions": (
        lambda: cf.rope(cf.input("q", (1, 4, 16)), *[cf.input("c", ("p", 8), "f32")] * 2, cf.input("i", (2,), "i32")),
        cf.errors.ShapeMismatch,
        "rope expects pos of shape (1,), got (2,).",
    ),
    "rope style": (
        lambda: cf.rope(cf.input("q", (1, 4, 16)), *[cf.input("c", ("p", 8), "f32")] * 2, cf.input("i", (1,), "i32"), style="neox"),
        cf.errors.ArgumentError,
        "argument 'style' must be 'half' or 'interleaved', got 'neox'.",
    ),
    "rope odd": (
        lambda: cf.rope(cf.input("q", (1, 4, 16)), *[cf.input("c", ("p", 8), "f32")] * 2, cf.input("i", (1,), "i32"), rotary_dim=18),
        cf.errors.ArgumentError,
        "argument 'rotary_dim' must be an even number up to 16, got 18.",
    ),
    "rope tables of other lengths": (
        lambda: cf.rope(
            cf.input("q", (1, 4, 16)), cf.input("c", ("p", 8), "f32"), cf.input("s", ("r", 8), "f32"), cf.input("i", (1,), "i32")
        ),
        cf.errors.ShapeMismatch,
        "rope expects sin of the shape of cos, (p, 8), got (r, 8).",
    ),
    "append shape": (
        lambda: cf.kv_cache("kv", 1, 2, "t", 16).append(*[cf.input("k", (1, 4, 16))] * 2, at=cf.input("at", (1,), "i32")),
        cf.errors.ShapeMismatch,
        "append expects k of shape (1, 2, 16), got (1, 4, 16).",
    ),
    "append at": (
        lambda: cf.kv_cache("kv", 1, 2, "t", 16).append(*[cf.input("k", (1, 2, 16))] * 2, at=cf.input("at", (1,), "f32")),
        cf.errors.DtypeMismatch,
        "append expects at of dtype i32, got f32.",
    ),
    "append to a tensor": (
        lambda: cf.input(*X).append(*[cf.input("k", (1, 2, 16))] * 2, at=cf.input("at", (1,), "i32")),
        cf.errors.ArgumentError,
        "argument 'cache' must be a kv_cache, got bf16[1,64].",
    ),
    "attend of integers": (
        lambda: cf.attend(cf.input("q", (1, 4, 16), "i32"), cf.kv_cache("kv", 1, 2, "t", 16), cf.input("n", (1,), "i32")),
        cf.errors.DtypeMismatch,
        "attend expects q of dtype f32, f16 or bf16, got i32.",
    ),
    "attend heads": (
        lambda: cf.attend(cf.input("q", (1, 3, 16)), cf.kv_cache("kv", 1, 2, "t", 16), cf.input("n", (1,), "i32")),
        cf.errors.ShapeMismatch,
        "attend expects a cache of batch 1, dim 16 and a number of heads that divides 3, got (1, 2, t, 16).",
    ),
    "attend length missing": (
        lambda: cf.attend(cf.input("q", (1, 4, 16)), cf.kv_cache("kv", 1, 2, "t", 16)),
        cf.errors.ArgumentError,
        "argument 'length' must be the number of tokens in a cache that was not appended to, got None.",
    ),
    "attend shard": (
        lambda: cf.attend(cf.input("q", (1, 4, 16)), cf.kv_cache("kv", 1, 2, "t", 16), cf.input("n", (1,), "i32"), shard="heads"),
        cf.errors.ArgumentError,
        "argument 'shard' must be None or 'tokens', got 'heads'.",
    ),
    "attend across": (
        lambda: cf.attend(
            cf.input("q", (1, 4, 16)), cf.kv_cache("kv", 1, 2, "t", 16), cf.input("n", (1,), "i32"), shard="tokens", across="grid"
        ),
        cf.errors.ArgumentError,
        "argument 'across' must be 'cluster' or 'all', got 'grid'.",
    ),
    "cache as a value": (
        lambda: cf.silu(cf.kv_cache("kv", 1, 2, "t", 16)),
        cf.errors.ArgumentError,
        "argument 'x' must be a tensor value in silu, got a kv_cache.",
    ),
    "a slice of a cache for a rank": (
        lambda: cf.shard(cf.kv_cache("kv", 1, 2, "t", 16), 1),
        cf.errors.ArgumentError,
        "argument 'x' must be a tensor value in shard, got a kv_cache.",
    ),
    "exchange of integers": (
        lambda: cf.cluster_gather(cf.input("i", (1, 64), "i32")),
        cf.errors.DtypeMismatch,
        "cluster_gather expects xs[0] of dtype f32, f16 or bf16, got i32.",
    ),
    "exchange of nothing": (lambda: cf.cluster_reduce(), cf.errors.ArgumentError, "argument 'xs' must be one or several values, got none."),
    "reduce-scatter along no dimension": (
        lambda: cf.cluster_reduce_scatter(cf.input(*X), dim=2),
        cf.errors.ArgumentError,
        "argument 'dim' must be a dimension of (1, 64), got 2.",
    ),
    "a number": (lambda: cf.input(*X) * 2.0, cf.errors.ArgumentError, "argument 'b' must be a value of the spec, got float 2.0."),
    "an output that is no value": (lambda: 3, cf.errors.ArgumentError, "argument 'y' must be a floating-point value of the spec, got int."),
    "an output of integers": (
        lambda: cf.input("i", (1,), "i32"),
        cf.errors.ArgumentError,
        "argument 'y' must be a floating-point value of the spec, got i32[1].",
    ),
    "a cache as an output": (
        lambda: cf.kv_cache("kv", 1, 2, "t", 16),
        cf.errors.ArgumentError,
        "argument 'y' must be a floating-point value of the spec, got a kv_cache (it is updated in place).",
    ),
    "a number of pieces in place of their sizes": (
        lambda: cf.split(cf.input(*X), 2, dim=1)[0],  # type: ignore[arg-type]
        cf.errors.ArgumentError,
        "argument 'sizes' must be a list or tuple of the sizes of all pieces, got int 2.",
    ),
    "concat of one without brackets": (
        lambda: cf.concat(cf.input("i", (1,)), 0),  # type: ignore[arg-type]
        cf.errors.ArgumentError,
        "argument 'xs' must be a list or tuple of one or several values, got Value <input bf16[1]>.",
    ),
    "a shape without brackets": (
        lambda: cf.reshape(cf.input(*X), 64),  # type: ignore[arg-type]
        cf.errors.ArgumentError,
        "argument 'shape' must be a list or tuple of the sizes of all dimensions, got int 64.",
    ),
    "an index that is no axis": (
        lambda: cf.input(*X)[0],
        cf.errors.ArgumentError,
        "argument 'index' must be the axis of a clusters block, as in x[axis] or x[:, axis], got 0.",
    ),
    "a condition": (
        lambda: 1 if cf.input(*X) else 0,
        cf.errors.TraceError,
        "a traced value cannot be used as a condition: its contents are not known.",
    ),
    "unpacking": (
        lambda: tuple(cf.input(*X)),
        cf.errors.TraceError,
        "a traced value cannot be looped over or unpacked: its contents are not known.",
    ),
    "len": (lambda: len(cf.input(*X)), cf.errors.TraceError, "a traced value cannot be asked for its len(): its contents are not known."),  # type: ignore[arg-type]
    "minus": (lambda: cf.input(*X) - cf.input(*X), cf.errors.TraceError, "a traced value has no operator -."),
    "negative": (lambda: -cf.input(*X), cf.errors.TraceError, "a traced value has no operator -."),
    "over": (lambda: 1 / cf.input(*X), cf.errors.TraceError, "a traced value has no operator /."),
    "at": (lambda: cf.input(*X) @ cf.weight("w", (64, 64)), cf.errors.TraceError, "a traced value has no operator @."),
    "less": (
        lambda: cf.input(*X) < 3,  # type: ignore[operator]
        cf.errors.TraceError,
        "a traced value cannot be compared: its contents are not known.",
    ),
    "a wrong keyword": (
        lambda: cf.linear(cf.input(*X), cf.weight("w", (64, 64)), shrad="out"),  # type: ignore[call-arg]
        cf.errors.TraceError,
        "linear: got an unexpected keyword argument 'shrad'.",
    ),
    "a wrong keyword of a method": (
        lambda: cf.weight("w", (64, 64)).split_heads(head=4),  # type: ignore[call-arg]
        cf.errors.TraceError,
        "split_heads: missing a required argument: 'heads'.",
    ),
    "outputs without names": (
        lambda: cf.outputs(cf.input(*X)),  # type: ignore[call-arg]
        cf.errors.TraceError,
        "outputs: too many positional arguments.",
    ),
    "input shape of a number": (
        lambda: cf.input("x", 64),  # type: ignore[arg-type]
        cf.errors.ArgumentError,
        "argument 'shape' must be a tuple of positive sizes or names, got int 64.",
    ),
    "norm without eps": (
        lambda: cf.rms_norm(cf.input(*X), cf.weight("n", (64,)), None),  # type: ignore[arg-type]
        cf.errors.ArgumentError,
        "argument 'eps' must be a finite number that is not negative, got None.",
    ),
    "norm with an infinite eps": (
        lambda: cf.rms_norm(cf.input(*X), cf.weight("n", (64,)), float("inf")),
        cf.errors.ArgumentError,
        "argument 'eps' must be a finite number that is not negative, got inf.",
    ),
    "no heads": (
        lambda: cf.split_heads(cf.input(*X), 0),
        cf.errors.ArgumentError,
        "argument 'heads' must be a positive number, got 0.",
    ),
    "sizes that are no numbers": (
        lambda: cf.split(cf.input(*X), ("a", 2), dim=1)[0],  # type: ignore[arg-type]
        cf.errors.ShapeMismatch,
        "split expects sizes that add up to dimension 1 of (1, 64), got a + 2.",
    ),
    "a scale that is none": (
        lambda: cf.attend(cf.input("q", (1, 2, 16)), cf.kv_cache("kv", 1, 2, "t", 16), cf.input("n", (1,), "i32"), scale="1"),  # type: ignore[arg-type]
        cf.errors.ArgumentError,
        "argument 'scale' must be a finite number, got '1'.",
    ),
    "clusters without over": (
        lambda: cf.clusters(4).__enter__(),
        cf.errors.TraceError,
        "clusters takes the number of work units as over=, and was given 4.",
    ),
    "a name taken": (
        lambda: cf.input("x", (1, 64)) + cf.weight("x", (64,)),
        cf.errors.DuplicateName,
        "the name 'x' is taken: first input bf16[1,64] (line LINE), now weight bf16[64].",
    ),
    "an output's name taken": (
        lambda: cf.input("y", (1, 64)),
        cf.errors.DuplicateName,
        "the name 'y' is taken: first input bf16[1,64] (line LINE), now output.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_the_users_line(name: str) -> None:
    make, kind, message = REFUSED[name]

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=make())

    text = refused(spec, kind).splitlines()[0]
    first = make.__code__.co_firstlineno
    assert text.replace(f"(line {first})", "(line LINE)") == message


def test_a_call_that_does_not_fit_is_poison_and_says_how_to_write_it() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        a, b = cf.cluster_gather(cf.input("x", (batch, 64)), axis=1)  # type: ignore[call-arg]
        return cf.outputs(y=a + b)

    assert refused(spec, cf.errors.TraceError) == (
        "cluster_gather: got an unexpected keyword argument 'axis'.\n  remedy: call it as cluster_gather(*xs)."
    )


def test_a_length_beside_an_append_is_refused() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        k, at = cf.input("k", (batch, 2, 16)), cf.input("at", (batch,), "i32")
        cache = cf.kv_cache("kv", batch, 2, "t", 16).append(k, k, at=at)
        return cf.outputs(y=cf.attend(k, cache, at))

    assert refused(spec, cf.errors.ArgumentError) == (
        "argument 'length' must be left out for a cache that was appended to (it ends with the appended token), got a value.\n"
        "  remedy: leave it out."
    )


def test_appending_twice_is_refused() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        k, at = cf.input("k", (batch, 2, 16)), cf.input("at", (batch,), "i32")
        cf.kv_cache("kv", batch, 2, "t", 16).append(k, k, at=at).append(k, k, at=at)
        return cf.outputs(y=k)

    assert refused(spec, cf.errors.TraceError) == "a cache is appended to twice.\n  remedy: append one token per call of the kernel."


def test_a_value_of_another_trace_is_refused() -> None:
    kept = []

    def first(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        kept.append(cf.input("x", (4, 4)))
        return cf.outputs(y=kept[0])

    def second(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.silu(kept[0]))

    cf.fusion(first).trace(MODEL)
    assert refused(second, cf.errors.TraceError) == (
        "silu was given a value of another trace.\n  remedy: make every value inside of the fusion that uses it."
    )


def test_an_output_has_a_name_that_a_kernel_can_have() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(**{"a b": cf.input("x", (4, 4))})

    assert refused(spec, cf.errors.ArgumentError) == (
        "argument 'name' must be a Python identifier, got 'a b'.\n  remedy: pass 'name' as a Python identifier."
    )
