"""What no config can lower is refused from the graph, with the line, before anything is chosen; what only looks so compiles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plans import plan_graph

import cfdsl as cf
from cfdsl.compiler.emit import emit
from cfdsl.compiler.limits import limits
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.stages import lower
from cfdsl.errors import Errors, NotLowered

MODEL = cf.PRESETS["smollm2-135m"]


def rotated(tables: Callable[[cf.Value, cf.Value], tuple[cf.Value, cf.Value]]) -> cf.Fusion:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q, pos = cf.input("q", (batch, 9, 64)), cf.input("pos", (batch,), "i32")
        cos, sin = (cf.input(name, ("positions", 32), "f32") for name in ("cos", "sin"))
        cos, sin = tables(cos, sin)
        return cf.outputs(y=cf.rope(q, cos, sin, pos))

    return spec


def attended(tokens: int | str, layout: str = "bhtd", at: Callable[[cf.Value], cf.Value] | None = None) -> cf.Fusion:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q, k, n = cf.input("q", (batch, 9, 64)), cf.input("k", (batch, 3, 64)), cf.input("n", (batch,), "i32")
        n = at(n) if at else n
        with cf.clusters(over=3) as head:
            cache = cf.kv_cache("c", batch, 3, tokens, 64, layout)[head].append(k[:, head], k[:, head], at=n)
            o = cf.cluster_reduce(cf.attend(q[:, head], cache, shard="tokens"))
        return cf.outputs(y=o)

    return spec


def said(spec: cf.Fusion) -> list[str]:
    """Every refusal of a spec, all of them with a line."""
    with pytest.raises((NotLowered, Errors)) as caught:
        lower(spec, MODEL, 1, "bf16", H100_SXM)
    errors = caught.value.errors if isinstance(caught.value, Errors) else (caught.value,)
    assert all(isinstance(error, NotLowered) and error.src is not None and error.src.file == __file__ for error in errors)
    return [error.message for error in errors]


def test_tables_that_are_computed() -> None:
    assert said(rotated(lambda cos, sin: (cf.cast(cos, "f32"), sin))) == ["rope cannot be compiled: its cos is what cast makes."]
    assert said(rotated(lambda cos, sin: (cos * cf.input("k", (1, 32), "f32"), sin + sin))) == [
        "rope cannot be compiled: its cos is what mul makes.", "rope cannot be compiled: its sin is what add makes.",
    ]  # fmt: skip


def test_an_index_that_is_computed() -> None:
    """An argmax is of the type of a length."""
    spec = attended("tokens", at=lambda n: cf.argmax(cf.input("x", (1, 64))))
    assert said(spec) == ["append cannot be compiled: its index is what argmax makes."]


def test_sizes_that_are_not_known() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.silu(cf.input("x", ("rows", 64))), z=cf.silu(cf.input("u", (batch, "columns"))))

    assert said(spec) == [
        "input cannot be compiled: the size 'rows' of x is not known.", "input cannot be compiled: the size 'columns' of u is not known.",
    ]  # fmt: skip


def test_all_mistakes_are_told_at_once() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 64))
        y = cf.linear(x, cf.silu(cf.weight("w", (64, 64))), shard="out")
        return cf.outputs(y=y, z=cf.linear(x, cf.input("v", (64, 64)), shard="out"))

    assert len(said(spec)) == 2


@pytest.mark.parametrize("spec", [rotated(lambda cos, sin: (cos, sin)), attended("tokens")])
def test_named_sizes_where_they_are_known_at_launch(spec: cf.Fusion) -> None:
    assert limits(spec.trace(MODEL)) == []


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_a_cache_of_a_fixed_capacity(layout: str) -> None:
    """Its room stands in the code, where that of another is a variable."""
    source = emit(plan_graph(attended(512, layout).trace(MODEL), 3, 2))
    assert "tokens = kv.clamp(tokens_given, 0, 512)" in source
    assert "(tokens == tokens_given) & (tokens < 512)" in source
    assert "n_tokens" not in source
    stride = "Int64(cluster) * 512 * 64" if layout == "bhtd" else "Int64(cluster) * 64"
    assert stride in source


def test_tables_of_a_fixed_number_of_rows() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        q, pos = cf.input("q", (batch, 9, 64)), cf.input("pos", (batch,), "i32")
        cos, sin = (cf.weight(name, (2048, 32), "f32") for name in ("cos", "sin"))
        return cf.outputs(y=cf.rope(q, cos, sin, pos))

    assert "position = kv.clamp(position_given, 0, 2048 - 1)" in emit(plan_graph(spec.trace(MODEL), 1, 1))


@pytest.mark.compile
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_a_cache_of_a_fixed_capacity_compiles(layout: str) -> None:
    kernel = cf.compile(attended(512, layout), MODEL, part="h100-sxm")
    assert [arg.shape for arg in kernel.args if arg.role == "cache"] == [(1, 3, 512, 64) if layout == "bhtd" else (1, 512, 3, 64)] * 2
