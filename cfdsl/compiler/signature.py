"""The tensors of a launch in calling order: what a compiled kernel and the oracle both take."""

from __future__ import annotations

from cfdsl.compiler.plan import Arg
from cfdsl.dsl.graph import ITEMSIZE, Graph, Node


def signature(graph: Graph) -> tuple[Arg, ...]:
    """Inputs and weights in the order of the spec, then caches, then outputs; no workspaces."""
    leaves = [node for node in graph.nodes if node.op in ("input", "weight")]
    args = [Arg(n.attr("name"), n.type.shape, n.type.dtype, n.op, align=_align(n)) for n in leaves]
    for node in graph.leaves("kv_cache"):
        batch, heads, tokens, dim = node.type.shape
        shape = (batch, heads, tokens, dim) if node.attr("layout") == "bhtd" else (batch, tokens, heads, dim)
        mutated = bool(graph.effects)
        args += [Arg(f"{node.attr('name')}_{kv}", shape, node.type.dtype, "cache", mutated) for kv in "kv"]
    for name, node in graph.outputs:
        dtype = graph.output_dtype(node)
        args.append(Arg(name, node.type.shape, dtype, "output", mutated=True, align=_align(node, dtype)))
    return tuple(args)


def _align(node: Node, dtype: str | None = None) -> int:
    """Vectors are read and written 16 bytes at a time; a single index only needs its own size."""
    itemsize = ITEMSIZE[dtype or node.type.dtype]
    size = 1
    for dim in node.type.shape:
        if isinstance(dim, str):
            return 16
        size *= dim
    return 16 if size * itemsize % 16 == 0 else itemsize
