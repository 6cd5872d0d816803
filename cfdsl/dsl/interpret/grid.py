"""Collectives through global memory: who writes what, who reads it back, and what it is then."""

from __future__ import annotations

from dataclasses import replace

from cfdsl.dsl import exchange as rules
from cfdsl.dsl.graph import Node
from cfdsl.dsl.interpret.local import Holdings, Local, OracleError, assemble, full_spans
from cfdsl.dsl.interpret.machine import Machine, share_of
from cfdsl.dsl.interpret.terms import Moved, cluster_ranks, elements, op_of, reduce_terms
from cfdsl.dsl.placement import Partial, ReduceOp, Shard


def _written_once(held: Holdings) -> int:
    """Elements written where each distinct slice has one writer."""
    return sum({local.spans: local.data.numel() for local in held.values()}.values())


def _by_clusters(m: Machine, held: Holdings, clusters: range) -> int:
    """Elements written where each of these clusters writes what it holds."""
    return sum(_written_once({rank: held[rank] for rank in cluster_ranks(m, cluster)}) for cluster in clusters)


def _written(m: Machine, arg: Node, held: Holdings) -> int:
    """Elements written where each cluster writes what it holds; of a value that all clusters hold, the first one does."""
    sharded = isinstance(m.placed.placements[arg][0].grid, Shard)
    return _by_clusters(m, held, range(m.mesh.clusters if sharded else 1))


def _left_in_memory(m: Machine, held: Holdings, whole: Local) -> Holdings:
    """The result of a grid exchange, of which a CTA reads the slices that it uses, when it does."""
    return dict.fromkeys(held, replace(whole, left_by=len(m.counter.rows)))


def _grid_gather(m: Machine, node: Node, arg: Node, held: Holdings) -> Moved:
    """Each cluster writes its slice; every CTA may read it all."""
    whole = assemble(held, node, full_spans(m.shape(arg)))
    return Moved(_left_in_memory(m, held, whole), _written(m, arg, held))


def _over_grid(m: Machine, node: Node, arg: Node, held: Holdings) -> tuple[Holdings, int]:
    """What a rank index holds once the clusters' terms are reduced, and the elements that clusters wrote for that."""
    op = op_of(node, m.placed.of(arg), "grid")
    reduced: Holdings = {}
    for rank in range(m.mesh.ranks):
        reduced[(0, rank)] = reduce_terms(node, op, [held[(cluster, rank)] for cluster in range(m.mesh.clusters)])
    return reduced, _by_clusters(m, held, range(m.mesh.clusters))


def _grid_reduce(m: Machine, node: Node, arg: Node, held: Holdings) -> Moved:
    """Every cluster adds its term to global memory (cluster order here); every CTA reads the sum."""
    if isinstance(m.placed.of(arg).split, Partial):
        return _split_reduce(m, node, arg, held)
    if m.placed.of(arg).grid == Partial(ReduceOp.ARGMAX):
        return _argmax_reduce(m, node, held)
    reduced, written = _over_grid(m, node, arg, held)
    whole = assemble(reduced, node, full_spans(m.shape(arg)))
    return Moved(dict.fromkeys(held, whole), written + whole.data.numel() * m.mesh.ctas)


def _argmax_reduce(m: Machine, node: Node, held: Holdings) -> Moved:
    """Every holder of a term writes its pair; the CTA that stores the index reads all of them."""
    written = sum(elements(local) for local in held.values())
    return Moved(dict.fromkeys(held, reduce_terms(node, ReduceOp.ARGMAX, list(held.values()))), 2 * written)


def _split_reduce(m: Machine, node: Node, arg: Node, held: Holdings) -> Moved:
    """Every cluster writes its slice of o, and m and l of its heads; CTAs read them and join the splits in their order.

    With one split the term is the value. With a few every CTA reads all terms, with many its rank's part (see `in_parts`).
    """
    op, shape, splits, ranks = op_of(node, m.placed.of(arg), "split"), m.shape(arg), m.mesh.splits, m.mesh.ranks
    terms, written = [], _by_clusters(m, held, range(m.mesh.clusters))
    for split in range(splits):
        mine = {rank: local for rank, local in held.items() if rank[0] % splits == split}
        stats = [{rank: Local(local.stats[i], local.spans[:2]) for rank, local in mine.items() if local.stats} for i in range(2)]
        if len(stats[0]) < len(mine):
            raise OracleError(node, "a term of P(lse) has no softmax statistics")
        top, total = (assemble(each, node, full_spans(shape[:2])).data for each in stats)
        out = assemble(mine, node, full_spans(shape))
        terms.append(Local(out.data, out.spans, stats=(top, total)))
        written += 2 * _by_clusters(m, stats[0], range(split, m.mesh.clusters, splits))
    whole = reduce_terms(node, op, terms)
    size = whole.data.numel()
    if splits == 1:
        return Moved(_left_in_memory(m, held, whole), _written(m, arg, held))
    if not rules.in_parts(size, splits, ranks):
        return Moved(dict.fromkeys(held, whole), written + sum(map(elements, terms)) * m.mesh.ctas)
    parts = [rules.heads_of_part(size, shape[2], ranks, rank) for rank in range(ranks)]
    read = splits * (size + 2 * sum(last - first for first, last in parts)) * m.mesh.clusters
    return Moved(dict.fromkeys(held, whole), written + read, size * (ranks - 1) * m.mesh.clusters)


def _grid_reduce_scatter(m: Machine, node: Node, arg: Node, held: Holdings) -> Moved:
    """As grid_reduce, but every CTA reads back its slice only: of the slice its ranks have, a part for each cluster."""
    reduced, written = _over_grid(m, node, arg, held)
    dim = node.attr("dim")
    sharded = m.placed.of(arg).cluster == Shard(dim)
    result: Holdings = {}
    for cluster, rank in held:
        own = reduced[(0, rank)]
        parts, index = (m.mesh.clusters, cluster) if sharded else (m.mesh.ctas, cluster * m.mesh.ranks + rank)
        result[(cluster, rank)] = own.narrow(dim, share_of(own.spans[dim], parts, index))
    return Moved(result, written + sum(local.data.numel() for local in result.values()))


MOVES = {"grid_reduce": _grid_reduce, "grid_gather": _grid_gather, "grid_reduce_scatter": _grid_reduce_scatter}
