"""Shared memory of a CTA before there is a plan: an estimate good enough to tell how many ring stages fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from cfdsl.compiler.config import Config
from cfdsl.compiler.cost.moves import local_elements, size_of
from cfdsl.compiler.cost.shared_inputs import shared_inputs
from cfdsl.compiler.cost.slices import turns_of
from cfdsl.compiler.geometry import BARRIER_BYTES, token_groups
from cfdsl.compiler.parts import Part
from cfdsl.dsl.exchange import in_two_rounds
from cfdsl.dsl.graph import Node
from cfdsl.dsl.place import PlacedGraph
from cfdsl.dsl.place_rules.site import over_all_ctas
from cfdsl.dsl.placement import Partial, Placement, R, ReduceOp

SmemOf = Callable[[Config], int]  # bytes besides the ring's stages (its barriers are not stages), for a config


class Piece(NamedTuple):
    """What takes shared memory, for how many bytes; `node`: of the spec, where it is one's."""

    name: str
    bytes: int
    node: Node | None = None


def fixed_smem(placed: PlacedGraph, config: Config, sizes: Mapping[str, int] | None = None) -> int:
    """Bytes besides the ring's stages: terms of sums, exchanged values, barriers."""
    return -(-sum(piece.bytes for piece in smem_pieces(placed, config, sizes or {})) // 128) * 128


def smem_pieces(placed: PlacedGraph, config: Config, sizes: Mapping[str, int]) -> list[Piece]:
    """What those bytes are made of, before they are rounded up.

    The warps' terms of a product or of attention are dead after the next exchange, so the largest phase counts. Exchanged values are
    taken to live to the end, which is an upper estimate.
    """
    phases: list[list[Piece]] = [[]]
    kept: list[Piece] = []
    for node in placed.graph.nodes:
        if node.op == "linear":
            terms = config.warps * max(1, turns_of(placed, node, config, sizes))  # none: refused, elsewhere
            phases[-1].append(Piece(f"terms of {node.op}", 4 * terms * _local(placed, node, sizes), node))
        elif node.op == "attend":
            phases[-1].append(Piece(f"terms of {node.op}", _attend_terms(node, config), node))
            kept.append(Piece(node.op, 4 * _local(placed, node, sizes), node))
        elif node.is_collective:
            phases.append([])
            if node.op.startswith("cluster"):
                kept.append(Piece(node.op, _boxes(placed, node, sizes), node))
    # Two mbarriers each: of a stage (full, empty); an exchange has one, and the alignment takes another.
    barriers = 2 * BARRIER_BYTES * (config.stages + sum(node.is_collective for node in placed.graph.nodes))
    kept.append(Piece("barriers and scratch", barriers + 4 * config.warps))
    if config.multicast:
        kept.append(Piece("inputs by multicast", sum(shared_inputs(placed).values())))  # where they land
    return [*max(phases, key=lambda phase: sum(piece.bytes for piece in phase)), *kept]


def _local(placed: PlacedGraph, node: Node, sizes: Mapping[str, int]) -> int:
    return local_elements(node.type.shape, placed.of(node), placed.mesh, sizes, over_all_ctas(node))


def _attend_terms(node: Node, config: Config) -> int:
    """(m, l, o) of each warp, for the query heads of one KV head at a time."""
    q, cache = node.args[0].type.shape, node.args[1].type.shape
    group, dim = size_of(q[1], {}) // size_of(cache[1], {}), size_of(q[2], {})
    return 4 * max(1, token_groups(group, config.warps)) * group * (dim + 2)


def _boxes(placed: PlacedGraph, node: Node, sizes: Mapping[str, int]) -> int:
    """What lands in a rank: of a gather values, of a scatter a slice of each term, of an all-reduce both, or all terms beside their sum."""
    ranks, landed, held = placed.mesh.ranks, 0, []
    for arg in node.args:
        at, shape = placed.placements[arg][0], arg.types[0].shape
        whole = local_elements(shape, Placement(at.grid, R), placed.mesh, sizes)
        held.append(whole)
        landed += 4 * whole
        if isinstance(at.cluster, Partial) and at.cluster.op is ReduceOp.LSE:
            landed += 8 * ranks * local_elements(shape[:-1], Placement(at.grid, R), placed.mesh, sizes)  # (max, sum) of each head
    softmax = any(placed.placements[arg][0].cluster == Partial(ReduceOp.LSE) for arg in node.args)
    if node.op == "cluster_reduce":
        landed += 4 * sum(held) * (1 if softmax or in_two_rounds(held, ranks) else ranks)
    return landed


def fit_stages(part: Part, config: Config, smem_of: SmemOf, most: int, least: int = 2) -> tuple[Config | None, int]:
    """(config with as many stages as fit, `least` to `most`; bytes of shared memory), or (None, bytes with `least` stages).

    With `most` 0 there is no ring: `config.stages` says nothing then and stays as it is.
    """
    budget = part.smem_budget(config.ctas_per_sm)
    if most == 0:
        total = smem_of(config)
        return (config if total <= budget else None), total
    config = replace(config, stages=most)
    fixed = smem_of(config)
    stages = min(most, max(least, (budget - fixed) // config.stage_bytes))
    fitted = replace(config, stages=stages)
    total = (fixed if stages == most else smem_of(fitted)) + stages * config.stage_bytes
    return (fitted if total <= budget else None), total
