"""The table of lowering rules, one per op that becomes steps. Ops that are views or elementwise are evaluated by their users."""

from __future__ import annotations

from collections.abc import Callable

from cfdsl.compiler.builder import Builder
from cfdsl.compiler.lowering.argmax import lower_argmax
from cfdsl.compiler.lowering.attention import lower_append, lower_attend, lower_rope
from cfdsl.compiler.lowering.cluster import lower_cluster_gather, lower_cluster_reduce, lower_cluster_reduce_scatter
from cfdsl.compiler.lowering.grid import lower_grid_gather, lower_grid_reduce, lower_grid_reduce_scatter
from cfdsl.compiler.lowering.linear import lower_linear
from cfdsl.compiler.lowering.pointwise import ELEMENTWISE
from cfdsl.compiler.lowering.vectors import lower_concat, lower_item, lower_mean_square, lower_slice_grid
from cfdsl.dsl.graph import POINTWISE, VIEWS, Node
from cfdsl.errors import NotLowered

RULES: dict[str, Callable[[Builder, Node], None]] = {
    "linear": lower_linear,
    "mean_square": lower_mean_square,
    "item": lower_item,
    "concat": lower_concat,
    "slice_grid": lower_slice_grid,
    "cluster_gather": lower_cluster_gather,
    "cluster_reduce": lower_cluster_reduce,
    "cluster_reduce_scatter": lower_cluster_reduce_scatter,
    "grid_gather": lower_grid_gather,
    "grid_reduce": lower_grid_reduce,
    "grid_reduce_scatter": lower_grid_reduce_scatter,
    "argmax": lower_argmax,
    "rope": lower_rope,
    "append": lower_append,
    "attend": lower_attend,
}
OF_SHARES = (*POINTWISE, "argmax", "grid_gather", "item")  # take rows that are spread over all CTAs
WHERE_NEEDED = ("input", "weight", "kv_cache", *ELEMENTWISE, *VIEWS)


def lower_node(b: Builder, node: Node) -> None:
    """Apply the node's rule, if its op has one."""
    rule = RULES.get(node.op)
    if node.op not in OF_SHARES and any(b.spread(arg) for arg in node.args):
        why = "an argument is spread over all CTAs, in shares that may be uneven"
        raise NotLowered(op=node.word, why=why, advice="call grid_gather on it first", src=node.src)
    rows = node.args[1] if node.op == "append" else node.args[0] if node.op == "mean_square" else node
    view = node.op == "slice_grid" or (node.op == "item" and node.args[0].op == "split")
    if rule is not None and node.op != "linear" and not view and b.local(rows)[0] != 1:
        why = f"a cluster has {b.local(rows)[0]} rows of it; only one is lowered"
        raise NotLowered(op=node.word, why=why, src=node.src)
    if rule is not None:
        rule(b, node)
    elif node.op not in WHERE_NEEDED:
        raise NotLowered(op=node.word, src=node.src)
