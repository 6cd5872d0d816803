"""Type rules of collectives: they move values and leave types as they are."""

from __future__ import annotations

from cfdsl.dsl.graph import Node, Type
from cfdsl.dsl.type_rules.call import Call, Rule, dim_of
from cfdsl.errors import ArgumentError


def _move(call: Call) -> tuple[Type, ...]:
    if not call.args:
        raise ArgumentError(argument="xs", expected="one or several values", got="none", src=call.src)
    for i, arg in enumerate(call.args):
        if not _found(arg):
            Call(call.op, (arg,), call.attrs, call.src).floats(f"xs[{i}]")
    return tuple(arg.type for arg in call.args)


def _found(node: Node) -> bool:
    """Whether a value is indices that argmax found, wherever they have travelled since: they travel too."""
    while node.op == "item":
        node = node.args[0].args[node.attr("index")] if node.args[0].is_collective else node.args[0]
    return node.op == "argmax"


def _scatter(call: Call) -> tuple[Type, ...]:
    types = _move(call)
    for arg in call.args:
        dim_of(call, call.attrs["dim"], arg.type.shape)
    return types


RULES: dict[str, Rule] = {
    "cluster_reduce": _move,
    "cluster_gather": _move,
    "grid_reduce": _move,
    "grid_gather": _move,
    "cluster_reduce_scatter": _scatter,
    "grid_reduce_scatter": _scatter,
}
