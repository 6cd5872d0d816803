"""Rows of tables by index."""

from __future__ import annotations

from math import prod

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.dsl.graph import Node
from cfdsl.errors import NotLowered

INDEX_LIMIT = 2**31  # offsets into a table are 32-bit


def looked_up(b: Builder, node: Node) -> Expr:
    """The row of an embedding as elements of its table, from an offset that an index variable gives."""
    token, table = node.args
    if table.op != "weight" or prod(int(dim) for dim in table.type.shape) > INDEX_LIMIT:
        why = "its table is a view" if table.op != "weight" else f"its table has more than {INDEX_LIMIT} elements"
        raise NotLowered(op="embedding", why=why, src=node.src)
    if (rows := b.local(node)[0]) != 1:
        raise NotLowered(op="embedding", why=f"a cluster has {rows} rows of it; only one is lowered", src=node.src)
    columns = int(table.type.shape[1])
    return Expr("leaf", table.attr("name"), Affine.of(**{_index(b, node): columns}))


def _index(b: Builder, node: Node) -> str:
    """The variable with an index, brought into the table; what was out of range is flagged at the end."""
    token, table = node.args
    key = (token, table, "index")
    if key not in b.values:
        source, at = token, Affine()
        while source.op == "slice_grid":
            source, at = source.args[0], at + b.grid_offset(int(source.args[0].type.shape[0]), 1)
        if source.op != "input":
            raise NotLowered(op="embedding", why="its index is not an input", src=node.src)
        name, rows = b.variable("row"), int(table.type.shape[0])
        given = source.attr("name")
        b.step("index", f"{name} = {given}[{at}], within 0 and {rows - 1}", src=node.src, out=name, token=given, at=at, rows=rows)
        b.values[key] = name
        b.flags.append(("TOKEN_CLAMPED", name, None))
    return str(b.values[key])
