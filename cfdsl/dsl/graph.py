"""The graph: immutable, interned nodes with the user's source line on each.

A node is one operation. Collectives may carry several values in one exchange, so a node has a tuple of result types; `item` nodes
name the results of a multi-value exchange. Everything above (verify, place, oracle, planner, text) walks `Graph.nodes` in order.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cfdsl.errors import ArgumentError

Dim = int | str  # a str is a size known only when tensors arrive, e.g. "tokens", the capacity of a cache

FLOATS = ("f32", "f16", "bf16")
ITEMSIZE = {"f32": 4, "f16": 2, "bf16": 2, "i32": 4}

CLUSTER_COLLECTIVES = ("cluster_reduce", "cluster_gather", "cluster_reduce_scatter")
GRID_COLLECTIVES = ("grid_reduce", "grid_gather", "grid_reduce_scatter")
COLLECTIVES = CLUSTER_COLLECTIVES + GRID_COLLECTIVES
LEAVES = ("input", "weight", "kv_cache")
TOKENS_DIM = {"bhtd": 2, "bthd": 1}  # of a cache's tensors, by its layout: the dimension that is the capacity
WORDS = {"slice_grid": "x[axis]", "slice_cluster": "shard"}  # what the author of a spec writes for an op, where that is another word
POINTWISE = ("add", "mul", "silu", "gelu", "cast")  # an element of the result is made of one element of each argument
VIEWS = ("slice_grid", "slice_cluster", "split_heads", "merge_heads", "reshape", "split", "item")  # the same elements, or some of them


@dataclass(frozen=True)
class Src:
    """Where in the user's code a node was written."""

    file: str
    line: int
    code: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Type:
    """Logical shape (of the whole value, not of a slice) and dtype."""

    shape: tuple[Dim, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Node:
    """One operation. Equal nodes are the same object, so identity is equality.

    The user's line is part of what makes a node: were it not, a node of one fusion could carry the line of another that happens to
    compute the same. (Within one trace, equal expressions on different lines are one node: the tracer sees to that.)
    """

    __slots__ = ("op", "args", "attrs", "types", "src", "__weakref__")
    op: str
    args: tuple[Node, ...]
    attrs: tuple[tuple[str, Any], ...]
    types: tuple[Type, ...]
    src: Src

    _interned: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()

    def __new__(cls, op: str, args: tuple[Node, ...], attrs: dict[str, Any], types: tuple[Type, ...], src: Src) -> Node:
        frozen = tuple(sorted(attrs.items()))
        key = (op, args, frozen, types, src)
        found = cls._interned.get(key)
        if found is not None:
            return found
        self = super().__new__(cls)
        for name, value in zip(("op", "args", "attrs", "types", "src"), (op, tuple(args), frozen, tuple(types), src)):
            object.__setattr__(self, name, value)
        cls._interned[key] = self
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"graph nodes are immutable; cannot set {name!r}")

    def attr(self, name: str, default: Any = None) -> Any:
        return dict(self.attrs).get(name, default)

    @property
    def type(self) -> Type:
        """The type of a single-result node."""
        (only,) = self.types
        return only

    @property
    def word(self) -> str:
        """The op as the author of a spec writes it; of a result of several, the op that made them."""
        return self.args[0].word if self.op == "item" else WORDS.get(self.op, self.op)

    @property
    def is_collective(self) -> bool:
        return self.op in COLLECTIVES

    def __repr__(self) -> str:
        return f"<{self.op} {', '.join(map(str, self.types))}>"


@dataclass(frozen=True)
class Graph:
    """A fusion traced for one model and dtype: named outputs over a DAG of nodes.

    `over` is the number of work units that `clusters(over=)` spreads over the grid (None: the fusion has no such block).
    `effects` are nodes kept for what they do (a cache append), in program order.
    `order` is the order in which the user wrote the nodes; nodes that neither an output nor an effect needs may be in it.
    `outputs_src` is the line that names the outputs.
    """

    name: str
    outputs: tuple[tuple[str, Node], ...]
    effects: tuple[Node, ...] = ()
    over: int | None = None
    dtype: str = "bf16"
    order: tuple[Node, ...] = field(default=(), compare=False, repr=False)
    outputs_src: Src | None = field(default=None, compare=False, repr=False)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that is needed, once, arguments before users, in the order in which the user wrote them."""
        order: dict[Node, None] = {}

        def visit(node: Node) -> None:
            if node in order:
                return
            for arg in node.args:
                visit(arg)
            order[node] = None

        for root in (*self.effects, *(node for _, node in self.outputs)):
            visit(root)
        written = tuple(node for node in self.order if node in order)
        return written if len(written) == len(order) else tuple(order)

    def output_dtype(self, node: Node) -> str:
        """The dtype in which an output is stored: that of a cast, i32 of indices, else the fusion's own, to which it is rounded."""
        return node.type.dtype if node.op == "cast" or node.type.dtype == "i32" else self.dtype

    def leaves(self, op: str) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.op == op)

    def users(self, node: Node) -> tuple[Node, ...]:
        return tuple(user for user in self.nodes if node in user.args)


def leaf_of(node: Node) -> Node:
    """The input, weight or cache that a chain of views and appends starts from; what is computed, if it starts from that."""
    while node.op in VIEWS or node.op == "append":
        node = node.args[0]
    return node


def cache_tensors(node: Node) -> tuple[tuple[str, Type], tuple[str, Type]]:
    """The two tensors of a kv_cache, keys and values, by name; their shape is as they lie in memory, in the cache's layout."""
    batch, heads, tokens, dim = node.type.shape
    shape = (batch, heads, tokens, dim) if node.attr("layout") == "bhtd" else (batch, tokens, heads, dim)
    held = Type(shape, node.type.dtype)
    return (f"{node.attr('name')}_k", held), (f"{node.attr('name')}_v", held)


def expect_graph(given: object) -> Graph:
    """The graph as it is. Raises ArgumentError for anything else, such as a fusion that was not traced."""
    if not isinstance(given, Graph):
        advice = "trace a fusion: fusion.trace(model) is its graph"
        raise ArgumentError(argument="graph", expected="a graph", got=f"a {type(given).__name__}", advice=advice)
    return given
