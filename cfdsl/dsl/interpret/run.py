"""Running a placed graph: node by node, rank by rank, checking that what ranks hold is what the placements claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from cfdsl.dsl.graph import ITEMSIZE, LEAVES, Graph, Node, Type, cache_tensors, expect_graph
from cfdsl.dsl.interpret import attention, compute, select, views
from cfdsl.dsl.interpret.attention import LocalCache
from cfdsl.dsl.interpret.collectives import exchange
from cfdsl.dsl.interpret.local import Holdings, Local, OracleError, Rank, assemble, full_spans, same_bits
from cfdsl.dsl.interpret.machine import Machine
from cfdsl.dsl.interpret.traffic import Counter, Traffic, Unwatched
from cfdsl.dsl.place import PlacedGraph, place
from cfdsl.dsl.place_rules.site import over_all_ctas
from cfdsl.dsl.placement import Mesh, Placement, Replicate, Shard
from cfdsl.errors import ArgumentError, raise_all

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HANDLERS = {**views.HANDLERS, **compute.HANDLERS, **attention.HANDLERS, **select.HANDLERS}


@dataclass(frozen=True)
class OracleResult:
    """outputs: by name, whole. caches: `{name}_k` and `{name}_v` after the launch, new tensors in the caches' layout and dtype."""

    outputs: dict[str, Tensor]
    caches: dict[str, Tensor]
    counted: Traffic | None

    @property
    def traffic(self) -> Traffic:
        """The bytes that moved."""
        if self.counted is None:
            raise ArgumentError(argument="count", expected="True for the traffic to be known", got="False")
        return self.counted


def interpret(
    placed: PlacedGraph | Graph, tensors: Mapping[str, Tensor], mesh: Mesh | None = None, precision: str = "f32",
    round_outputs: bool = True, count: bool = True,
) -> OracleResult:  # fmt: skip
    """Run every node for every rank of every cluster, on the slices that the rank holds, and count the bytes that move.

    placed          a placed graph; or a graph, which is placed on `mesh` (default: a cluster of 1 per work unit)
    tensors         the inputs and weights by name, a cache `c` as `c_k` and `c_v`, in their declared dtypes; more names do no harm.
                    They are not changed. Tokens at or past a cache's length are never looked at.
    precision       "f32" or "f64": the type of everything computed
    round_outputs   give outputs in the dtypes that the kernel stores (`Graph.output_dtype`); else as computed
    count           watch every byte that is touched, for `traffic`; without that large weights take a third of the time

    A length out of range is clamped to 0..capacity for attention, and nothing is stored then (nor in a full cache); the new token still
    takes part in attention.
    Raises ArgumentError for a missing or misshapen tensor, OracleError when ranks contradict a placement.
    """
    import torch

    if not isinstance(placed, PlacedGraph):
        expect_graph(placed)
        placed = place(placed, mesh or Mesh(placed.over or 1, 1))
    if precision not in ("f32", "f64"):
        raise ArgumentError(argument="precision", expected="'f32' or 'f64'", got=repr(precision))
    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i32": torch.int32}
    graph = placed.graph
    roles = {leaf.attr("name"): leaf.op for op in ("input", "weight") for leaf in graph.leaves(op)}
    sizes = _bind(graph, tensors, dtypes)
    counter = Counter(roles) if count else Unwatched(roles)
    machine = Machine(placed, placed.mesh, torch.float32 if precision == "f32" else torch.float64, dtypes, sizes, counter)
    held: dict[Node, list[dict[Rank, Any]]] = {}
    for node in graph.nodes:
        held[node] = _step(machine, node, held, tensors)
        for result, of, placement in zip(held[node], node.types, placed.placements[node], strict=True):
            _check_claim(machine, node, of, result, placement)
    outputs = {name: _output(machine, node, held[node][0], round_outputs) for name, node in graph.outputs}
    return OracleResult(outputs, _caches(machine, graph), counter.total() if count else None)


def _bind(graph: Graph, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, int]:
    """The sizes of named dimensions, from the tensors' shapes, which must be the declared ones otherwise. Raises all that are wrong."""
    import torch

    sizes: dict[str, int] = {}
    if not isinstance(tensors, Mapping):
        raise ArgumentError(argument="tensors", expected="a dict of tensors by the graph's names", got=f"a {type(tensors).__name__}")
    wrong = []
    for name, declared in leaf_tensors(graph):
        got = tensors.get(name)
        if not isinstance(got, torch.Tensor):
            lacks = "nothing" if got is None else f"a {type(got).__name__}"
            wrong.append(ArgumentError(argument=name, expected=f"a tensor {declared}", got=lacks))
            continue
        fits = got.dtype == dtypes[declared.dtype] and got.dim() == len(declared.shape)
        if not fits or any(
            (sizes.setdefault(dim, size) if isinstance(dim, str) else dim) != size
            for dim, size in zip(declared.shape, got.shape, strict=True)
        ):
            found = f"{str(got.dtype).removeprefix('torch.')}[{','.join(map(str, got.shape))}]"
            wrong.append(ArgumentError(argument=name, expected=f"a tensor {declared}", got=found))
    raise_all(wrong)
    return sizes


def leaf_tensors(graph: Graph) -> list[tuple[str, Type]]:
    """The tensors that a graph takes, in the order of the graph, with their types in memory: of a cache both, in its layout."""
    found: list[tuple[str, Type]] = []
    for node in graph.nodes:
        if node.op in ("input", "weight"):
            found.append((node.attr("name"), node.type))
        if node.op == "kv_cache":
            found += cache_tensors(node)
    return found


def _step(m: Machine, node: Node, held: dict[Node, list[dict[Rank, Any]]], tensors: Mapping[str, Tensor]) -> list[dict[Rank, Any]]:
    """What every rank holds of every result of `node`."""
    ranks = [(cluster, rank) for cluster in range(m.mesh.clusters) for rank in range(m.mesh.ranks)]
    if node.op in LEAVES:
        return [dict.fromkeys(ranks, _leaf(m, node, tensors))]
    if node.op == "item":
        return [held[node.args[0]][node.attr("index")]]
    args = [held[arg][0] for arg in node.args]
    if node.is_collective:
        return list(exchange(m, node, args))
    if node.op == "split":
        pieces = {rank: views.split(m, node, args[0][rank]) for rank in ranks}
        return [{rank: pieces[rank][index] for rank in ranks} for index in range(len(node.types))]
    handler = HANDLERS[node.op]
    return [{rank: handler(m, node, rank, [arg[rank] for arg in args]) for rank in ranks}]


def _leaf(m: Machine, node: Node, tensors: Mapping[str, Tensor]) -> Local | LocalCache:
    name = node.attr("name")
    spans = full_spans(m.shape(node))
    if node.op != "kv_cache":
        data = tensors[name]
        return Local(data, spans, None, name, m.counter.leaf(name, data))
    layout = node.attr("layout")
    k, v = (_logical(tensors[f"{name}_{part}"], layout) for part in "kv")
    new_k, new_v = (_logical(tensors[f"{name}_{part}"].clone(), layout) for part in "kv")
    m.caches[name] = new_k, new_v
    return LocalCache(name, k, v, (m.counter.cache(f"{name}_k", k), m.counter.cache(f"{name}_v", v)), spans)


def _logical(data: Tensor, layout: str) -> Tensor:
    """A view (batch, heads, tokens, dim) of a cache tensor; its own inverse."""
    return data if layout == "bhtd" else data.transpose(1, 2)


def _caches(m: Machine, graph: Graph) -> dict[str, Tensor]:
    layouts = {leaf.attr("name"): leaf.attr("layout") for leaf in graph.leaves("kv_cache")}
    named = ((name, part, data) for name, both in m.caches.items() for part, data in zip("kv", both, strict=True))
    return {f"{name}_{part}": _logical(data, layouts[name]) for name, part, data in named}


def _output(m: Machine, node: Node, held: Holdings, rounded: bool) -> Tensor:
    """Every holder writes its slice. A hole is an error, as are two holders that disagree."""
    shape = m.shape(node)
    at = m.placed.placements[node][0]
    for rank, local in held.items():
        stores = (rank[0] == 0 or isinstance(at.grid, Shard)) and (rank[1] == 0 or isinstance(at.cluster, Shard))
        if stores or local.left_by is None:  # what lies in global memory is read by whoever stores it
            m.load(rank, local)
    total = prod(shape)
    if sum({local.spans: local.data.numel() for local in held.values()}.values()) < total:
        raise OracleError(node, f"the ranks together do not hold all of an output of shape {shape}")
    dtype = m.placed.graph.output_dtype(node)
    kind = m.dtypes["i32"] if dtype == "i32" else m.dtype
    whole = assemble({rank: Local(local.data.to(kind), local.spans) for rank, local in held.items()}, node, full_spans(shape)).data
    m.counter.outputs += total * ITEMSIZE[dtype]
    return whole.to(m.dtypes[dtype]) if rounded else whole


def _check_claim(m: Machine, node: Node, of: Type, held: dict[Rank, Any], placement: Placement) -> None:
    """Dimensions that no axis shards are held whole, and along a replicated axis all hold the same bits."""
    sharded = {at.dim for at in (placement.grid, placement.cluster) if isinstance(at, Shard)}
    shape = tuple(m.sizes[dim] if isinstance(dim, str) else dim for dim in of.shape)
    everyone = isinstance(placement.grid, Shard) and over_all_ctas(node)
    for rank, local in held.items():
        first = _first_alike(m, rank, placement, everyone)
        other = held[first]
        if any(local.spans[dim] != (0, size) for dim, size in enumerate(shape) if dim not in sharded):
            raise OracleError(node, f"placed {placement}, but rank {rank} holds {local.spans} of {shape}")
        if local is other or local.key == other.key:
            continue
        same = local.spans == other.spans and (isinstance(local, LocalCache) or same_bits(local.data, other.data))
        if not same:
            raise OracleError(node, f"placed {placement}, but ranks {first} and {rank} hold different values: a collective is missing")


def _first_alike(m: Machine, rank: Rank, placement: Placement, over_all: bool) -> Rank:
    """The first rank that must hold the same as `rank`: number 0 along every axis that replicates. over_all: splits hold slices too."""
    (group, split), own = divmod(rank[0], m.mesh.splits), rank[1]
    group = 0 if isinstance(placement.grid, Replicate) else group
    split = 0 if isinstance(placement.split, Replicate) and not over_all else split
    return group * m.mesh.splits + split, 0 if isinstance(placement.cluster, Replicate) else own
