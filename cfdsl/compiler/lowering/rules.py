"""The table of lowering rules, one per op that becomes steps. Ops that are views or elementwise are evaluated by their users."""

from __future__ import annotations

from collections.abc import Callable

from cfdsl.compiler.builder import Builder
from cfdsl.compiler.lowering.attention import lower_append, lower_attend, lower_rope
from cfdsl.compiler.lowering.exchanges import (
    lower_cluster_gather,
    lower_cluster_reduce,
    lower_cluster_reduce_scatter,
    lower_grid_gather,
    lower_grid_reduce_scatter,
    lower_item,
    lower_mean_square,
)
from cfdsl.compiler.lowering.linear import lower_linear
from cfdsl.compiler.lowering.pointwise import ELEMENTWISE, VIEWS
from cfdsl.dsl.graph import Node
from cfdsl.errors import NotLowered

RULES: dict[str, Callable[[Builder, Node], None]] = {
    "linear": lower_linear,
    "mean_square": lower_mean_square,
    "item": lower_item,
    "cluster_gather": lower_cluster_gather,
    "cluster_reduce": lower_cluster_reduce,
    "cluster_reduce_scatter": lower_cluster_reduce_scatter,
    "grid_gather": lower_grid_gather,
    "grid_reduce_scatter": lower_grid_reduce_scatter,
    "rope": lower_rope,
    "append": lower_append,
    "attend": lower_attend,
}
WHERE_NEEDED = ("input", "weight", "kv_cache", *ELEMENTWISE, *VIEWS)


def lower_node(b: Builder, node: Node) -> None:
    """Apply the node's rule, if its op has one."""
    rule = RULES.get(node.op)
    if rule is not None:
        rule(b, node)
    elif node.op not in WHERE_NEEDED:
        raise NotLowered(op=node.op, src=node.src)
