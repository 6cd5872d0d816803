"""What the tests of the language share: the attention block as a spec of their own, so that they do not depend on the shipped one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cfdsl as cf

sys.path.insert(0, str(Path(__file__).parent))  # `tracing` and `held`, for the tests of this folder


@cf.fusion
def attention(m: cf.ModelConfig, batch: int, *, qkv: str = "rows", out: str = "gather", layout: str = "bhtd") -> cf.Outputs:
    x, residual = cf.input("x", (batch, m.hidden)), cf.input("residual", (batch, m.hidden))
    pos, length = cf.input("pos", (batch,), "i32"), cf.input("length", (batch,), "i32")
    cos, sin = (cf.input(name, ("positions", m.rotary_dim // 2), "f32") for name in ("cos", "sin"))
    wq = cf.weight("wq", (m.heads * m.head_dim, m.hidden))
    wk = cf.weight("wk", (m.kv_heads * m.head_dim, m.hidden))
    wv = cf.weight("wv", (m.kv_heads * m.head_dim, m.hidden))
    wo = cf.weight("wo", (m.hidden, m.heads * m.head_dim))
    h = x + residual
    n = cf.rms_norm(h, cf.weight("norm", (m.hidden,)), m.norm_eps)
    with cf.clusters(over=m.kv_heads) as head:
        how, exchange = ("out", cf.cluster_gather) if qkv == "rows" else ("in", cf.cluster_reduce)
        q = cf.linear(n, wq.split_heads(m.heads)[head], shard=how)
        k = cf.linear(n, wk.split_heads(m.kv_heads)[head], shard=how)
        v = cf.linear(n, wv.split_heads(m.kv_heads)[head], shard=how)
        q, k, v = exchange(q, k, v)
        q, k = cf.rope(q, cos, sin, pos), cf.rope(k, cos, sin, pos)
        cache = cf.kv_cache("cache", batch, m.kv_heads, "tokens", m.head_dim, layout=layout)[head].append(k, v, at=length)
        o = cf.attend(q, cache, shard="tokens")
        if out == "gather":
            o = cf.cluster_reduce_scatter(o, dim=2)
        else:
            part = cf.linear(cf.merge_heads(cf.cluster_reduce(o)), wo[:, head], shard="out")
    if out == "gather":
        y = cf.linear(cf.merge_heads(cf.grid_gather(o)), wo, shard="out") + h
    else:
        y = cf.grid_reduce_scatter(part, dim=1) + h
    return cf.outputs(y=y)


@pytest.fixture
def block() -> cf.Fusion:
    """The attention block: options qkv "rows" or "splitk", out "gather" or "atomic"."""
    return attention
