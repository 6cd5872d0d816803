"""What each rank holds: names for the values of a graph, and the slice of each that one CTA has.

Pictures and tables read a graph through this file, so that both call a value by the name that the spec's author gave it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Protocol

from cfdsl.dsl.graph import LEAVES, VIEWS, Dim, Graph, Node, leaf_of
from cfdsl.dsl.placement import Mesh, Placement, Replicate, Shard, shard_bounds


class Placed(Protocol):
    """What is read of a `PlacedGraph`."""

    @property
    def graph(self) -> Graph: ...

    @property
    def mesh(self) -> Mesh: ...

    def of(self, node: Node) -> Placement:
        """The placement of a single-result node."""
        ...


@dataclass(frozen=True)
class Slice:
    """The half-open run of one dimension that a holder has, out of `size`."""

    begin: int
    end: int
    size: int

    @property
    def whole(self) -> bool:
        return self.end - self.begin == self.size


def names_of(graph: Graph) -> dict[Node, str]:
    """A name for every node: a leaf's own, an output's, else the variable that the user's line assigns, else the op."""
    names: dict[Node, str] = {}
    together: dict[tuple[str, int, str], list[Node]] = {}
    for node in graph.nodes:
        together.setdefault((node.src.file, node.src.line, node.op), []).append(node)
    for node in graph.nodes:
        if node.attr("name") is not None:
            names[node] = str(node.attr("name"))
        elif node.op == "item":
            names[node] = _item_name(node, names)
        else:
            names[node] = _assigned(node, names, together[node.src.file, node.src.line, node.op]) or _fallback(node, names)
    for name, node in graph.outputs:
        if node.op not in LEAVES:
            names[node] = name
    return names


def _item_name(node: Node, names: dict[Node, str]) -> str:
    """A result of an exchange: the variable that takes it, where the exchange is what the line assigns."""
    exchange = node.args[0]
    statement = _Statement.of(exchange.src.code)
    index = int(node.attr("index", 0))
    if statement.outer in (exchange.op, "") or exchange.op not in statement.calls:
        if len(statement.targets) == len(exchange.types):
            return statement.targets[index]
        if len(statement.targets) == 1:
            return f"{statement.targets[0]}[{index}]"
    carried = names[exchange.args[index]] if index < len(exchange.args) else ""
    return carried or exchange.op


def _assigned(node: Node, names: dict[Node, str], alike: list[Node]) -> str | None:
    """The variable that the line assigns this node to, as far as the line alone tells; `alike`: the nodes of this op on the line."""
    statement = _Statement.of(node.src.code)
    targets = () if node.is_collective else statement.targets
    nested = node.op in statement.calls and statement.outer not in (node.op, "")
    carried = names.get(node.args[0]) if node.args else None
    if len(targets) > 1:
        if carried in targets:
            return carried
        return targets[alike.index(node)] if len(alike) == len(targets) else None
    if len(targets) == 1 and len(alike) == 1 and not nested:
        return targets[0]
    return None


def _fallback(node: Node, names: dict[Node, str]) -> str:
    weight = _read_leaf(node.args[1]) if node.op == "linear" else None
    if weight is not None and weight in names:
        return f"linear_{names[weight]}"
    return node.op


@dataclass(frozen=True)
class _Statement:
    """What a line of Python assigns: its targets, the function called last (empty for other expressions), all functions called."""

    targets: tuple[str, ...] = ()
    outer: str = ""
    calls: frozenset[str] = frozenset()

    @staticmethod
    def of(code: str) -> _Statement:
        """Of one line; where a statement goes on over several lines, what its first line tells."""
        try:
            statement = ast.parse(code.strip()).body[0]
        except (SyntaxError, IndexError, ValueError):
            head, equals, tail = code.partition(" = ")
            words = tuple(word.strip() for word in head.split(","))
            known = equals and all(word.isidentifier() for word in words)
            first = tail.strip().partition("(")[0].rpartition(".")[2]
            return _Statement(words, first, frozenset({first})) if known else _Statement()
        if not isinstance(statement, ast.Assign):
            return _Statement()
        target = statement.targets[0]
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        targets = tuple(part.id for part in parts if isinstance(part, ast.Name))
        calls = frozenset(_called(inner) for inner in ast.walk(statement.value) if isinstance(inner, ast.Call))
        return _Statement(targets, _called(statement.value) if isinstance(statement.value, ast.Call) else "", calls)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""


def local_slices(shape: tuple[Dim, ...], placement: Placement, mesh: Mesh, cluster: int, rank: int) -> tuple[Slice | str, ...]:
    """The slice of each dimension that `rank` of `cluster` holds; a dimension that is only known at run time stays text."""
    found: list[Slice | str] = []
    for dim, extent in enumerate(shape):
        on_grid = isinstance(placement.grid, Shard) and placement.grid.dim == dim
        on_cluster = isinstance(placement.cluster, Shard) and placement.cluster.dim == dim
        if isinstance(extent, str):
            ways = (mesh.groups if on_grid else 1) * (mesh.ranks if on_cluster else 1)
            found.append(extent if ways == 1 else f"{extent}/{ways}")
            continue
        begin, end = 0, extent
        if on_grid and on_cluster:
            begin, end = shard_bounds(extent, mesh.ctas, cluster * mesh.ranks + rank)
        elif on_grid:
            begin, end = shard_bounds(extent, mesh.groups, cluster // mesh.splits)
        elif on_cluster:
            begin, end = shard_bounds(extent, mesh.ranks, rank)
        found.append(Slice(begin, end, extent))
    return tuple(found)


def local_shape(shape: tuple[Dim, ...], placement: Placement, mesh: Mesh, cluster: int = 0, rank: int = 0) -> tuple[Dim, ...]:
    """The shape of what one rank holds."""
    slices = local_slices(shape, placement, mesh, cluster, rank)
    return tuple(part if isinstance(part, str) else part.end - part.begin for part in slices)


def shape_text(shape: tuple[Dim, ...]) -> str:
    """`1×32×128`."""
    return "×".join(str(dim) for dim in shape) or "scalar"


def regrouped(node: Node) -> Node:
    """Behind views that only regroup a value, the value that the user named."""
    while node.op in VIEWS and node.op != "item":
        node = node.args[0]
    return node


def _read_leaf(node: Node) -> Node:
    """The leaf that is read where `node` is used: casts are computed as it is read."""
    leaf = leaf_of(node)
    while leaf.op == "cast":
        leaf = leaf_of(leaf.args[0])
    return leaf


@dataclass(frozen=True)
class Read:
    """A leaf that an op reads from global memory, and the share of it that one CTA reads: all, a row, or 1/n."""

    name: str
    share: str


def reads_of(node: Node, placed: Placed) -> list[Read]:
    """What `node` reads from global memory, and over how many CTAs the reading is spread."""
    found = []
    for arg in node.args:
        leaf = _read_leaf(arg)
        if leaf.op not in LEAVES or node.op in ("append", *VIEWS):
            continue
        name = str(leaf.attr("name"))
        if leaf.op == "kv_cache":
            found.append(Read(f"{name}_k, {name}_v", f"1/{_ways(node, arg, placed)}"))
        elif node.op == "linear" and arg is node.args[1]:
            found.append(Read(name, f"1/{_ways(node, arg, placed)}"))
        elif (node.op == "rope" and len(leaf.type.shape) == 2) or (node.op == "embedding" and arg is node.args[1]):
            found.append(Read(name, "row"))
        elif leaf.type.dtype != "i32":
            found.append(Read(name, _pointwise_share(node, arg, placed)))
    return found


def _ways(node: Node, arg: Node, placed: Placed) -> int:
    """Over how many CTAs the reading of a matrix or cache is spread: clusters that have different slices or tokens, times ranks that do."""
    mesh, sliced = placed.mesh, placed.of(arg).grid
    if isinstance(sliced, Shard):
        slices = arg.type.shape[sliced.dim]
        grid = min(mesh.groups, slices) if isinstance(slices, int) else mesh.groups
        grid *= mesh.splits if node.attr("across") == "all" else 1
    else:
        grid = mesh.clusters if isinstance(placed.of(node).grid, Shard) else 1
    return grid * (1 if isinstance(placed.of(node).cluster, Replicate) else mesh.ranks)


def _pointwise_share(node: Node, arg: Node, placed: Placed) -> str:
    """The share of the last dimension that is read: cut as the operand is, or as the result is."""
    out, given = placed.of(node), placed.of(arg)
    cut, own = Shard(len(node.type.shape) - 1), Shard(len(arg.type.shape) - 1)
    on_grid, on_cluster = out.grid == cut or given.grid == own, out.cluster == cut or given.cluster == own
    ways = (placed.mesh.clusters if on_grid else 1) * (placed.mesh.ranks if on_cluster else 1)
    return "all" if ways == 1 else f"1/{ways}"
