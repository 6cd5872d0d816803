"""The oracle behind a kernel's face: a fusion called on CPU tensors as `compile` would have it called on a GPU's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from cfdsl.compiler.plan import Arg
from cfdsl.compiler.signature import signature
from cfdsl.dsl.fusion import Fusion, expect_fusion
from cfdsl.dsl.graph import TOKENS_DIM, Graph, Node, leaf_of
from cfdsl.dsl.interpret import Traffic, count_traffic, interpret
from cfdsl.dsl.place import PlacedGraph, place
from cfdsl.dsl.placement import Mesh
from cfdsl.dsl.verify import verify
from cfdsl.errors import CfdslError, attempt, raise_all
from cfdsl.models import ModelConfig, resolve
from cfdsl.runtime.arguments import check_arguments, in_order
from cfdsl.runtime.build import unknown_settings
from cfdsl.runtime.flags import LENGTH_CLAMPED, POSITION_CLAMPED, TOKEN_CLAMPED, in_words

MESH = ("clusters", "cluster_size", "splits")


class Oracle:
    """One fusion, placed on a mesh and run on the CPU, for every rank of every cluster in turn.

    Call it with CPU tensors in the order of `args` (or by name), like the kernel of the same fusion: it writes the caches and outputs in
    place, rounded to their dtypes, and returns None. Lengths and positions out of range are clamped and flagged, as a kernel does it.
    """

    def __init__(self, fusion: Fusion, model: ModelConfig, placed: PlacedGraph) -> None:
        self.fusion, self.model, self.placed = fusion, model, placed
        self.name = f"{fusion.name}_oracle"
        self.args: tuple[Arg, ...] = signature(placed.graph)
        self._checked = tuple(replace(arg, align=1) for arg in self.args)  # no bulk copies here: any address will do
        self._status = 0  # a kernel's status word

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> None:
        """Run it. Raises one error that names every bad argument, as a kernel does; OracleError where ranks contradict a placement."""
        if kwargs or not args:
            args = in_order(self._checked, args, kwargs, "cpu")
        check_arguments(self._checked, args, "cpu")
        tensors = {arg.name: value for arg, value in zip(self.args, args, strict=True)}
        for bit in _out_of_range(self.placed.graph, tensors):
            self._status |= 1 << bit
        with torch.no_grad():  # weights may be parameters; like a kernel, this has no gradient
            result = interpret(self.placed, tensors, count=False)
            for name, value in {**result.caches, **result.outputs}.items():
                tensors[name].copy_(value)

    def status(self, clear: bool = False) -> tuple[str, ...]:
        """What calls flagged since the flags were last cleared, in a kernel's words; empty if nothing."""
        found = in_words(self._status)
        if clear:
            self._status = 0
        return found

    def prepare(self, index: int | None = None) -> None:
        """Nothing to get ready: here so that a caller need not ask which of the two it has."""

    def traffic(self, sizes: Mapping[str, int] | None = None) -> Traffic:
        """The bytes of one call, from shapes alone. sizes: as of `Kernel.traffic`."""
        return count_traffic(self.placed, sizes)

    def __repr__(self) -> str:
        return f"<Oracle {self.fusion.name}: {self.model.name}, {self.placed.graph.dtype}, {self.placed.mesh}>"


def oracle(fusion: Fusion, model: ModelConfig | str, batch: int = 1, dtype: str = "bf16", **settings: Any) -> Oracle:
    """A callable that is used like the Kernel of `compile(fusion, model, batch, dtype)`, on CPU tensors, run by the oracle.

    settings: options of the fusion, and `clusters`, `cluster_size`, `splits` of the mesh. What is not given is chosen small: two or more
    clusters of two ranks where the fusion can be placed on them, so that every collective moves something.
    Raises one error with every mistake of the request, or the reason why the fusion cannot be placed on what was given.
    """
    expect_fusion(fusion)
    options = {name: value for name, value in settings.items() if name in fusion.options}
    mesh = {name: value for name, value in settings.items() if name not in options}
    errors = [*unknown_settings(fusion, settings, "mesh", MESH), *fusion.request_errors(batch, dtype, options)]
    config = attempt(errors, resolve, model)
    raise_all(errors)
    graph = verify(fusion.trace(config, batch, dtype, **options))
    return Oracle(fusion, config, _placed(graph, mesh))


def _placed(graph: Graph, given: Mapping[str, int]) -> PlacedGraph:
    """On the first mesh that it can be placed on; where there is none, the first one's error."""
    first: CfdslError | None = None
    for mesh in _meshes(graph, given):
        try:
            return place(graph, mesh)
        except CfdslError as error:
            first = first or error
    assert first is not None
    raise first


def _meshes(graph: Graph, given: Mapping[str, int]) -> Iterator[Mesh]:
    """Meshes to try, the best first: two ranks before one, and the fewest clusters that are more than one and share the units evenly."""
    splits = given.get("splits", 1)
    units = graph.over or 2
    groups = [n for n in range(2, units + 1) if units % n == 0] + [1]
    counts = (given["clusters"],) if "clusters" in given else tuple(n * splits for n in groups)
    for ranks in (given["cluster_size"],) if "cluster_size" in given else (2, 1):
        for clusters in counts:
            yield Mesh(clusters, ranks, splits)


def _out_of_range(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> Iterator[int]:
    """The bit of every length, position and token that is out of range and will be clamped."""
    for node in graph.nodes:
        if node.op == "append":
            capacity = _capacity(node, tensors)
            if not _within(node.args[3], tensors, capacity - 1):
                yield LENGTH_CLAMPED
        elif node.op == "attend":
            capacity = _capacity(node.args[1], tensors)
            if not all(_within(length, tensors, capacity) for length in node.args[2:]):
                yield LENGTH_CLAMPED
        elif node.op == "rope":
            table = leaf_of(node.args[1])
            if table.op in ("input", "weight") and not _within(node.args[3], tensors, len(tensors[table.attr("name")]) - 1):
                yield POSITION_CLAMPED
        elif node.op == "embedding":
            rows = len(tensors[leaf_of(node.args[1]).attr("name")])
            if not _within(node.args[0], tensors, rows - 1):
                yield TOKEN_CLAMPED


def _capacity(cache: Node, tensors: Mapping[str, torch.Tensor]) -> int:
    leaf = leaf_of(cache)
    return tensors[f"{leaf.attr('name')}_k"].shape[TOKENS_DIM[leaf.attr("layout")]]


def _within(index: Node, tensors: Mapping[str, torch.Tensor], high: int) -> bool:
    leaf = leaf_of(index)
    if leaf.op != "input":
        return True  # computed: no argument of the call
    values = tensors[leaf.attr("name")]
    return bool(((values >= 0) & (values <= high)).all())
