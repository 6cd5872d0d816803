"""One rank's part of slices, views and concatenation: nothing is computed, and what leaves are views of is remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfdsl.dsl.graph import Node
from cfdsl.dsl.interpret.local import Local, OracleError, Rank, full_spans, meet
from cfdsl.dsl.interpret.machine import Handler, Machine, part_of

if TYPE_CHECKING:
    from torch import Tensor


def _slice_grid(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    dim = node.attr("dim")
    return args[0].narrow(dim, part_of(args[0].spans[dim], m.mesh.groups, rank[0] // m.mesh.splits))


def _slice_cluster(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    dim = node.attr("dim")
    return args[0].narrow(dim, part_of(args[0].spans[dim], m.mesh.ranks, rank[1]))


def _split_heads(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    (x,), dim = args, node.attr("dim")
    heads, size = m.shape(node)[dim : dim + 2]
    lo, hi = x.spans[dim]
    if lo % size or hi % size:
        raise OracleError(node, f"a rank holds {lo}:{hi} of dimension {dim}, no whole number of the {heads} heads of {size}")
    spans = (*x.spans[:dim], (lo // size, hi // size), (0, size), *x.spans[dim + 1 :])
    return x.view(lambda t: t.unflatten(dim, ((hi - lo) // size, size)), spans)


def _merge_heads(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    (x,) = args
    size = m.shape(node.args[0])[2]
    (lo, hi), held = x.spans[1:]
    if held != (0, size):
        raise OracleError(node, f"a rank holds {held[0]}:{held[1]} of each head of {size}: heads cannot be merged")
    return m.once(node, (x,), lambda: x.view(lambda t: t.flatten(1), (x.spans[0], (lo * size, hi * size))))


def _reshape(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    (x,) = args
    old, new = m.shape(node.args[0]), m.shape(node)
    same = next((d for d, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    if x.spans[same:] != full_spans(old[same:]):
        raise OracleError(node, "a dimension that changes is not held whole")
    spans = (*x.spans[:same], *full_spans(new[same:]))
    return m.once(node, (x,), lambda: x.view(lambda t: t.reshape([hi - lo for lo, hi in spans]), spans))


def split(m: Machine, node: Node, x: Local) -> list[Local]:
    """The pieces of one rank's `split`."""
    dim, at, pieces = node.attr("dim"), 0, []
    for size in node.attr("sizes"):
        piece = x.narrow(dim, (at, at + size))
        spans = (*x.spans[:dim], (0, size), *x.spans[dim + 1 :])
        pieces.append(piece.view(lambda t: t, spans))
        at += size
    return pieces


def _concat(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    dim = node.attr("dim")
    if any(x.spans[dim] != (0, m.shape(arg)[dim]) for x, arg in zip(args, node.args, strict=True)):
        raise OracleError(node, "a rank does not hold whole pieces")
    for other in (d for d in range(len(args[0].spans)) if d != dim):
        held = args[0].spans[other]
        for x in args[1:]:
            held = meet(held, x.spans[other], node)
        args = [x.narrow(other, held) for x in args]
    spans = (*args[0].spans[:dim], (0, m.shape(node)[dim]), *args[0].spans[dim + 1 :])

    def join(*data: Tensor) -> Tensor:
        out, at = data[0].new_empty([hi - lo for lo, hi in spans]), 0
        for piece in data:
            out.narrow(dim, at, piece.shape[dim]).copy_(piece)
            at += piece.shape[dim]
        return out

    return m.run(node, rank, tuple(args), spans, join)


HANDLERS: dict[str, Handler] = {
    "slice_grid": _slice_grid,
    "slice_cluster": _slice_cluster,
    "split_heads": _split_heads,
    "merge_heads": _merge_heads,
    "reshape": _reshape,
    "concat": _concat,
}
