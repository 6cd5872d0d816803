"""Mutations: a fusion that lacks one of its collectives is refused, or its result is wrong and the comparison sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cfdsl as cf
import fusions
from cfdsl.dsl.graph import COLLECTIVES, Graph, Node
from cfdsl.dsl.interpret import OracleError, interpret, run

MODEL = cf.ModelConfig("tiny", 32, 4, 2, 16, qkv_bias=True, intermediate=48, vocab=40)
MESHES = {"grid": cf.Mesh(6, 2, 3)}  # by the option qkv: three clusters share the tokens of each head
MESH = cf.Mesh(2, 4)
GRID = (("qkv", "grid"), ("out", "gather"), ("layout", "bhtd"), ("residual", True))
Case = tuple[str, tuple[tuple[str, Any], ...], int]


def delete_collective(graph: Graph, node: Node) -> tuple[Graph, dict[Node, Node]]:
    """`graph` with every result of the collective `node` replaced by the argument it was made from; and old node -> new node."""
    new: dict[Node, Node] = {}
    for old in graph.nodes:
        if old.op == "item" and old.args[0] is node:
            new[old] = new[node.args[old.attr("index")]]
        else:
            new[old] = Node(old.op, tuple(new[arg] for arg in old.args), dict(old.attrs), old.types, old.src)
    outputs = tuple((name, new[old]) for name, old in graph.outputs)
    return Graph(graph.name, outputs, tuple(new[old] for old in graph.effects), graph.over, graph.dtype), new


def dataflows(name: str) -> Iterator[dict[str, Any]]:
    """Every combination of a fusion's options, but for the one that is refused."""
    found: list[dict[str, Any]] = [{}]
    for option, choices in fusions.find(name).choices.items():
        found = [{**one, option: choice} for one in found for choice in choices]
    yield from (one for one in found if (one.get("qkv"), one.get("out")) != ("grid", "atomic"))


def mesh_of(case: Case) -> cf.Mesh:
    return MESHES.get(dict(case[1]).get("qkv", ""), MESH)


def cases() -> Iterator[Case]:
    for name in fusions.names():
        for options in dataflows(name):
            graph = fusions.find(name).trace(MODEL, batch=2, **options)
            for index, _ in enumerate(node for node in graph.nodes if node.is_collective):
                yield name, tuple(options.items()), index


ALL = list(cases())


def setting(case: Case) -> tuple[Graph, Node, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The intact graph, the collective to delete, tensors and the right answers, by output."""
    name, options, index = case
    fusion = fusions.find(name)
    graph = fusion.trace(MODEL, batch=2, **dict(options))
    node = [node for node in graph.nodes if node.is_collective][index]
    tensors = fusion.example_inputs(MODEL, 2, "bf16", [9, 14], 16, **dict(options))
    want = fusion.reference(MODEL, tensors, **dict(options))
    return graph, node, tensors, {name: want[name] for name, _ in graph.outputs}


def close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> bool:
    """Numbers nearly, indices exactly."""
    return all(
        bool((got[name] - value).norm() < 4e-3 * value.norm()) if value.is_floating_point() else torch.equal(got[name], value)
        for name, value in want.items()
    )


def test_every_option_and_collective_is_covered() -> None:
    """The cases are not empty by accident, and the fusions use every collective."""
    used = {setting(case)[1].op for case in ALL}
    assert used >= set(COLLECTIVES)
    in_grid = [setting(case)[1].op for case in ALL if case[1][:4] == GRID]
    assert in_grid == ["grid_gather", "cluster_reduce_scatter", "grid_reduce"]
    assert len(ALL) >= 1 + 2 * (2 * 2 * 3 - 1) + 2 * 3


@pytest.mark.parametrize("case", ALL, ids=str)
def test_intact_graph_is_right(case: Case) -> None:
    graph, _, tensors, want = setting(case)
    assert close(interpret(graph, tensors, mesh_of(case), precision="f64", round_outputs=False).outputs, want)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_deleting_a_collective_is_refused_by_place_or_seen(case: Case) -> None:
    graph, node, tensors, want = setting(case)
    mutant, _ = delete_collective(graph, node)
    try:
        placed = cf.place(mutant, mesh_of(case))
    except cf.CfdslError:
        return
    assert wrong(placed, tensors, want)


@pytest.mark.parametrize("checked", [True, False], ids=("claims checked", "claims believed"))
@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_placement_that_lies_gives_wrong_numbers(case: Case, checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collective is gone, and the placements say what they said while it was there: then only the oracle can tell.

    Also where the oracle believes what placements claim: the numbers themselves must be wrong, not just the paperwork.
    """
    graph, node, tensors, want = setting(case)
    mutant, new = delete_collective(graph, node)
    honest = cf.place(graph, mesh_of(case)).placements
    lies = {new[old]: honest[old] for old in graph.nodes if old is not node and not (old.op == "item" and old.args[0] is node)}
    if not checked:
        monkeypatch.setattr(run, "_check_claim", lambda *_: None)
    assert wrong(cf.PlacedGraph(mutant, mesh_of(case), lies), tensors, want)


def wrong(placed: cf.PlacedGraph, tensors: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> bool:
    """Whether the oracle refuses, or its numbers differ from the reference."""
    try:
        got = interpret(placed, tensors, precision="f64", round_outputs=False).outputs
    except OracleError:
        return True
    return not close(got, want)


def test_wrong_numbers_do_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every mutant ends in an error: a row whose mean square is not reduced runs to the end, and is wrong."""
    graph, node, tensors, want = setting(("rms_norm", (), 0))
    mutant, new = delete_collective(graph, node)
    honest = cf.place(graph, MESH).placements
    lies = {new[old]: honest[old] for old in graph.nodes if old in new and old is not node and old.op != "item"}
    claimed = {**lies, new[node.args[0]]: honest[graph.users(node)[0]]}
    with pytest.raises(OracleError, match=r"placed \[S\(0\), R\], but .* hold different values: a collective is missing"):
        interpret(cf.PlacedGraph(mutant, MESH, claimed), tensors)
    monkeypatch.setattr(run, "_check_claim", lambda *_: None)
    got = interpret(cf.PlacedGraph(mutant, MESH, lies), tensors, precision="f64", round_outputs=False).outputs
    assert not close(got, want)
