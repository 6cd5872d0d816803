"""Slices that cannot be moved or held: by bulk copies, in a ring stage, by pushes to peers, in the registers of a fragment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, prod

from cfdsl.compiler.config import Config
from cfdsl.compiler.cost.moves import local_elements, size_of
from cfdsl.compiler.geometry import (
    CHUNK,
    COPY_BYTES,
    MAX_PIECES,
    column_turns,
    least_kv_stage,
    possible_turns,
    thread_registers,
    turn_registers,
)
from cfdsl.dsl.exchange import PUSH, WORD, in_two_rounds
from cfdsl.dsl.graph import CLUSTER_COLLECTIVES, ITEMSIZE, Node, leaf_of
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.placement import Partial, Placement, R, ReduceOp, Shard


def refused_by_slices(placed: PlacedGraph, config: Config, sizes: Mapping[str, int]) -> dict[str, Node]:
    """What keeps a config from being lowered, as far as it can be told before there is a plan: each reason with the node it is about."""
    reasons: dict[str, Node] = {}
    for node in placed.graph.nodes:
        if node.op == "linear":
            reasons |= dict.fromkeys(_of_a_product(placed, node, config, sizes), node)
        elif node.op in CLUSTER_COLLECTIVES:
            reasons |= dict.fromkeys(_of_an_exchange(placed, node, sizes), node)
        elif node.op == "mean_square" or (node.op == "rms_norm" and len(node.args) == 2):
            reasons |= dict.fromkeys(_of_a_norm(placed, node, sizes), node)
        elif node.op == "attend":
            reasons |= dict.fromkeys(_of_attention(placed, node, config), node)
    return reasons


def _of_a_product(placed: PlacedGraph, node: Node, config: Config, sizes: Mapping[str, int]) -> Iterator[str]:
    """Whether a row of the weight comes through the ring, and the vector that it meets fits the registers."""
    width, name, itemsize = row_bytes(placed, node, sizes), leaf_of(node.args[1]).attr("name"), ITEMSIZE[node.args[1].type.dtype]
    if width % COPY_BYTES:
        yield f"a rank's slice of a row of {name} is {width} bytes, not a multiple of {COPY_BYTES}"
        return
    possible = possible_turns(width // itemsize, itemsize, config.stage_bytes, config.ctas_per_sm)
    if not possible:
        yield f"a row of {name} is {width:,} bytes, a ring stage {config.stage_bytes:,}: up to {MAX_PIECES} equal pieces do not fit"
    elif not turns_of(placed, node, config, sizes):
        turns, have = possible[-1], thread_registers(config.warps + 1, config.ctas_per_sm)
        need = turn_registers(width // itemsize // turns, itemsize, config.stage_bytes, config.warps)
        each = f" in each of {turns} turns" if turns > 1 else ""
        yield f"the vector that rows of {name} meet takes about {need} registers of a thread{each}, of {have}"


def turns_of(placed: PlacedGraph, node: Node, config: Config, sizes: Mapping[str, int]) -> int:
    """In how many turns of columns a linear's rows are multiplied; 0 where its vector is too long for that."""
    itemsize = ITEMSIZE[node.args[1].type.dtype]
    return column_turns(row_bytes(placed, node, sizes) // itemsize, itemsize, config.stage_bytes, config.warps, config.ctas_per_sm)


def row_bytes(placed: PlacedGraph, node: Node, sizes: Mapping[str, int]) -> int:
    """Bytes of one row of a linear's weight as a rank reads it."""
    weight, mesh = node.args[1], placed.mesh
    last = len(weight.type.shape) - 1
    columns = size_of(weight.type.shape[last], sizes)
    if placed.of(weight).grid == Shard(last):
        columns = ceil(columns / mesh.groups)
    if node.attr("shard") == "in":
        columns //= mesh.ranks
    return columns * ITEMSIZE[weight.type.dtype]


def _of_an_exchange(placed: PlacedGraph, node: Node, sizes: Mapping[str, int]) -> Iterator[str]:
    """Whether adjacent elements that a rank pushes to a peer are whole pushes."""
    ranks = placed.mesh.ranks
    held = [_held(placed, arg, sizes) for arg in node.args]
    if all(prod(shape) == 1 for shape in held):  # scalars go one by one
        return
    for arg, shape in zip(node.args, held):
        at = placed.placements[arg][0].cluster
        block = shape[-1]  # a gathered slice, as its rank has it
        if node.op == "cluster_reduce_scatter":
            block = shape[node.attr("dim")] // ranks
        elif node.op == "cluster_reduce" and isinstance(at, Partial) and at.op is ReduceOp.LSE:
            block = shape[-1] // ranks
        elif node.op == "cluster_reduce":
            block = prod(shape) // (ranks if in_two_rounds([prod(each) for each in held], ranks) else 1)
        if block % PUSH:
            yield f"a rank's slice in {node.op} is {block * WORD} bytes, not a multiple of {PUSH * WORD}"


def _held(placed: PlacedGraph, node: Node, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of what a rank has of a value."""
    at, shape = placed.placements[node][0], node.types[0].shape
    return tuple(local_elements((dim,), _along(at, n), placed.mesh, sizes) for n, dim in enumerate(shape))


def _along(at: Placement, dim: int) -> Placement:
    """A placement of one dimension alone."""
    grid, cluster = (Shard(0) if axis == Shard(dim) else R for axis in (at.grid, at.cluster))
    return Placement(grid, cluster)


def _of_a_norm(placed: PlacedGraph, node: Node, sizes: Mapping[str, int]) -> Iterator[str]:
    """Whether a rank's slice of the row is whole chunks, as its threads hold it."""
    columns = _held(placed, node.args[0], sizes)[-1]
    if columns % CHUNK:
        yield f"a rank's slice of the row in {node.op} is {columns} elements, not a multiple of {CHUNK}"


def _of_attention(placed: PlacedGraph, node: Node, config: Config) -> Iterator[str]:
    """Whether there is a warp for each group of query heads, and a stage holds a step of tokens for all warps."""
    sliced = isinstance(placed.of(node.args[1]).grid, Shard)
    group, dim, itemsize = kv_tile(node, placed.mesh.groups if sliced else 1)
    least = least_kv_stage(group, dim, itemsize, config.warps)
    if not least:
        yield f"{config.warps} warps are too few for {group} query heads of a KV head"
    if least > config.stage_bytes:
        yield f"a step of tokens for {config.warps} warps is {least:,} bytes, a ring stage {config.stage_bytes:,}"


def kv_tile(node: Node, groups: int) -> tuple[int, int, int]:
    """Of an attention: a cluster's query heads to a KV head, the size of a head, and the bytes of an element of the cache.

    groups: of clusters that the heads are cut over
    """
    (_, heads, dim), cache = node.args[0].type.shape, node.args[1].types[0]
    mine, shared = (max(1, size_of(n, {}) // groups) for n in (heads, cache.shape[1]))
    return mine // shared, size_of(dim, {}), ITEMSIZE[cache.dtype]
