"""Placing a graph on a mesh: every value gets a placement on the grid and on the cluster, or the mistakes are reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cfdsl.dsl.graph import LEAVES, Graph, Node, expect_graph
from cfdsl.dsl.place_rules import PLACE_RULES, Site
from cfdsl.dsl.placement import Mesh, Placement
from cfdsl.errors import ArgumentError, CfdslError, ClustersDoNotDivide, ClusterSizeUnsupported, NothingToSplit, is_whole, raise_all

MAX_CLUSTER_SIZE = 16
FREE = (*LEAVES, "item")  # nothing is wrong with their placement


@dataclass(frozen=True)
class PlacedGraph:
    """A graph on a mesh. `placements` has one placement per result of each node."""

    graph: Graph
    mesh: Mesh
    placements: Mapping[Node, tuple[Placement, ...]]

    def of(self, node: Node) -> Placement:
        """The placement of a single-result node."""
        (only,) = self.placements[node]
        return only


def place(graph: Graph, mesh: Mesh) -> PlacedGraph:
    """Place every value of `graph` on `mesh`. Raises the one mistake, or `Errors` with all independent ones: also of values that are not
    needed, if no mesh cures them."""
    raise_all(_check_mesh(expect_graph(graph), mesh))
    placements, errors = _placements(graph, graph.nodes, mesh)
    raise_all([*errors, *_unneeded_mistakes(graph)])
    return PlacedGraph(graph, mesh, placements)


def lasting_mistakes(graph: Graph) -> list[CfdslError]:
    """The mistakes of placement that no mesh cures, of all values of a spec.

    Looked for on a mesh on which everything divides: a cluster of one rank for each unit of work.
    """
    return _placements(graph, graph.order, Mesh(graph.over or 1, 1))[1]


def _unneeded_mistakes(graph: Graph) -> list[CfdslError]:
    """Those of values that neither an output nor an effect needs. They have no placement on a mesh, and so keep none from being used."""
    if all(node.op in FREE for node in set(graph.order).difference(graph.nodes)):
        return []
    needed = {str(error) for error in _placements(graph, graph.nodes, Mesh(graph.over or 1, 1))[1]}
    return [error for error in lasting_mistakes(graph) if str(error) not in needed]


def _placements(
    graph: Graph, nodes: tuple[Node, ...], mesh: Mesh
) -> tuple[dict[Node, tuple[Placement, ...]], list[CfdslError]]:
    """Where these values of a graph are, and every independent mistake among them and the outputs."""
    placements: dict[Node, tuple[Placement, ...]] = {}
    errors: list[CfdslError] = []
    for node in nodes:
        if any(arg not in placements for arg in node.args):
            continue  # a consequence of a mistake that is already noted
        try:
            placements[node] = _place(node, placements, graph, mesh)
        except CfdslError as error:
            errors.append(error)
    for name, node in graph.outputs:
        if node in placements:
            try:
                _check_output(name, node, placements[node], graph, mesh)
            except CfdslError as error:
                errors.append(error)
    return placements, errors


def _place(node: Node, placements: Mapping[Node, tuple[Placement, ...]], graph: Graph, mesh: Mesh) -> tuple[Placement, ...]:
    if node.op == "item":
        return (placements[node.args[0]][node.attr("index")],)
    site = Site(node, tuple(placements[arg][0] for arg in node.args), mesh, graph.over)
    if not node.is_collective:
        site.no_open_tuples()
        site.one_deal()
    return PLACE_RULES[node.op](site)


def _check_mesh(graph: Graph, mesh: object) -> list[CfdslError]:
    if not isinstance(mesh, Mesh):
        return [ArgumentError(argument="mesh", expected="a Mesh(clusters, ranks)", got=repr(mesh))]
    wrong = {name: n for name, n in vars(mesh).items() if not is_whole(n)}
    if wrong:
        return [ArgumentError(argument=name, expected="a number", got=repr(value)) for name, value in wrong.items()]
    errors: list[CfdslError] = []
    if not 1 <= mesh.ranks <= MAX_CLUSTER_SIZE:
        errors.append(ClusterSizeUnsupported(size=mesh.ranks))
    if mesh.clusters < 1:
        errors.append(ArgumentError(argument="clusters", expected="a positive number of clusters", got=str(mesh.clusters)))
    elif mesh.splits < 1 or mesh.clusters % mesh.splits:
        errors.append(ArgumentError(argument="splits", expected=f"a number that divides {mesh.clusters} clusters", got=str(mesh.splits)))
    else:
        errors += _check_units(graph, mesh)
    return errors


def _check_units(graph: Graph, mesh: Mesh) -> list[CfdslError]:
    """Units go evenly over the groups, and the splits of a group have something to split."""
    if graph.over is None:
        return []
    errors: list[CfdslError] = []
    if graph.over % mesh.groups and mesh.groups % graph.over:
        errors.append(ClustersDoNotDivide(over=graph.over, clusters=mesh.groups, splits=mesh.splits))
    if mesh.splits > 1 and not any(node.op == "attend" and node.attr("across") == "all" for node in graph.nodes):
        errors.append(NothingToSplit(fusion=graph.name, splits=mesh.splits))
    return errors


def _check_output(name: str, node: Node, placements: tuple[Placement, ...], graph: Graph, mesh: Mesh) -> None:
    """An output is stored by whoever holds it: terms cannot be."""
    stored = Node("output", (node,), {"name": name}, node.types, graph.outputs_src or node.src)
    Site(stored, placements, mesh, graph.over).no_partial()
