"""Collectives: the only place where a rank sees what another rank holds. Terms combine in rank order, so results never vary."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from cfdsl.dsl.graph import Node
from cfdsl.dsl.interpret.attention import finish_lse, merge_lse
from cfdsl.dsl.interpret.local import Holdings, Local, OracleError, Rank, assemble, full_spans
from cfdsl.dsl.interpret.machine import Machine, part_of, share_of
from cfdsl.dsl.interpret.select import better
from cfdsl.dsl.interpret.traffic import PAYLOAD, exchange_row
from cfdsl.dsl.placement import Partial, Placement, ReduceOp, Shard


def exchange(m: Machine, node: Node, args: list[Holdings]) -> list[Holdings]:
    """Run one collective for the whole launch: one result per value, and a row of traffic."""
    move = _MOVES[node.op]
    results, moved = [], 0
    for arg, held in zip(node.args, args, strict=True):
        for rank, local in held.items():
            m.load(rank, local)
        held = {rank: _computed(m, local) for rank, local in held.items()}
        result, count = move(m, node, arg, held)
        results.append(result)
        moved += count
    m.counter.rows.append(exchange_row(node, moved * PAYLOAD))
    return results


def _computed(m: Machine, local: Local) -> Local:
    return local if local.leaf is None else Local(local.data.to(m.dtype), local.spans)


def _elements(local: Local) -> int:
    """Elements that travel: of a softmax term its m and l too."""
    return local.data.numel() + sum(t.numel() for t in local.stats or ())


def reduce_terms(node: Node, op: ReduceOp, terms: list[Local], finish: bool = True) -> Local:
    """The value of a Partial from its terms, in their order. All terms cover the same slice.

    finish   False: what is left is a term of another reduction, so an online softmax stays an unnormalised (m, l, o), and an index keeps
             its value.
    """
    first = terms[0]
    if any(term.spans != first.spans for term in terms):
        raise OracleError(node, "the terms of a Partial cover different slices")
    if op is ReduceOp.LSE:
        if any(term.stats is None for term in terms):
            raise OracleError(node, "a term of P(lse) has no softmax statistics")
        top, total, out = merge_lse([(term.stats[0], term.stats[1], term.data) for term in terms if term.stats])
        return Local(finish_lse(total, out), first.spans) if finish else Local(out, first.spans, stats=(top, total))
    if op is ReduceOp.ARGMAX:
        if any(term.stats is None for term in terms):
            raise OracleError(node, "a term of P(argmax) has no value")
        best = reduce(better, terms)
        return replace(best, stats=None) if finish else best
    data = first.data
    for term in terms[1:]:
        data = data + term.data if op is ReduceOp.SUM else data.maximum(term.data)
    return Local(data, first.spans)


def _op(node: Node, placement: Placement, axis: str) -> ReduceOp:
    on_axis = getattr(placement, axis)
    if not isinstance(on_axis, Partial):
        raise OracleError(node, f"reduces {placement}, which is no Partial on the {axis}")
    return on_axis.op


def _closes(m: Machine, arg: Node) -> bool:
    """Whether a cluster's reduction gives values: neither the splits nor the clusters hold further terms of several numbers."""
    placement = m.placed.placements[arg][0]
    return not (isinstance(placement.split, Partial) or placement.grid == Partial(ReduceOp.ARGMAX))


def _cluster(m: Machine, cluster: int) -> list[Rank]:
    return [(cluster, rank) for rank in range(m.mesh.ranks)]


def _cluster_reduce(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """One round: every rank pushes its whole term to every peer."""
    op, peers, moved = _op(node, m.placed.of(arg), "cluster"), m.mesh.ranks - 1, 0
    result: Holdings = {}
    for cluster in range(m.mesh.clusters):
        ranks = _cluster(m, cluster)
        whole = reduce_terms(node, op, [held[rank] for rank in ranks], _closes(m, arg))
        result.update(dict.fromkeys(ranks, whole))
        moved += sum(_elements(held[rank]) * peers for rank in ranks)
    return result, moved


def _cluster_gather(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """One round: every rank pushes its slice to every peer."""
    result: Holdings = {}
    moved = 0
    for cluster in range(m.mesh.clusters):
        ranks = _cluster(m, cluster)
        whole = assemble({rank: held[rank] for rank in ranks}, node)
        result.update(dict.fromkeys(ranks, whole))
        moved += sum(_elements(held[rank]) * (m.mesh.ranks - 1) for rank in ranks)
    return result, moved


def _cluster_reduce_scatter(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """Every rank pushes to each peer the peer's slice of its term (of a softmax term also m and l, whole)."""
    op, dim, moved = _op(node, m.placed.of(arg), "cluster"), node.attr("dim"), 0
    result: Holdings = {}
    for cluster in range(m.mesh.clusters):
        ranks = _cluster(m, cluster)
        for owner in ranks:
            want = part_of(held[owner].spans[dim], m.mesh.ranks, owner[1])
            terms = []
            for rank in ranks:
                terms.append(held[rank].narrow(dim, want))
                moved += _elements(terms[-1]) if rank != owner else 0
            result[owner] = reduce_terms(node, op, terms, _closes(m, arg))
    return result, moved


def _written_once(held: Holdings) -> int:
    """Elements written where each distinct slice has one writer."""
    return sum({local.spans: local.data.numel() for local in held.values()}.values())


def _grid_gather(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """Each slice is written once; every CTA reads it all."""
    whole = assemble(held, node, full_spans(m.shape(arg)))
    return dict.fromkeys(held, whole), _written_once(held) + whole.data.numel() * m.mesh.ctas


def _over_grid(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """What a rank index holds once the clusters' terms are reduced, and the elements that clusters wrote for that."""
    op = _op(node, m.placed.of(arg), "grid")
    reduced: Holdings = {}
    written = 0
    for rank in range(m.mesh.ranks):
        reduced[(0, rank)] = reduce_terms(node, op, [held[(cluster, rank)] for cluster in range(m.mesh.clusters)])
    for cluster in range(m.mesh.clusters):
        written += _written_once({rank: held[rank] for rank in _cluster(m, cluster)})
    return reduced, written


def _grid_reduce(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """Every cluster adds its term to global memory (cluster order here); every CTA reads the sum."""
    if isinstance(m.placed.of(arg).split, Partial):
        return _split_reduce(m, node, arg, held)
    if m.placed.of(arg).grid == Partial(ReduceOp.ARGMAX):
        return _argmax_reduce(m, node, held)
    reduced, written = _over_grid(m, node, arg, held)
    whole = assemble(reduced, node, full_spans(m.shape(arg)))
    return dict.fromkeys(held, whole), written + whole.data.numel() * m.mesh.ctas


def _argmax_reduce(m: Machine, node: Node, held: Holdings) -> tuple[Holdings, int]:
    """Every holder of a term writes its pair; every CTA reads all of them."""
    moved = sum(_elements(local) for local in held.values())
    return dict.fromkeys(held, reduce_terms(node, ReduceOp.ARGMAX, list(held.values()))), moved * (1 + m.mesh.ctas)


def _split_reduce(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """Every cluster writes its slice of o, and m and l of its heads; every CTA reads all of it and joins the splits in their order."""
    op, shape, terms, written = _op(node, m.placed.of(arg), "split"), m.shape(arg), [], 0
    for split in range(m.mesh.splits):
        mine = {rank: local for rank, local in held.items() if rank[0] % m.mesh.splits == split}
        stats = [{rank: Local(local.stats[i], local.spans[:2]) for rank, local in mine.items() if local.stats} for i in range(2)]
        if len(stats[0]) < len(mine):
            raise OracleError(node, "a term of P(lse) has no softmax statistics")
        top, total = (assemble(each, node, full_spans(shape[:2])).data for each in stats)
        out = assemble(mine, node, full_spans(shape))
        terms.append(Local(out.data, out.spans, stats=(top, total)))
        written += _written_once(mine) + 2 * _written_once(stats[0])
    read = sum(_elements(term) for term in terms)
    return dict.fromkeys(held, reduce_terms(node, op, terms)), written + read * m.mesh.ctas


def _grid_reduce_scatter(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """As grid_reduce, but every CTA reads back its slice only: of the slice its ranks have, a part for each cluster."""
    reduced, written = _over_grid(m, node, arg, held)
    dim = node.attr("dim")
    sharded = m.placed.of(arg).cluster == Shard(dim)
    result: Holdings = {}
    for cluster, rank in held:
        own = reduced[(0, rank)]
        parts, index = (m.mesh.clusters, cluster) if sharded else (m.mesh.ctas, cluster * m.mesh.ranks + rank)
        result[(cluster, rank)] = own.narrow(dim, share_of(own.spans[dim], parts, index))
    return result, written + sum(local.data.numel() for local in result.values())


_MOVES = {
    "cluster_reduce": _cluster_reduce,
    "cluster_gather": _cluster_gather,
    "cluster_reduce_scatter": _cluster_reduce_scatter,
    "grid_reduce": _grid_reduce,
    "grid_gather": _grid_gather,
    "grid_reduce_scatter": _grid_reduce_scatter,
}
