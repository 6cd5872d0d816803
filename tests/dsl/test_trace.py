"""Tracing: what a spec turns into."""

from __future__ import annotations

from typing import Any

import tracing
from tracing import MODEL, here, scaled

import cfdsl as cf
from cfdsl.dsl.graph import Node


def test_a_fusion_knows_itself() -> None:
    assert (scaled.name, scaled.file, scaled.doc) == ("scaled", tracing.__file__, "A gate.")
    assert scaled.options == {"gate": "silu", "twice": False}
    assert scaled.choices == {"gate": ("silu", "gelu"), "twice": (True, False)}
    assert repr(scaled) == "<fusion scaled>"


def test_a_node_carries_the_users_line() -> None:
    (x, y) = scaled.trace(MODEL).nodes
    assert (x.op, y.op) == ("input", "silu")
    assert (y.src.file, y.src.line) == (tracing.__file__, here(scaled.fn, 4))
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


def test_one_name_may_be_declared_twice_alike() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.input("x", (batch, 4)) + cf.input("x", (batch, 4)))

    assert [node.op for node in spec.trace(MODEL).nodes] == ["input", "add"]
