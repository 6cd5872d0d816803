"""One rank's part of every arithmetic operation that needs no other rank; attention has a file of its own.

A handler takes the rank's own slices of the operands, narrows them to what it needs (an R operand beside an S one is sliced for free),
and returns the rank's slice of the result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cfdsl.dsl.graph import Node
from cfdsl.dsl.interpret.local import Local, Rank, full_spans, meet
from cfdsl.dsl.interpret.machine import Handler, Machine, part_of, share_of
from cfdsl.dsl.placement import Shard

if TYPE_CHECKING:
    from torch import Tensor


def _pointwise(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    """add and mul: dimension by dimension, what both operands hold; sizes of 1 broadcast."""
    shape = m.shape(node)
    spans = list(full_spans(shape))
    shapes = [m.shape(arg) for arg in node.args]
    for x, own in zip(args, shapes, strict=True):
        for back in range(1, len(own) + 1):
            if own[-back] == shape[-back]:
                spans[-back] = meet(spans[-back], x.spans[-back], node)
    operands = []
    for x, own in zip(args, shapes, strict=True):
        for back in range(1, len(own) + 1):
            if own[-back] == shape[-back]:
                x = x.narrow(len(own) - back, spans[-back])
        operands.append(x)
    make = (lambda a, b: a + b) if node.op == "add" else (lambda a, b: a * b)
    return m.run(node, rank, tuple(operands), tuple(spans), make)


def _silu(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    return m.run(node, rank, (args[0],), args[0].spans, lambda x: x * x.sigmoid())


def _gelu(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    def exact(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + (x / math.sqrt(2)).erf())

    def approximate(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())

    return m.run(node, rank, (args[0],), args[0].spans, approximate if node.attr("tanh", True) else exact)


def _cast(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    """Rounds to the dtype; the value stays in the compute type, like every other."""
    to = m.dtypes[node.attr("dtype")]
    keep = node.attr("dtype") == "f32"  # a float64 run is not rounded to what is only the kernel's compute type
    return m.run(node, rank, (args[0],), args[0].spans, lambda x: x if keep else x.to(to).to(x.dtype))


def _linear(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    """x @ w.T over what the rank has of both: the contraction runs over the range that x and w share."""
    x, w, *bias = args
    last = len(w.spans) - 1
    inner = meet(x.spans[1], w.spans[last], node)
    shard, everywhere = node.attr("shard"), node.attr("across") == "all"
    if shard == "in" and m.placed.of(node.args[0]).cluster != Shard(1):
        inner = part_of(inner, m.mesh.ranks, rank[1])
    if shard == "out":
        held = w.spans[last - 1]
        mine = share_of(held, m.mesh.ctas, rank[0] * m.mesh.ranks + rank[1]) if everywhere else part_of(held, m.mesh.ranks, rank[1])
        w = w.narrow(last - 1, mine)
    for dim in range(last):
        bias = [b.narrow(dim, w.spans[dim]) for b in bias]
    operands = (x.narrow(1, inner), w.narrow(last, inner), *bias)

    def product(x: Tensor, w: Tensor, *bias: Tensor) -> Tensor:
        out = (x @ w.flatten(0, -2).T).unflatten(1, w.shape[:-1])
        return out + bias[0] if bias else out

    return m.run(node, rank, operands, (x.spans[0], *w.spans[:-1]), product)


def _mean_square(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    """The rank's elements' share of the mean: their squares over the size of the whole row."""
    (x,), size = args, m.shape(node.args[0])[1]
    return m.run(node, rank, (x,), (x.spans[0], (0, 1)), lambda x: (x * x).sum(1, keepdim=True) / size)


def _rms_norm(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    """Without a given mean square, a rank takes the mean of what it holds: right only if that is the whole row."""
    x, weight, *given = args
    rows = meet(x.spans[0], given[0].spans[0], node) if given else x.spans[0]
    operands = (x.narrow(0, rows), weight.narrow(0, x.spans[1]), *(ms.narrow(0, rows) for ms in given))
    eps = node.attr("eps")

    def norm(x: Tensor, weight: Tensor, *given: Tensor) -> Tensor:
        ms = given[0] if given else (x * x).mean(1, keepdim=True)
        return x * (ms + eps).rsqrt() * weight

    return m.run(node, rank, operands, (rows, x.spans[1]), norm)


HANDLERS: dict[str, Handler] = {
    "add": _pointwise,
    "mul": _pointwise,
    "silu": _silu,
    "gelu": _gelu,
    "cast": _cast,
    "linear": _linear,
    "mean_square": _mean_square,
    "rms_norm": _rms_norm,
}
