"""Verifying a graph: every node must still follow the type rule of its op, whoever built or rewrote it."""

from __future__ import annotations

from cfdsl.dsl.graph import LEAVES, Graph, Node, expect_graph
from cfdsl.dsl.type_rules import TYPE_RULES, Call, cache_leaf
from cfdsl.errors import CfdslError, InvalidGraph, raise_all


def verify(graph: Graph) -> Graph:
    """Check every node of `graph` with the rule of its op and return the graph. Raises all mistakes at once."""
    expect_graph(graph)
    errors: list[CfdslError] = []
    names: dict[str, Node] = {}
    for node in graph.nodes:
        try:
            _check(node, graph)
            if node.op in LEAVES and names.setdefault(node.attr("name"), node) is not node:
                raise InvalidGraph(op=node.op, problem=f"the name {node.attr('name')!r} stands for two leaves", src=node.src)
        except CfdslError as error:
            errors.append(error)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            problem = f"its arguments or attributes are not those of the op ({type(error).__name__}: {error})"
            errors.append(InvalidGraph(op=node.op, problem=problem, src=node.src))
    errors += _one_append_per_cache(graph)
    raise_all(errors)
    return graph


def _check(node: Node, graph: Graph) -> None:
    rule = TYPE_RULES.get(node.op)
    if rule is None:
        raise InvalidGraph(op=node.op, problem="there is no such op", src=node.src)
    declared = node.types if node.op in LEAVES else ()
    types = rule(Call(node.op, node.args, dict(node.attrs), node.src, graph.over, declared))
    if types != node.types:
        says, should = (", ".join(map(str, some)) for some in (node.types, types))
        raise InvalidGraph(op=node.op, problem=f"its type is {says} and should be {should}", src=node.src)


def _one_append_per_cache(graph: Graph) -> list[CfdslError]:
    seen: dict[Node, Node] = {}
    errors: list[CfdslError] = []
    for effect in graph.effects:
        leaf = cache_leaf(effect)
        if leaf is not None and seen.setdefault(leaf, effect) is not effect:
            problem = f"the cache {leaf.attr('name')!r} is appended to twice"
            errors.append(InvalidGraph(op="append", problem=problem, src=effect.src))
    return errors
