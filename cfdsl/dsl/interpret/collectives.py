"""Collectives: the only place where a rank sees what another rank holds. Terms combine in rank order, so results never vary."""

from __future__ import annotations

from dataclasses import replace

from cfdsl.dsl import exchange as rules
from cfdsl.dsl.graph import CLUSTER_COLLECTIVES, Node
from cfdsl.dsl.interpret import grid
from cfdsl.dsl.interpret.local import Holdings, Local, assemble
from cfdsl.dsl.interpret.machine import Machine, part_of
from cfdsl.dsl.interpret.terms import Moved, closes, cluster_ranks, elements, op_of, reduce_terms
from cfdsl.dsl.interpret.traffic import exchange_row
from cfdsl.dsl.placement import Partial, ReduceOp


def exchange(m: Machine, node: Node, args: list[Holdings]) -> list[Holdings]:
    """Run one collective for the whole launch: one result per value, and a row of traffic."""
    move = _MOVES[node.op]
    results, moved, pushed = [], 0, 0
    for arg, held in zip(node.args, args, strict=True):
        for rank, local in held.items():
            m.load(rank, local)
        held = {rank: _computed(m, local) for rank, local in held.items()}
        made = move(m, node, arg, held)
        results.append(made.result)
        moved, pushed = moved + made.elements, pushed + made.pushed
    if node.op in CLUSTER_COLLECTIVES:
        moved = _pushed(m, node, args)
    m.counter.rows.append(exchange_row(node, moved, pushed))
    return results


def _computed(m: Machine, local: Local) -> Local:
    if local.leaf is None:
        return replace(local, left_by=None)
    return Local(local.data.to(m.dtype), local.spans)


def _pushed(m: Machine, node: Node, args: list[Holdings]) -> int:
    """Elements that all ranks push to peers, in all rounds of a collective on the cluster."""
    softmax = any(m.placed.of(arg).cluster == Partial(ReduceOp.LSE) for arg in node.args)
    together = not softmax or node.attr("dim", 2) < 2  # the numbers beside elements are cut like these
    total = 0
    for cluster in range(m.mesh.clusters):
        first = [held[(cluster, 0)] for held in args]
        sizes = [elements(local) if together else local.data.numel() for local in first]
        stats = 0 if together else sum(elements(local) - local.data.numel() for local in first)
        total += sum(rules.pushed(node.op, sizes, m.mesh.ranks, stats))
    return total


def _cluster_reduce(m: Machine, node: Node, arg: Node, held: Holdings) -> Moved:
    """Every rank gets the sum of all ranks' terms."""
    op = op_of(node, m.placed.of(arg), "cluster")
    result: Holdings = {}
    for cluster in range(m.mesh.clusters):
        ranks = cluster_ranks(m, cluster)
        whole = reduce_terms(node, op, [held[rank] for rank in ranks], closes(m, arg))
        result.update(dict.fromkeys(ranks, whole))
    return Moved(result)


def _cluster_gather(m: Machine, node: Node, arg: Node, held: Holdings) -> Moved:
    """Every rank gets all ranks' slices."""
    result: Holdings = {}
    for cluster in range(m.mesh.clusters):
        ranks = cluster_ranks(m, cluster)
        whole = assemble({rank: held[rank] for rank in ranks}, node)
        result.update(dict.fromkeys(ranks, whole))
    return Moved(result)


def _cluster_reduce_scatter(m: Machine, node: Node, arg: Node, held: Holdings) -> Moved:
    """Every rank gets its slice of all ranks' terms (of softmax terms also m and l, whole)."""
    op, dim = op_of(node, m.placed.of(arg), "cluster"), node.attr("dim")
    result: Holdings = {}
    for cluster in range(m.mesh.clusters):
        ranks = cluster_ranks(m, cluster)
        for owner in ranks:
            want = part_of(held[owner].spans[dim], m.mesh.ranks, owner[1])
            result[owner] = reduce_terms(node, op, [held[rank].narrow(dim, want) for rank in ranks], closes(m, arg))
    return Moved(result)


_MOVES = {
    "cluster_reduce": _cluster_reduce,
    "cluster_gather": _cluster_gather,
    "cluster_reduce_scatter": _cluster_reduce_scatter,
    **grid.MOVES,
}
