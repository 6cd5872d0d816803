"""Tracing called with the wrong things: models, options, graphs, and ops outside of a fusion."""

from __future__ import annotations

from typing import Any

import pytest
from tracing import MODEL, here, scaled

import cfdsl as cf


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
