"""What no config can lower, told from the graph alone: all of it at once, before a config is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cfdsl.compiler.lowering.values import stored
from cfdsl.dsl.graph import Graph, Node
from cfdsl.errors import CfdslError, NotLowered, raise_all


def check_limits(graph: Graph) -> None:
    """Raise NotLowered, or Errors with one for every line that no kernel can be made of."""
    errors: list[CfdslError] = []
    for node in graph.nodes:
        try:
            errors += (LIMITS[node.op](graph, node) if node.op in LIMITS else ())
        except NotLowered as error:
            errors.append(error)
    raise_all(errors)


def _product(graph: Graph, node: Node) -> Iterator[CfdslError]:
    stored(node)
    if node.type.shape[0] != 1:
        why = f"batch {node.type.shape[0]} needs tensor cores; only batch 1 is lowered"
        yield NotLowered(op="linear", why=why, src=node.src)


def _rotation(graph: Graph, node: Node) -> Iterator[CfdslError]:
    """A row of the tables is read where they lie, ahead of everything else."""
    for name, arg, leaves in zip(("cos", "sin", "pos"), node.args[1:], (("input", "weight"), ("input", "weight"), ("input",))):
        if arg.op not in leaves:
            advice = f"pass {name} as it is to be used: it is read where it lies in memory"
            yield NotLowered(op="rope", why=f"its {name} is what {arg.op} makes", advice=advice, src=node.src)


def _length(graph: Graph, node: Node) -> Iterator[CfdslError]:
    length = node.args[3]
    if length.op != "input":
        advice = "pass the length as an input: the load stream reads it before anything is computed"
        yield NotLowered(op="append", why=f"its index is what {length.op} makes", advice=advice, src=node.src)


def _names(graph: Graph, node: Node) -> Iterator[CfdslError]:
    """Sizes that are known at launch only: rows of rope's tables, and tokens of a cache."""
    free = 2 if node.op == "kv_cache" else 0 if _becomes_a_table(graph, node) else None  # of a table that is computed, rope complains
    for dim, size in enumerate(node.type.shape):
        if isinstance(size, str) and dim != free:
            why = f"the size {size!r} of {node.attr('name')} is not known"
            advice = "give a number: only the tokens of a cache and the rows of rope's tables may be known at launch alone"
            yield NotLowered(op=node.op, why=why, advice=advice, src=node.src)


def _becomes_a_table(graph: Graph, node: Node) -> bool:
    users = graph.users(node)
    return bool(users) and all((user.op == "rope" and node in user.args[1:3]) or _becomes_a_table(graph, user) for user in users)


LIMITS: dict[str, Callable[[Graph, Node], Iterator[CfdslError]]] = {
    "linear": _product, "rope": _rotation, "append": _length, "input": _names, "kv_cache": _names,
}  # fmt: skip
