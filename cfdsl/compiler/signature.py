"""The tensors of a launch in calling order: what a compiled kernel and the oracle both take."""

from __future__ import annotations

from math import prod

from cfdsl.compiler.plan import Arg
from cfdsl.dsl.graph import ITEMSIZE, Graph, Node, cache_tensors


def signature(graph: Graph) -> tuple[Arg, ...]:
    """Inputs and weights in the order of the spec, then caches, then outputs; no workspaces."""
    leaves = [node for node in graph.nodes if node.op in ("input", "weight")]
    args = [Arg(n.attr("name"), n.type.shape, n.type.dtype, n.op, align=_align(n)) for n in leaves]
    mutated = bool(graph.effects)
    for node in graph.leaves("kv_cache"):
        args += [Arg(name, of.shape, of.dtype, "cache", mutated) for name, of in cache_tensors(node)]
    for name, node in graph.outputs:
        dtype = graph.output_dtype(node)
        args.append(Arg(name, node.type.shape, dtype, "output", mutated=True, align=_align(node, dtype)))
    return tuple(args)


def _align(node: Node, dtype: str | None = None) -> int:
    """Vectors are read and written 16 bytes at a time; a single index only needs its own size."""
    itemsize = ITEMSIZE[dtype or node.type.dtype]
    sizes = [dim for dim in node.type.shape if isinstance(dim, int)]
    return itemsize if len(sizes) == len(node.type.shape) and prod(sizes) * itemsize % 16 else 16
