"""What the attention block is measured against: the same maths in torch, eager with SDPA and compiled, each given its best shot.

The best shot: one matrix for q, k and v; cos and sin of the position at hand instead of tables; the cache cut to the exact number of
tokens, a number known on the host; the new row written with `index_copy_`; everything captured in a CUDA graph by the caller. The
compiled peer is tried with SDPA and with the softmax written out, which inductor fuses for a single query, and the faster one counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PeerInputs(NamedTuple):
    """One set of tensors, in the order of a block's parameters.

    x, residual (b, hidden); norm (hidden,); wqkv (q + 2 kv rows, hidden); wo (hidden, q rows).

    k, v (b, kv heads, capacity, head_dim), dense; cos, sin (b, rotary_dim / 2) f32 of the position; at (1,) i64: where the new row
    goes; tokens: valid tokens with the new one.
    """

    x: Tensor
    residual: Tensor | None
    norm: Tensor
    wqkv: Tensor
    bqkv: Tensor | None
    wo: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    at: Tensor
    tokens: int
    heads: int
    eps: float
    interleaved: bool = False


def peer_inputs(
    given: Mapping[str, Tensor], heads: int, eps: float, kv_len: int, layout: str = "bhtd", interleaved: bool = False
) -> PeerInputs:
    """From the kernel's own arguments by name: the fused weight and the rotary row are made here, the cache is shared."""
    k, v = (given[name] if layout == "bhtd" else given[name].transpose(1, 2) for name in ("cache_k", "cache_v"))
    bias = torch.cat([given["bq"], given["bk"], given["bv"]]) if "bq" in given else None
    position = given["pos"].long()
    return PeerInputs(
        given["x"], given.get("residual"), given["norm"], torch.cat([given["wq"], given["wk"], given["wv"]]), bias, given["wo"], k, v,
        given["cos"][position], given["sin"][position], given["length"][:1].long(), kv_len + 1, heads, eps, interleaved,
    )  # fmt: skip


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of x (b, heads, head_dim) in float32, back in x's dtype; dimensions beyond the tables pass through."""
    half = cos.shape[-1]
    c, s = cos[:, None], sin[:, None]
    turned, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        out = torch.cat([a * c - b * s, b * c + a * s], -1)
    return torch.cat([out.to(x.dtype), rest], -1)


def _attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=grouped)[:, :, 0]


def _attend_plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, dim = q.shape
    grouped = q.view(batch, k.shape[1], heads // k.shape[1], dim)
    scores = (grouped @ k.transpose(-1, -2)).float() / math.sqrt(dim)
    return (torch.softmax(scores, -1).to(v.dtype) @ v).reshape(batch, heads, dim)


def _block(p: PeerInputs, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    batch, kv_heads, dim = p.x.shape[0], p.k.shape[1], p.k.shape[3]
    h = p.x if p.residual is None else p.x + p.residual
    n = F.rms_norm(h, (h.shape[-1],), p.norm, p.eps)
    qkv = F.linear(n, p.wqkv, p.bqkv)
    q, k, v = qkv.split([p.heads * dim, kv_heads * dim, kv_heads * dim], -1)
    q = rotate(q.reshape(batch, p.heads, dim), p.cos, p.sin, p.interleaved)
    k = rotate(k.reshape(batch, kv_heads, dim), p.cos, p.sin, p.interleaved)
    p.k.index_copy_(2, p.at, k[:, :, None])
    p.v.index_copy_(2, p.at, v.reshape(batch, kv_heads, 1, dim))
    o = attend(q, p.k[:, :, : p.tokens], p.v[:, :, : p.tokens])
    return F.linear(o.reshape(batch, p.heads * dim), p.wo) + h


def eager_sdpa(*fields: Any) -> Tensor:
    """The block in torch eager with SDPA, on the fields of a PeerInputs; (b, hidden)."""
    return _block(PeerInputs(*fields), _attend_sdpa)


def eager_plain(*fields: Any) -> Tensor:
    """The block with the softmax written out, on the fields of a PeerInputs; (b, hidden)."""
    return _block(PeerInputs(*fields), _attend_plain)
