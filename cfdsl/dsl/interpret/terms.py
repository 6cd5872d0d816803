"""Terms of a Partial and what becomes of them; a value of a collective, and what moving it took."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from cfdsl.dsl.graph import Node
from cfdsl.dsl.interpret.attention import finish_lse, merge_lse
from cfdsl.dsl.interpret.local import Holdings, Local, OracleError, Rank
from cfdsl.dsl.interpret.machine import Machine
from cfdsl.dsl.interpret.select import better
from cfdsl.dsl.placement import Partial, Placement, ReduceOp


@dataclass(frozen=True)
class Moved:
    """What one value of a collective became, and what went through global memory for it; `pushed`: between ranks besides."""

    result: Holdings
    elements: int = 0
    pushed: int = 0


def elements(local: Local) -> int:
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


def op_of(node: Node, placement: Placement, axis: str) -> ReduceOp:
    """What the terms of a value are combined with."""
    on_axis = getattr(placement, axis)
    if not isinstance(on_axis, Partial):
        raise OracleError(node, f"reduces {placement}, which is no Partial on the {axis}")
    return on_axis.op


def closes(m: Machine, arg: Node) -> bool:
    """Whether a cluster's reduction gives values: neither the splits nor the clusters hold further terms of several numbers."""
    placement = m.placed.placements[arg][0]
    return not (isinstance(placement.split, Partial) or placement.grid == Partial(ReduceOp.ARGMAX))


def cluster_ranks(m: Machine, cluster: int) -> list[Rank]:
    """The ranks of a cluster, in order."""
    return [(cluster, rank) for rank in range(m.mesh.ranks)]
