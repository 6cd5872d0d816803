"""Every call in generated source gives a primitive what its parameters are called."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

import plans
import pytest

from cfdsl.compiler.emit.context import Context
from cfdsl.compiler.emit.steps import emit_step
from cfdsl.compiler.names import MODULES
from cfdsl.compiler.plan import KernelPlan, Step

SHIPPED = dict(plans.shipped())
CONSTANTS = {
    "ranks": "RANKS", "ctas": "CTAS", "warps": "WARPS", "threads": "THREADS", "rank": "rank", "split": "split", "smem": "smem", "at": "at",
}  # fmt: skip
ALSO = {"src": "source", "src_stats": "source_stats", "dst": "out", "dst_stats": "out_stats"}  # parameters of a primitive, of a step
OF_HEADS = {"q", "k", "v", "tokens", "rank", "ranks"}  # attention: pieces of vectors, tokens of a tile, and holders of several clusters


def calls(lines: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(primitive, text of each argument by the parameter's name); a TypeError where they do not fit."""
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            module, name = node.func.value.id, node.func.attr
            if module in (*MODULES, "rings"):
                primitive = getattr(importlib.import_module(f"primitives.{module.replace('rings', 'ring')}"), name)
                bound = inspect.signature(primitive).bind(*node.args, **{keyword.arg: keyword.value for keyword in node.keywords})
                yield f"{module}.{name}", {key: ast.unparse(value) for key, value in bound.arguments.items() if isinstance(value, ast.AST)}


def wanted(call: str, step: Step, parameter: str) -> str | None:
    """What a parameter is to be given, if its name says so."""
    if (call, parameter) == ("cluster_reduce.scatter", "blocks"):
        return str(step.params["n"] // step.params["block"])
    if call in ("attention.decode", "stream.tile_count") and parameter in OF_HEADS or (call, parameter) == ("gemv.rows", "tiles"):
        return None
    name = parameter if parameter in step.params else ALSO.get(parameter, "")
    return str(step.params[name]) if name in step.params else CONSTANTS.get(parameter)


@pytest.mark.compile
@pytest.mark.parametrize("plan", SHIPPED.values(), ids=SHIPPED)
def test_arguments_are_those_that_the_parameters_are_named_after(plan: KernelPlan) -> None:
    context, seen = Context(plan), 0
    for step in plan.steps:
        for call, given in calls(emit_step(context, step)):
            for parameter, text in given.items():
                want = wanted(call, step, parameter)
                assert want in (None, text), f"{parameter} of {call} in {step.text}"
                seen += want is not None
    assert seen >= 10
