"""One rank's part of ops that pick by an index, or find one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cfdsl.dsl.graph import Node
from cfdsl.dsl.interpret.local import Local, OracleError, Rank, full_spans
from cfdsl.dsl.interpret.machine import Handler, Machine

if TYPE_CHECKING:
    from torch import Tensor


def _embedding(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    """The rows that the rank's indices name; an index out of range is clamped."""
    token, table = args
    if table.spans != full_spans(m.shape(node.args[1])):
        raise OracleError(node, f"a rank holds {table.spans} of the table, and needs all of it")
    m.load(rank, token)
    m.counter.load_rows(rank, table, token.spans[0], token.data.numel())

    def pick() -> Local:
        rows = token.data.long().clamp(0, len(table.data) - 1)
        return Local(table.data[rows].to(m.dtype), (token.spans[0], table.spans[1]))

    return m.once(node, (token, table), pick)


def _argmax(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    """The index of the greatest value among those that the rank has, the lowest of several; with the value, for whoever compares."""
    (x,) = args
    m.load(rank, x)
    return m.once(node, (x,), lambda: _best(m, x))


def _best(m: Machine, x: Local) -> Local:
    import torch

    data, (first, end) = x.data.to(m.dtype), x.spans[-1]
    if end == first:  # a rank without a share: what loses to everything
        lowest = data.new_full(data.shape[:-1], float("-inf"))
        return Local(torch.full_like(lowest, NOTHING, dtype=torch.int32), x.spans[:-1], stats=(lowest,))
    value, index = greatest(data)
    return Local(index + first, x.spans[:-1], stats=(value,))


NOTHING = 2**31 - 1  # the index of no element: every other one is lower


def greatest(data: Tensor) -> tuple[Tensor, Tensor]:
    """(value, index i32) of the greatest along the last dimension: NaN counts as greatest, of equal ones the first counts."""
    import torch

    top = data.max(-1, keepdim=True).values
    same = (data == top) | (data.isnan() & top.isnan())
    at = torch.arange(data.shape[-1], dtype=torch.int32, device=data.device)
    return top[..., 0], torch.where(same, at, NOTHING).min(-1).values


def better(a: Local, b: Local) -> Local:
    """Of two terms of P(argmax), element by element: the greater value, and the lower index of equal ones."""
    (u,), (v,) = a.stats or (), b.stats or ()
    equal = (u == v) | (u.isnan() & v.isnan())
    second = ((v > u) | (v.isnan() & ~u.isnan())) | (equal & (b.data < a.data))
    return replace(a, data=b.data.where(second, a.data), stats=(v.where(second, u),))


HANDLERS: dict[str, Handler] = {
    "embedding": _embedding,
    "argmax": _argmax,
}
