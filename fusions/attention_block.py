"""The attention block of a decoder layer, decoding one token per sequence: from the residual stream to the residual stream.

    h = x + residual;  q, k, v = rope(linear(rms_norm(h)));  append k, v to the cache;  y = h + attention(q, cache) @ wo.T

One cluster works on one KV head, or on several, or several clusters share one. The options are dataflows of the same sum:

    qkv   "grid" (the default): every CTA of the launch computes rows of q, k, v, gathered through device memory. The work is not tied
          to heads then, so all SMs have the same share, and several clusters may work on one head, each with some of its tokens
          (`splits`). "rows": the ranks of a head's cluster compute its rows of q, k, v, and a gather gives every rank all of them.
          "split_k": each rank takes a slice of the contraction, and a reduce adds the terms. These two have one grid barrier less,
          which is worth more than even shares where a model is small.
    out   "gather": attention's result is gathered over the grid, then each CTA computes whole rows of y: deterministic.
          "atomic": each head's cluster adds its own term of all of y to device memory. Needs qkv "rows" or "split_k".
    residual  False: there is no input `residual`, and h = x, for a caller whose x is the residual stream already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import cfdsl as cf
from fusions._tensors import Random, rope_tables

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from torch import Tensor

Qkv = tuple[cf.Value, cf.Value, cf.Value]
Biases = tuple[cf.Value | None, cf.Value | None, cf.Value | None]  # all of them, or none


@cf.fusion
def attention_block(
    m: cf.ModelConfig,
    batch: int,
    *,
    qkv: Literal["grid", "rows", "split_k"] = "grid",
    out: Literal["gather", "atomic"] = "gather",
    layout: Literal["bhtd", "bthd"] = "bhtd",
    residual: bool = True,
) -> cf.Outputs:
    """y = x + residual + attention. `length` counts the tokens in the cache before the call; `pos` is the new token's position."""
    x = cf.input("x", (batch, m.hidden))
    h = x + cf.input("residual", (batch, m.hidden)) if residual else x
    return cf.outputs(y=attention(m, batch, h, qkv=qkv, out=out, layout=layout) + h)


def attention(m: cf.ModelConfig, batch: int, h: cf.Value, *, qkv: str = "grid", out: str = "gather", layout: str = "bhtd") -> cf.Value:
    """What attention adds to h (batch, hidden), which everybody has: rows on every CTA, [S(1), S(1)]. Options as the block's."""
    if qkv == "grid" and out == "atomic":
        raise cf.TraceError(problem="qkv='grid' does not go with out='atomic'", advice="take out='gather', or qkv 'rows' or 'split_k'")
    pos = cf.input("pos", (batch,), "i32")
    length = cf.input("length", (batch,), "i32")
    cos = cf.input("cos", ("positions", m.rotary_dim // 2), "f32")
    sin = cf.input("sin", ("positions", m.rotary_dim // 2), "f32")
    q_size, kv_size = m.heads * m.head_dim, m.kv_heads * m.head_dim
    norm, wo = cf.weight("norm", (m.hidden,)), cf.weight("wo", (m.hidden, q_size))
    wq, wk, wv = cf.weight("wq", (q_size, m.hidden)), cf.weight("wk", (kv_size, m.hidden)), cf.weight("wv", (kv_size, m.hidden))

    bq = bk = bv = None
    if m.qkv_bias:
        bq, bk, bv = cf.weight("bq", (q_size,)), cf.weight("bk", (kv_size,)), cf.weight("bv", (kv_size,))

    normed = cf.rms_norm(h, norm, m.norm_eps)
    if qkv == "grid":
        q, k, v = _rows(normed, (wq, wk, wv), (bq, bk, bv))
        q, k, v = cf.grid_gather(q, k, v)
    with cf.clusters(over=m.kv_heads) as head:
        if qkv == "grid":
            q = cf.split_heads(q, m.heads)[:, head]
            k, v = cf.split_heads(k, m.kv_heads)[:, head], cf.split_heads(v, m.kv_heads)[:, head]
        else:
            q, k, v = _by_the_cluster(m, normed, head, qkv, (wq, wk, wv), (bq, bk, bv))
        q = cf.rope(q, cos, sin, pos, style=m.rope_style, rotary_dim=m.rotary_dim)
        k = cf.rope(k, cos, sin, pos, style=m.rope_style, rotary_dim=m.rotary_dim)
        cache = cf.kv_cache("cache", batch, m.kv_heads, "tokens", m.head_dim, layout=layout)[head].append(k, v, at=length)
        o = cf.attend(q, cache, shard="tokens", across="all" if qkv == "grid" else "cluster")
        if out == "gather":
            o = cf.cluster_reduce_scatter(o, dim=2)
        else:
            o = cf.cluster_reduce(o)
            terms = cf.linear(cf.merge_heads(o), wo[:, head], shard="out")
    if out == "gather":
        o = cf.grid_reduce(o) if qkv == "grid" else cf.grid_gather(o)
        return cf.linear(cf.merge_heads(o), wo, shard="out")
    return cf.grid_reduce_scatter(terms, dim=1)


def _rows(normed: cf.Value, weights: Qkv, biases: Biases) -> Qkv:
    """q, k, v, of whose rows everybody has some: outside of a clusters block every CTA, inside of it every rank."""
    (wq, wk, wv), (bq, bk, bv) = weights, biases
    q = cf.linear(normed, wq, bq, shard="out")
    k = cf.linear(normed, wk, bk, shard="out")
    v = cf.linear(normed, wv, bv, shard="out")
    return q, k, v


def _by_the_cluster(m: cf.ModelConfig, normed: cf.Value, head: cf.Axis, qkv: str, weights: Qkv, biases: Biases) -> Qkv:
    """q, k, v of the cluster's heads, computed by its ranks alone and whole on each of them."""
    (wq, wk, wv), (bq, bk, bv) = weights, biases
    wq, wk, wv = wq.split_heads(m.heads)[head], wk.split_heads(m.kv_heads)[head], wv.split_heads(m.kv_heads)[head]
    if bq is not None and bk is not None and bv is not None:
        bq, bk, bv = bq.split_heads(m.heads)[head], bk.split_heads(m.kv_heads)[head], bv.split_heads(m.kv_heads)[head]
    if qkv == "rows":
        q, k, v = _rows(normed, (wq, wk, wv), (bq, bk, bv))
        q, k, v = cf.cluster_gather(q, k, v)
        return q, k, v
    q = cf.linear(normed, wq, shard="in")
    k = cf.linear(normed, wk, shard="in")
    v = cf.linear(normed, wv, shard="in")
    q, k, v = cf.cluster_reduce(q, k, v)
    if bq is not None and bk is not None and bv is not None:  # added once, after the sum, and not by every rank
        q, k, v = q + bq, k + bk, v + bv
    return q, k, v


@attention_block.reference
def reference(
    m: cf.ModelConfig, tensors: dict[str, Tensor], precision: str = "f64", *, qkv: str = "grid", out: str = "gather", layout: str = "bhtd",
    residual: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """What the block must compute, as one would write it in PyTorch.

    Returns y (batch, hidden), not rounded, and cache_k, cache_v as they are after the call (new tensors). precision: "f32" or "f64".
    A length out of 0..capacity is clamped for attention. The new token is attended to in any case; it is stored at index `length`, and
    nowhere if the cache has no such index.
    """
    import torch
    import torch.nn.functional as F

    dtype = torch.float64 if precision == "f64" else torch.float32
    t = {name: value.to(dtype) if value.is_floating_point() and not name.startswith("cache_") else value for name, value in tensors.items()}
    h = t["x"] + t["residual"] if residual else t["x"]
    normed = F.rms_norm(h, (m.hidden,), t["norm"], m.norm_eps)
    q, k, v = (F.linear(normed, t[f"w{n}"], t[f"b{n}"] if m.qkv_bias else None).view(len(h), -1, m.head_dim) for n in "qkv")
    q, k = (_rotate(m, heads, t["cos"], t["sin"], t["pos"]) for heads in (q, k))
    caches = {name: tensors[name].clone() for name in ("cache_k", "cache_v")}
    rows = []
    for b in range(len(h)):
        keys = _with_token(caches["cache_k"][b], k[b], t["length"][b], layout).to(dtype)
        values = _with_token(caches["cache_v"][b], v[b], t["length"][b], layout).to(dtype)
        rows.append(F.scaled_dot_product_attention(q[b, :, None], keys, values, enable_gqa=True).flatten())
    return {"y": F.linear(torch.stack(rows), t["wo"]) + h, **caches}


def _rotate(m: cf.ModelConfig, x: Tensor, cos: Tensor, sin: Tensor, pos: Tensor) -> Tensor:
    """Rotate the first rotary_dim dimensions of x (batch, heads, dim): pairs as complex numbers."""
    import torch

    turn, rest = x[..., : m.rotary_dim], x[..., m.rotary_dim :]
    pairs = (2, -1) if m.rope_style == "half" else (-1, 2)
    axis = -2 if m.rope_style == "half" else -1
    re, im = turn.unflatten(-1, pairs).unbind(axis)
    row = pos.long().clamp(0, len(cos) - 1)
    turned = torch.complex(re, im) * torch.complex(cos, sin)[row][:, None]
    return torch.cat((torch.stack((turned.real, turned.imag), axis).flatten(-2), rest), -1)


def _with_token(cache: Tensor, new: Tensor, length: Tensor, layout: str) -> Tensor:
    """Store new (heads, dim) at index `length` of one sequence's cache, if there is one. Returns (heads, tokens + 1, dim): all attended."""
    import torch

    by_head = cache if layout == "bhtd" else cache.transpose(0, 1)
    at = min(max(int(length), 0), by_head.shape[1])
    token = new.to(cache.dtype)
    if 0 <= int(length) < by_head.shape[1]:
        by_head[:, int(length)] = token
    return torch.cat((by_head[:, :at], token[:, None]), 1)


@attention_block.example_inputs
def example_inputs(
    m: cf.ModelConfig,
    batch: int = 1,
    dtype: str = "bf16",
    length: int | Sequence[int] = 128,
    capacity: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    *,
    qkv: str = "grid",
    out: str = "gather",
    layout: str = "bhtd",
    residual: bool = True,
) -> dict[str, Tensor]:
    """Random tensors for one call of the kernel, scaled so that scores and outputs are of the size they have in a model.

    dtype     "bf16" or "f16"
    length    tokens in the cache: one number for all sequences, or one each. pos is the same.
    capacity  tokens that the cache can hold (default: one more than the longest length)

    What must not be read is NaN: the cache past its length, and the output y.
    """
    import torch

    random = Random(dtype, seed, device)
    normal = random.normal
    lengths = [length] * batch if isinstance(length, int) else list(length)
    room = max(1, *lengths, max(lengths) + 1) if capacity is None else capacity
    t = {name: normal(batch, m.hidden) for name in (("x", "residual") if residual else ("x",))}
    t["pos"] = torch.tensor([max(0, n) for n in lengths], dtype=torch.int32, device=device)
    t["length"] = torch.tensor(lengths, dtype=torch.int32, device=device)
    t["cos"], t["sin"] = rope_tables(m, max(room, *lengths) + 1, device)
    for name, n in (("q", m.heads), ("k", m.kv_heads), ("v", m.kv_heads)):
        sharp = 2.5 if name == "q" else 1.0  # scores of this deviation, as in a model: else attention averages itself away beside h
        t[f"w{name}"] = normal(n * m.head_dim, m.hidden, scale=sharp / math.sqrt(m.hidden))
        if m.qkv_bias:
            t[f"b{name}"] = normal(n * m.head_dim, scale=0.1)
    t["wo"] = normal(m.hidden, m.heads * m.head_dim, scale=1 / math.sqrt(m.heads * m.head_dim))
    t["norm"] = random.norm(m.hidden)
    for name in ("cache_k", "cache_v"):
        by_head = normal(batch, m.kv_heads, room, m.head_dim)
        for row, n in zip(by_head, lengths, strict=True):
            row[:, max(0, n) :] = math.nan
        t[name] = by_head if layout == "bhtd" else by_head.transpose(1, 2).contiguous()
    t["y"] = torch.full_like(t["x"], math.nan)
    return t


def _peers() -> ModuleType:
    from fusions import _attention_peers

    return _attention_peers


def _peer_inputs(m: cf.ModelConfig, tensors: dict[str, Tensor], length: int, layout: str = "bhtd", **options: Any) -> tuple[Any, ...]:
    given: tuple[Any, ...] = _peers().peer_inputs(tensors, m.heads, m.norm_eps, length, layout, m.rope_style == "interleaved")
    return given


@attention_block.peer("torch.compile", "max-autotune, SDPA", compile=True)
@attention_block.peer("torch eager", "SDPA")
def _with_sdpa(m: cf.ModelConfig, tensors: dict[str, Tensor], length: int, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    return _peers().eager_sdpa, _peer_inputs(m, tensors, length, **options)


@attention_block.peer("torch.compile", "max-autotune, softmax written out", compile=True)
def _with_softmax(m: cf.ModelConfig, tensors: dict[str, Tensor], length: int, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    return _peers().eager_plain, _peer_inputs(m, tensors, length, **options)
