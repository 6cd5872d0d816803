"""What the kernels have no code for, on any part and with any config: told with every other refusal, and before a config is blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cfdsl.compiler.geometry import COPY_BYTES
from cfdsl.compiler.lowering.values import stored
from cfdsl.dsl.graph import ITEMSIZE, Graph, Node, leaf_of
from cfdsl.errors import CfdslError, GroupUnsupported, HeadDimUnsupported, NotLowered, RowUnsupported
from cfdsl.models import HEAD_DIMS, MAX_GROUP


@dataclass(frozen=True)
class Limit:
    """One refusal, and all the nodes that it is about."""

    error: CfdslError
    nodes: tuple[Node, ...]


def limits(graph: Graph) -> list[Limit]:
    """What no config of any part cures in a graph; each cause once, at the first of its lines."""
    each = (limit for node in graph.nodes if node.op in RULES for limit in RULES[node.op](graph, node))
    return [*_batch(graph), *_rows(graph), *each]


def _batch(graph: Graph) -> Iterator[Limit]:
    several = tuple(node for node in graph.leaves("linear") if node.type.shape[0] != 1)
    if several:
        why = f"batch {several[0].type.shape[0]} needs tensor cores; only batch 1 is lowered"
        yield Limit(NotLowered(op="linear", why=why, src=several[0].src), several)


def _rows(graph: Graph) -> Iterator[Limit]:
    """Rows of weights that bulk copies cannot move, by their length."""
    found: dict[tuple[int, int], list[Node]] = {}
    for node in graph.leaves("linear"):
        weight = node.args[1]
        columns, multiple = int(weight.type.shape[-1]), COPY_BYTES // ITEMSIZE[weight.type.dtype]
        if leaf_of(weight).op == "weight" and columns % multiple:
            found.setdefault((columns, multiple), []).append(node)
    for (columns, multiple), nodes in found.items():
        weights = dict.fromkeys(leaf_of(node.args[1]).attr("name") for node in nodes)
        yield Limit(RowUnsupported(weights=tuple(weights), columns=columns, multiple=multiple, src=nodes[0].src), tuple(nodes))


def _product(graph: Graph, node: Node) -> Iterator[Limit]:
    try:
        stored(node)
    except NotLowered as error:
        yield Limit(error, (node, *_computing(node.args[1])))


def _computing(node: Node) -> Iterator[Node]:
    """What computes a weight: one refusal is enough for it."""
    if node.args:
        yield node
        for arg in node.args:
            yield from _computing(arg)


def _heads(graph: Graph, node: Node) -> Iterator[Limit]:
    """Of attention: the size of a head, and how many of the model's query heads share keys and values, however they are spread."""
    (_, heads, dim), (_, kv_heads, _, _) = node.args[0].type.shape, node.args[1].type.shape
    group = int(heads) // int(kv_heads)
    if dim not in HEAD_DIMS:
        yield Limit(HeadDimUnsupported(head_dim=int(dim), supported=HEAD_DIMS, src=node.src), (node,))
    if group > MAX_GROUP:
        yield Limit(GroupUnsupported(group=group, limit=MAX_GROUP, src=node.src), (node,))


def _rotation(graph: Graph, node: Node) -> Iterator[Limit]:
    """A row of the tables is read where they lie, ahead of everything else."""
    for name, arg, leaves in zip(("cos", "sin", "pos"), node.args[1:], (("input", "weight"), ("input", "weight"), ("input",))):
        if arg.op not in leaves:
            advice = f"pass {name} as it is to be used: it is read where it lies in memory"
            yield Limit(NotLowered(op="rope", why=f"its {name} is what {arg.word} makes", advice=advice, src=node.src), (node,))


def _length(graph: Graph, node: Node) -> Iterator[Limit]:
    length = node.args[3]
    if length.op != "input":
        advice = "pass the length as an input: the load stream reads it before anything is computed"
        yield Limit(NotLowered(op="append", why=f"its index is what {length.word} makes", advice=advice, src=node.src), (node,))


def _names(graph: Graph, node: Node) -> Iterator[Limit]:
    """Sizes that are known at launch only: rows of rope's tables, and tokens of a cache."""
    free = 2 if node.op == "kv_cache" else 0 if _becomes_a_table(graph, node) else None  # of a table that is computed, rope complains
    for dim, size in enumerate(node.type.shape):
        if isinstance(size, str) and dim != free:
            why = f"the size {size!r} of {node.attr('name')} is not known"
            advice = "give a number: only the tokens of a cache and the rows of rope's tables may be known at launch alone"
            yield Limit(NotLowered(op=node.word, why=why, advice=advice, src=node.src), (node,))


def _becomes_a_table(graph: Graph, node: Node) -> bool:
    users = graph.users(node)
    return bool(users) and all((user.op == "rope" and node in user.args[1:3]) or _becomes_a_table(graph, user) for user in users)


RULES: dict[str, Callable[[Graph, Node], Iterator[Limit]]] = {
    "linear": _product, "attend": _heads, "rope": _rotation, "append": _length, "input": _names, "kv_cache": _names,
}  # fmt: skip
