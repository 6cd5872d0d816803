"""A spec that is wrong as a whole: several mistakes at once, blocks, outputs, exceptions of its own."""

from __future__ import annotations

from typing import Any

import pytest
from tracing import MODEL, here, refused

import cfdsl as cf
from cfdsl.dsl.trace import UnusedArgument


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


def test_an_argument_that_nothing_needs_is_warned_of_at_its_line() -> None:
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, 64))
        cf.silu(cf.input("zz", (batch, 7)))
        return cf.outputs(y=x)

    with pytest.warns(UnusedArgument) as warned:
        cf.fusion(spec).trace(MODEL)
    assert (warned[0].filename, warned[0].lineno) == (__file__, here(spec, 2))
    assert str(warned[0].message) == "the input 'zz' of spec is needed by no output: it is no argument of the kernel"


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
