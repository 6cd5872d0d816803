"""Products become vectors: the terms of their warps, summed in shared memory."""

from __future__ import annotations

from cfdsl.compiler.builder import Builder
from cfdsl.compiler.lowering.values import Product, Vector, stored
from cfdsl.dsl.graph import Node


def flush(b: Builder, node: Node) -> Vector:
    """Sum a product over its warps into shared memory, together with every other product that is ready."""
    ready = [n for n, value in b.values.items() if isinstance(n, Node) and isinstance(value, Product)]
    for one in ready:
        value = b.values[one]
        out = b.buffer(f"{stored(one).attr('name')}_slice", (value.rows,))
        b.step(
            "finish", f"{out}[i] = {value.expr}", reads=value.expr.buffers(), writes=(out,), src=one.src,
            tree=value.expr, out=out, rows=value.rows,
        )  # fmt: skip
        b.values[one] = Vector(out, value.rows)
    return b.values[node]
