"""Type rules of ops that pick by an index, or find one."""

from __future__ import annotations

from cfdsl.dsl.graph import Type
from cfdsl.dsl.type_rules.call import Call, Rule, is_weight, show
from cfdsl.errors import ArgumentError


def _embedding(call: Call) -> tuple[Type, ...]:
    token, table = call.args
    call.dtype(token, "token", ("i32",))
    (batch,) = call.rank(0, "token", "batch")
    if not is_weight(table):
        expected = "a weight, or a view of one"
        raise ArgumentError(argument="table", expected=expected, got=f"{table.op} {table.types[0]}", src=call.src)
    _, columns = call.rank(1, "table", "rows, columns")
    return (Type((batch, columns), "f32"),)


def _argmax(call: Call) -> tuple[Type, ...]:
    call.floats("x")
    shape = call.shape(0)
    if len(shape) < 2:
        raise call.mismatch("x of shape (batch, ..., n)", show(shape))
    return (Type(shape[:-1], "i32"),)


RULES: dict[str, Rule] = {
    "embedding": _embedding,
    "argmax": _argmax,
}
