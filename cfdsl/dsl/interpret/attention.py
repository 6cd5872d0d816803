"""One rank's part of rope, cache append and decode attention, and the online-softmax monoid that joins ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cfdsl.dsl.graph import Node
from cfdsl.dsl.interpret.local import Local, OracleError, Rank, Span, Spans, same_bits
from cfdsl.dsl.interpret.machine import Handler, Machine

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Stats = tuple["Tensor", "Tensor"]


@dataclass(frozen=True, eq=False)
class LocalCache:
    """What one rank sees of a KV cache: keys and values (batch, heads, tokens, dim) whatever their layout in memory.

    new   k and v (batch, heads, dim) that this launch appends, rounded to the cache's dtype
    at    (batch,) int32: tokens in the cache before
    """

    name: str
    k: Tensor
    v: Tensor
    marks: Stats
    spans: Spans
    new: Stats | None = None
    at: Local | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """As `Local.key`."""
        new = tuple(t.data_ptr() for t in self.new) if self.new else ()
        return (self.name, self.spans, *new)

    def narrow(self, dim: int, want: Span) -> LocalCache:
        """The heads of `want`; the other dimensions of a cache are never sliced like this."""
        if dim != 1:
            raise OracleError(None, f"dimension {dim} of a KV cache cannot be sliced")
        lo = self.spans[1][0]
        first, count = want[0] - lo, want[1] - want[0]
        k, v, mark_k, mark_v = (t.narrow(1, first, count) for t in (self.k, self.v, *self.marks))
        return replace(self, k=k, v=v, marks=(mark_k, mark_v), spans=(self.spans[0], want, *self.spans[2:]))


def merge_lse(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The (m, l, o) of several terms, in their order. o (..., dim); m, l (...). A term without tokens has m = -inf, l = 0."""
    m, l, o = parts[0]
    for other_m, other_l, other_o in parts[1:]:
        top = m.maximum(other_m)
        keep, other_keep = _decay(m, top), _decay(other_m, top)
        o = o * keep[..., None] + other_o * other_keep[..., None]
        l = l * keep + other_l * other_keep
        m = top
    return m, l, o


def _decay(m: Tensor, top: Tensor) -> Tensor:
    """exp(m - top), and 0 where there was nothing (-inf minus -inf is no number)."""
    return (m - top).exp().masked_fill(m == -math.inf, 0.0)


def finish_lse(l: Tensor, o: Tensor) -> Tensor:
    """o / l, and 0 where no token was attended to."""
    return (o / l[..., None]).masked_fill((l == 0)[..., None], 0.0)


def _rope(m: Machine, node: Node, rank: Rank, args: list[Local]) -> Local:
    x, cos, sin, pos = args
    if x.spans[2] != (0, m.shape(node)[2]):
        raise OracleError(node, f"a rank holds {x.spans[2][0]}:{x.spans[2][1]} of each head: a rotation pairs all of it")
    pos = pos.narrow(0, x.spans[0])
    m.load(rank, x, pos)
    for table in (cos, sin):
        m.counter.load_rows(rank, table, x.spans[0], pos.data.numel())
    half = cos.data.shape[1]

    def rotated() -> Local:
        row = pos.data.clamp(0, cos.data.shape[0] - 1).long()
        c, s = (table.data[row][:, None, :].to(m.dtype) for table in (cos, sin))
        data = x.data.to(m.dtype).clone()
        turn = data[..., : 2 * half]
        lo, hi = (turn[..., 0::2], turn[..., 1::2]) if node.attr("style") == "interleaved" else (turn[..., :half], turn[..., half:])
        new_lo, new_hi = lo * c - hi * s, hi * c + lo * s
        lo.copy_(new_lo)
        hi.copy_(new_hi)
        return Local(data, x.spans)

    return m.once(node, (x, cos, sin, pos), rotated)


def _append(m: Machine, node: Node, rank: Rank, args: list[Any]) -> LocalCache:
    """Round k and v, and write them at index `at` if the cache has one. Every rank that holds the cache would write the same."""
    cache, k, v, at = args
    at = at.narrow(0, cache.spans[0])
    m.load(rank, k, v, at)
    k, v = (x.narrow(1, cache.spans[1]) for x in (k, v))
    key = (cache.name, cache.spans)
    new = (_rounded(m, node, k, cache.k.dtype), _rounded(m, node, v, cache.v.dtype))
    before = m.appended.get(key)
    if before is None:
        m.appended[key] = new
        _write(m, cache, new, at.data)
    elif not all(same_bits(a, b) for a, b in zip(before, new, strict=True)):
        raise OracleError(node, f"two ranks append different tokens to heads {cache.spans[1]}")
    return replace(cache, new=new, at=at)


def _rounded(m: Machine, node: Node, x: Local, dtype: torch.dtype) -> Tensor:
    return m.once(node, (x,), lambda: Local(x.data.to(m.dtype).to(dtype), x.spans)).data


def _write(m: Machine, cache: LocalCache, new: Stats, at: Tensor) -> None:
    heads = slice(*cache.spans[1])
    for row, index in enumerate(at.tolist()):
        if 0 <= index < cache.k.shape[2]:
            for whole, token in zip(m.caches[cache.name], new, strict=True):
                whole[row, heads, index] = token[row]
                m.counter.kv_write += token[row].numel() * token.element_size()


def _attend(m: Machine, node: Node, rank: Rank, args: list[Any]) -> Local:
    """Tokens are dealt like cards: holder h of n has tokens h, h + n, ...; the appended token is the last holder's."""
    q, cache, *length = args
    sharded = node.attr("shard") == "tokens"
    held = length[0] if length else cache.at
    if held is None:
        raise OracleError(node, "a cache with neither an append nor a length")
    m.load(rank, q, held)
    capacity = cache.k.shape[2]
    holders, holder = _holders(m, node, rank) if sharded else (1, 0)
    tokens = held.data.new_ones(capacity).cumsum(0) - 1
    valid = tokens[None, :] < held.data.clamp(0, capacity)[:, None]
    valid = valid & (tokens[None, :] % holders == holder)
    m.counter.load_cache(cache.marks, valid, cache.k.element_size())
    with_new = cache.new is not None and holder == holders - 1
    key = (node, q.key, cache.key, held.key, holder)
    if key not in m.memo:
        m.memo[key] = _softmax_terms(m, node, q, cache, valid, with_new, finished=not sharded)
    return m.memo[key]


def _holders(m: Machine, node: Node, rank: Rank) -> tuple[int, int]:
    """Among how many the tokens of a unit are dealt, and which of them this rank is: the ranks of a cluster, or of all splits."""
    if node.attr("across") != "all":
        return m.mesh.ranks, rank[1]
    return m.mesh.splits * m.mesh.ranks, rank[0] % m.mesh.splits * m.mesh.ranks + rank[1]


def _softmax_terms(m: Machine, node: Node, q: Local, cache: LocalCache, valid: Tensor, with_new: bool, finished: bool) -> Local:
    if q.spans[2] != cache.spans[3]:
        raise OracleError(node, f"a rank holds {q.spans[2][0]}:{q.spans[2][1]} of each query head: a score needs all of it")
    group = m.shape(node)[1] // m.shape(node.args[1])[1]
    kv = [head // group - cache.spans[1][0] for head in range(*q.spans[1])]
    if min(kv) < 0 or max(kv) >= cache.k.shape[1]:
        raise OracleError(node, f"query heads {q.spans[1]} need KV heads that the rank does not hold: it has {cache.spans[1]}")
    scale = node.attr("scale")
    query = q.data.to(m.dtype) * (1 / math.sqrt(q.data.shape[2]) if scale is None else scale)
    some = valid.any(0).nonzero().flatten()  # tokens that some sequence has: whatever else the cache holds is not looked at
    keys, values = (t[:, kv][:, :, some].to(m.dtype) for t in (cache.k, cache.v))
    hole = ~valid[:, some][:, None, :]
    values = values.masked_fill(hole[..., None], 0.0)
    scores = (keys @ query[..., None])[..., 0].masked_fill(hole, -math.inf)
    parts = [_terms(scores, values)]
    if with_new:
        assert cache.new is not None
        k, v = (t[:, kv].to(m.dtype) for t in cache.new)
        parts.append(((query * k).sum(-1), query.new_ones(query.shape[:2]), v))
    top, total, out = merge_lse(parts)
    if finished:
        return Local(finish_lse(total, out), q.spans)
    return Local(out, q.spans, stats=(top, total))


def _terms(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(m, l, o) of scores (batch, heads, tokens) over values (batch, heads, tokens, dim)."""
    if scores.shape[2] == 0:
        return scores.new_full(scores.shape[:2], -math.inf), scores.new_zeros(scores.shape[:2]), values.sum(2)
    top = scores.amax(2)
    weight = (scores - top[..., None]).exp().masked_fill(scores == -math.inf, 0.0)
    return top, weight.sum(2), (weight[:, :, None, :] @ values)[:, :, 0]


HANDLERS: dict[str, Handler] = {"rope": _rope, "append": _append, "attend": _attend}
