"""What the kernels have no code for, on any part and with any config: told with every other refusal, and before a config is blamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cfdsl.compiler.geometry import COPY_BYTES
from cfdsl.compiler.traffic import leaf_of
from cfdsl.dsl.graph import ITEMSIZE, Graph, Node
from cfdsl.errors import CfdslError, GroupUnsupported, HeadDimUnsupported, NotLowered, RowUnsupported
from cfdsl.models import HEAD_DIMS, MAX_GROUP


@dataclass(frozen=True)
class Limit:
    """One refusal, and all the nodes that it is about."""

    error: CfdslError
    nodes: tuple[Node, ...]


def limits(graph: Graph) -> list[Limit]:
    """What no config of any part cures in a graph, from its types; each cause once, at the first of its lines."""
    return [*_batch(graph), *_rows(graph), *(limit for node in graph.leaves("attend") for limit in _heads(node))]


def _batch(graph: Graph) -> Iterator[Limit]:
    several = tuple(node for node in graph.leaves("linear") if node.type.shape[0] != 1)
    if several:
        why = f"batch {several[0].type.shape[0]} needs tensor cores; only batch 1 is lowered"
        yield Limit(NotLowered(op="linear", why=why, src=several[0].src), several)


def _rows(graph: Graph) -> Iterator[Limit]:
    """Rows of weights that bulk copies cannot move, by their length."""
    found: dict[tuple[int, int], list[Node]] = {}
    for node in graph.leaves("linear"):
        weight = leaf_of(node.args[1])
        columns, multiple = int(weight.type.shape[-1]), COPY_BYTES // ITEMSIZE[weight.type.dtype]
        if columns % multiple:
            found.setdefault((columns, multiple), []).append(node)
    for (columns, multiple), nodes in found.items():
        weights = dict.fromkeys(leaf_of(node.args[1]).attr("name") for node in nodes)
        yield Limit(RowUnsupported(weights=tuple(weights), columns=columns, multiple=multiple, src=nodes[0].src), tuple(nodes))


def _heads(node: Node) -> Iterator[Limit]:
    """Of attention: the size of a head, and how many of the model's query heads share keys and values, however they are spread."""
    (_, heads, dim), (_, kv_heads, _, _) = node.args[0].type.shape, node.args[1].type.shape
    group = int(heads) // int(kv_heads)
    if dim not in HEAD_DIMS:
        yield Limit(HeadDimUnsupported(head_dim=int(dim), supported=HEAD_DIMS, src=node.src), (node,))
    if group > MAX_GROUP:
        yield Limit(GroupUnsupported(group=group, limit=MAX_GROUP, src=node.src), (node,))
