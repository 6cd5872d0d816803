"""Tracing: what a spec turns into, and what is said about a spec that is wrong."""

from __future__ import annotations

from typing import Any, Literal

import pytest

import cfdsl as cf
from cfdsl.dsl.graph import Node
from cfdsl.dsl.trace import UnusedArgument

MODEL = cf.ModelConfig("toy", hidden=64, heads=4, kv_heads=2, head_dim=16)


def refused(spec: Any, kind: type[cf.CfdslError], **options: Any) -> str:
    """The text of the mistake that tracing a spec raises, without the user's line."""
    with pytest.raises(kind) as caught:
        cf.fusion(spec).trace(MODEL, **options)
    assert type(caught.value) is kind
    assert caught.value.src is None or caught.value.src.file == __file__
    return "\n".join(line for line in str(caught.value).splitlines() if __file__ not in line)


def here(spec: Any, offset: int) -> int:
    """The number of the line `offset` lines into a spec."""
    return int(spec.__code__.co_firstlineno) + offset


@cf.fusion
def scaled(m: cf.ModelConfig, batch: int, *, gate: Literal["silu", "gelu"] = "silu", twice: bool = False) -> cf.Outputs:
    """A gate."""
    x = cf.input("x", (batch, m.hidden))
    y = cf.silu(x) if gate == "silu" else cf.gelu(x)
    return cf.outputs(y=y + y if twice else y)


def test_a_fusion_knows_itself() -> None:
    assert (scaled.name, scaled.file, scaled.doc) == ("scaled", __file__, "A gate.")
    assert scaled.options == {"gate": "silu", "twice": False}
    assert scaled.choices == {"gate": ("silu", "gelu"), "twice": (True, False)}
    assert repr(scaled) == "<fusion scaled>"


def test_a_node_carries_the_users_line() -> None:
    (x, y) = scaled.trace(MODEL).nodes
    assert (x.op, y.op) == ("input", "silu")
    assert (y.src.file, y.src.line) == (__file__, here(scaled.fn, 4))
    assert y.src.code == 'y = cf.silu(x) if gate == "silu" else cf.gelu(x)'


def test_options_select_the_dataflow() -> None:
    assert [node.op for node in scaled.trace(MODEL, gate="gelu", twice=True).nodes] == ["input", "gelu", "add"]


def test_dtype_and_batch_reach_the_leaves() -> None:
    (x, y) = scaled.trace(MODEL, batch=3, dtype="fp16").nodes
    assert (str(x.type), str(y.type)) == ("f16[3,64]", "f32[3,64]")


def test_a_model_may_be_named() -> None:
    assert scaled.trace("llama-2-7b").nodes[0].type.shape == (1, 4096)


def test_equal_expressions_are_one_node_with_the_first_line() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden))
        a = x * x
        b = x * x
        return cf.outputs(y=a + b)

    graph = cf.fusion(spec).trace(MODEL)
    assert [node.op for node in graph.nodes] == ["input", "mul", "add"]
    assert graph.nodes[1].src.line == here(spec, 2)


def test_the_same_computation_of_another_fusion_keeps_its_own_line() -> None:
    def one(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.input("x", (batch, m.hidden)))

    def two(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.input("x", (batch, m.hidden)))

    a, b = cf.fusion(one).trace(MODEL), cf.fusion(two).trace(MODEL)
    assert a.nodes[0].src.line == here(one, 1)
    assert b.nodes[0].src.line == here(two, 1)


def test_nodes_keep_the_order_of_the_spec_and_drop_what_nobody_needs() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        w = cf.weight("w", (m.hidden, m.hidden))
        x = cf.input("x", (batch, m.hidden))
        cf.silu(x)
        z = cf.input("z", (batch, m.hidden))
        return cf.outputs(y=z + cf.linear(x, w))

    assert [node.attr("name", node.op) for node in spec.trace(MODEL).nodes] == ["w", "x", "z", "linear", "add"]


def test_an_append_is_an_effect() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        k, at = cf.input("k", (batch, m.kv_heads, m.head_dim)), cf.input("at", (batch,), "i32")
        cf.kv_cache("kv", batch, m.kv_heads, "tokens", m.head_dim).append(k, k, at=at)
        return cf.outputs(y=k)

    graph = spec.trace(MODEL)
    assert [node.op for node in graph.effects] == ["append"]
    assert str(graph.effects[0].type) == "bf16[1,2,tokens,16]"
    assert graph.effects[0] in graph.nodes


def test_every_op_and_its_type() -> None:
    """Everything computed is f32; views and exchanges keep the dtype; shapes are logical."""
    seen: dict[str, str] = {}

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 64))
        w = cf.weight("w", (64, 64))
        bias = cf.weight("b", (64,))
        pos = cf.input("pos", (batch,), "i32")
        table = cf.input("table", ("positions", 8), "f32")
        seen["linear"] = cf.linear(x, w, bias)
        heads = cf.linear(x, w.split_heads(4), bias.split_heads(4))
        seen["linear by heads"] = heads
        seen["split weight"], seen["split bias"], seen["split activation"] = w.split_heads(4), bias.split_heads(4), cf.split_heads(x, 4)
        seen["merge"] = cf.merge_heads(heads)
        a, b = cf.split(x, (48, 16), dim=-1)
        seen["split a"], seen["split b"] = a, b
        seen["concat"] = cf.concat([b, a], dim=1)
        seen["concat mixed"] = cf.concat([b, cf.silu(a)], dim=1)
        seen["reshape"] = cf.reshape(x, (batch, 2, 32))
        seen["rms_norm"] = cf.rms_norm(x, bias, 1e-5)
        seen["mean_square"] = cf.mean_square(x)
        seen["cast"], seen["gelu"], seen["mul"], seen["add"] = cf.cast(x, "f16"), cf.gelu(x), x * bias, bias + x
        seen["rope"] = cf.rope(heads, table, table, pos)
        cache = cf.kv_cache("kv", batch, 2, "tokens", 16, layout="bthd")
        seen["attend"] = cf.attend(heads, cache, pos, scale=2)
        seen["broadcast"] = heads + bias.split_heads(4)
        return cf.outputs(y=x)

    spec.trace(MODEL, batch=2)
    assert {name: str(value.node.type) for name, value in seen.items()} == {
        "linear": "f32[2,64]",
        "linear by heads": "f32[2,4,16]",
        "split weight": "bf16[4,16,64]",
        "split bias": "bf16[4,16]",
        "split activation": "bf16[2,4,16]",
        "merge": "f32[2,64]",
        "split a": "bf16[2,48]",
        "split b": "bf16[2,16]",
        "concat": "bf16[2,64]",
        "concat mixed": "f32[2,64]",
        "reshape": "bf16[2,2,32]",
        "rms_norm": "f32[2,64]",
        "mean_square": "f32[2,1]",
        "cast": "f16[2,64]",
        "gelu": "f32[2,64]",
        "mul": "f32[2,64]",
        "add": "f32[2,64]",
        "rope": "f32[2,4,16]",
        "attend": "f32[2,4,16]",
        "broadcast": "f32[2,4,16]",
    }
    rope: Node = seen["rope"].node
    assert dict(rope.attrs) == {"style": "half", "rotary_dim": 16}
    assert seen["attend"].node.attr("scale") == 2.0


def test_linear_is_across_the_launch_only_outside_of_a_block() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, 64)), cf.weight("w", (64, 64))
        with cf.clusters(over=2) as axis:
            inside = cf.linear(x, w[axis], shard="out")
        outside, whole, terms = cf.linear(x, w, shard="out"), cf.linear(x, w), cf.linear(x, w, shard="in")
        return cf.outputs(a=inside, b=outside, c=whole, d=terms)

    graph = spec.trace(MODEL)
    assert graph.over == 2
    assert [node.attr("across") for _, node in graph.outputs] == ["cluster", "all", "cluster", "cluster"]


def test_a_block_of_a_cache_slices_its_heads() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q, length = cf.input("q", (batch, 4, 16)), cf.input("length", (batch,), "i32")
        with cf.clusters(over=2) as head:
            o = cf.attend(q[:, head], cf.kv_cache("kv", batch, 2, "tokens", 16)[head], length)
        return cf.outputs(o=o)

    slices = [node for node in spec.trace(MODEL).nodes if node.op == "slice_grid"]
    assert [node.attr("dim") for node in slices] == [1, 1]


def test_reference_and_example_inputs_are_registered() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.input("x", (batch, m.hidden)))

    assert not spec.has_reference
    assert not spec.has_example_inputs

    @spec.reference
    def reference(x: int) -> int:
        return x + 1

    @spec.example_inputs
    def make() -> str:
        return "inputs"

    assert spec.reference is reference
    assert spec.reference(1) == 2
    assert spec.example_inputs() == "inputs"
    assert spec.has_reference
    assert spec.has_example_inputs


def test_a_fusion_can_be_used_inside_another() -> None:
    @cf.fusion
    def inner(m: cf.ModelConfig, batch: int) -> Any:
        return cf.silu(cf.input("x", (batch, m.hidden)))

    @cf.fusion
    def outer(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=inner(m, batch) * cf.input("gate", (batch, m.hidden)))

    assert [node.op for node in outer.trace(MODEL).nodes] == ["input", "silu", "input", "mul"]


# ---- mistakes ----------------------------------------------------------------------------------------------------------------------


def test_independent_mistakes_are_reported_at_once_and_their_consequences_not() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 64))
        n = cf.rms_norm(x, cf.weight("norm", (65,)), 1e-5)
        y = cf.linear(n, cf.weight("w", (64, 32)))
        z = y + cf.linear(x, cf.weight("v", (64, 32)))
        q, k = cf.cluster_gather(z, x)
        bad = x * cf.input("i", (batch, 64), "i32")
        return cf.outputs(y=q + k, bad=bad)

    with pytest.raises(cf.Errors) as caught:
        cf.fusion(spec).trace(MODEL)
    first, last = here(spec, 2), here(spec, 6)
    assert (
        str(caught.value)
        == f"""\
3 mistakes:
1. ShapeMismatch: rms_norm expects a weight of shape (64,), got (65,).
     {__file__}:{first}: n = cf.rms_norm(x, cf.weight("norm", (65,)), 1e-5)
     remedy: check the declared shapes; weights are (out, in), as Hugging Face stores them.
2. ShapeMismatch: linear expects x and w with equal last dimensions (x is (1, 64)), got w of (64, 32).
     {__file__}:{first + 2}: z = y + cf.linear(x, cf.weight("v", (64, 32)))
     remedy: check the declared shapes; weights are (out, in), as Hugging Face stores them.
3. DtypeMismatch: mul expects b of dtype f32, f16 or bf16, got i32.
     {__file__}:{last}: bad = x * cf.input("i", (batch, 64), "i32")
     remedy: declare b with such a dtype."""
    )


def test_what_traced_is_placed_and_told_with_the_rest() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 64))
        bad = x + cf.input("r", (batch, 7))
        with cf.clusters(over=2) as axis, cf.clusters(over=2):
            term = cf.linear(x[:, axis], cf.weight("w", (64, 64))[:, axis], shard="in")
            y = cf.silu(term)
        return cf.outputs(y=y, bad=bad, term=term)

    with pytest.raises(cf.Errors) as caught:
        cf.fusion(spec).trace(MODEL)
    assert [(type(error).__name__, error.src and error.src.line) for error in caught.value.errors] == [
        ("ShapeMismatch", here(spec, 2)),
        ("TraceError", here(spec, 3)),
        ("NeedsReduce", here(spec, 5)),
        ("NeedsReduce", here(spec, 6)),
    ]


def test_python_that_trips_over_an_earlier_mistake_does_not_hide_it() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        y = cf.silu(1)  # type: ignore[arg-type]
        return cf.outputs(y=cf.input("x", (batch, y.shape[1])))

    assert refused(spec, cf.errors.ArgumentError) == (
        "argument 'x' must be a value of the spec, got int 1.\n  remedy: silu takes values: inputs, weights and what is computed from them."
    )


def test_an_exception_of_the_spec_itself_is_left_alone() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        cf.fusion(spec).trace(MODEL)


def test_a_spec_without_outputs_is_told_where_it_ends() -> None:
    def nothing(m: cf.ModelConfig, batch: int) -> None:
        cf.silu(cf.input("x", (batch, 64)))

    def value(m: cf.ModelConfig, batch: int) -> Any:
        x = cf.input("x", (batch, 64))
        return cf.silu(x)

    for spec, line, problem in (
        (nothing, 0, "the fusion nothing has no outputs."),
        (value, 2, "the fusion value returns a value, and not its outputs."),
    ):
        with pytest.raises(cf.TraceError) as caught:
            cf.fusion(spec).trace(MODEL)
        assert (caught.value.message, caught.value.src and caught.value.src.line) == (problem, here(spec, line))
        assert caught.value.remedy == "end the spec with `return cf.outputs(name=value, ...)`."


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


def test_what_is_no_spec() -> None:
    with pytest.raises(cf.errors.ArgumentError, match="argument 'fn' must be a function of .model, batch., .* got a int"):
        cf.fusion(5)  # type: ignore[arg-type]
    with pytest.raises(cf.errors.ArgumentError, match=r"got spec\(m: 'cf.ModelConfig'\)") as caught:

        @cf.fusion
        def spec(m: cf.ModelConfig) -> None:
            pass

    assert caught.value.src is not None


def test_what_is_no_model_and_no_graph() -> None:
    with pytest.raises(cf.errors.ArgumentError, match="argument 'model' must be a ModelConfig, .*, got None"):
        scaled.trace(None)  # type: ignore[arg-type]
    for call in (cf.verify, cf.to_text, lambda given: cf.place(given, cf.Mesh(1, 1)), lambda given: cf.interpret(given, {})):
        with pytest.raises(cf.errors.ArgumentError, match="argument 'graph' must be a graph, got a Fusion"):
            call(scaled)
    with pytest.raises(cf.errors.ArgumentError, match="argument 'text' must be the text of a graph, got a int"):
        cf.parse(5)  # type: ignore[arg-type]
    with pytest.raises(cf.errors.ArgumentError, match="argument 'mesh' must be a Mesh"):
        cf.place(scaled.trace(MODEL), 5)  # type: ignore[arg-type]
    with pytest.raises(cf.Errors, match="2 mistakes"):
        cf.place(scaled.trace(MODEL), cf.Mesh("1", None))  # type: ignore[arg-type]


def test_an_argument_that_nothing_needs_is_warned_of_at_its_line() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 64))
        cf.silu(cf.input("zz", (batch, 7)))
        return cf.outputs(y=x)

    with pytest.warns(UnusedArgument) as warned:
        cf.fusion(spec).trace(MODEL)
    assert (warned[0].filename, warned[0].lineno) == (__file__, here(spec, 2))
    assert str(warned[0].message) == "the input 'zz' of spec is needed by no output: it is no argument of the kernel"


def test_one_name_may_be_declared_twice_alike() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.input("x", (batch, 4)) + cf.input("x", (batch, 4)))

    assert [node.op for node in spec.trace(MODEL).nodes] == ["input", "add"]


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


def test_blocks() -> None:
    def nested(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=2), cf.clusters(over=2):
            return cf.outputs(y=cf.input("x", (4, 4)))

    def unequal(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=2):
            pass
        with cf.clusters(over=4):
            return cf.outputs(y=cf.input("x", (4, 4)))

    def wrong(m: cf.ModelConfig, batch: int) -> None:
        with cf.clusters(over=0):
            pass

    def outside(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (4, 4))
        with cf.clusters(over=2) as axis:
            pass
        return cf.outputs(y=x[axis])

    def odd(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        with cf.clusters(over=3) as axis:
            return cf.outputs(y=cf.input("x", (4, 4))[axis])

    one_grid = "a launch has one grid of clusters"
    assert refused(nested, cf.errors.TraceError) == f"clusters blocks are nested.\n  remedy: {one_grid}: use one block."
    assert refused(unequal, cf.errors.TraceError) == (
        f"two clusters blocks spread 2 and 4 work units.\n  remedy: {one_grid}: give both blocks the same number."
    )
    assert refused(wrong, cf.errors.ArgumentError) == (
        "argument 'over' must be a positive number of work units, got 0.\n  remedy: pass 'over' as a positive number of work units."
    )
    assert refused(outside, cf.errors.TraceError) == (
        "the axis of a clusters block is used outside of the block.\n  remedy: move the line into the block."
    )
    assert refused(odd, cf.errors.ShardDoesNotDivide) == (
        "x[axis] cannot shard dimension 0 of size 4 over 3 work units.\n"
        "  remedy: write clusters(over=) with a number of units that divides it."
    )


def test_outputs() -> None:
    def none(m: cf.ModelConfig, batch: int) -> None:
        cf.input("x", (4, 4))

    def empty(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs()

    def twice(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        cf.outputs(y=cf.input("x", (4, 4)))
        return cf.outputs(z=cf.input("x", (4, 4)))

    assert refused(none, cf.errors.TraceError) == (
        "the fusion none has no outputs.\n  remedy: end the spec with `return cf.outputs(name=value, ...)`."
    )
    assert refused(empty, cf.errors.ArgumentError).startswith("argument 'outputs' must be one or several named values, got none.")
    assert refused(twice, cf.errors.TraceError) == (
        "outputs is called twice.\n  remedy: name all outputs in one call at the end of the spec."
    )


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


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(cf.Errors, match=r"(?s)no option gate='relu'.*no option gates='silu'"):
        scaled.trace(MODEL, gate="relu", gates="silu")


def test_ops_outside_of_a_fusion_are_refused() -> None:
    with pytest.raises(cf.errors.TraceError) as caught:
        cf.input("x", (1, 2))
    assert str(caught.value) == (
        "input was called outside of a fusion.\n"
        f'  {__file__}:{here(test_ops_outside_of_a_fusion_are_refused, 2)}: cf.input("x", (1, 2))\n'
        "  remedy: call it in a function decorated with @cf.fusion and trace that."
    )
    with pytest.raises(cf.errors.TraceError, match="the fusion scaled was called like a function"):
        scaled(MODEL, 1)


@pytest.mark.parametrize(
    ("kwargs", "kind", "message"),
    [
        ({"batch": 0}, cf.errors.ArgumentError, "argument 'batch' must be a positive number of sequences, got 0."),
        ({"dtype": "f8"}, cf.errors.ArgumentError, "argument 'dtype' must be 'bf16' or 'f16', got 'f8'."),
        ({"gate": "relu"}, cf.errors.UnknownOption, "the fusion scaled has no option gate='relu'."),
        ({"gates": "silu"}, cf.errors.UnknownOption, "the fusion scaled has no option gates='silu'."),
    ],
)
def test_trace_checks_its_own_arguments(kwargs: dict[str, Any], kind: type[cf.CfdslError], message: str) -> None:
    with pytest.raises(kind) as caught:
        scaled.trace(MODEL, **kwargs)
    assert caught.value.message == message
    if kind is cf.errors.UnknownOption:
        assert caught.value.remedy == "its options are: gate ('silu', 'gelu'), twice (True, False)."
