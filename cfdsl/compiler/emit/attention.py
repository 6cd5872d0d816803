"""Emitters of rotary embedding, the KV cache and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.emit.context import Context, Lines, capacity, size
from cfdsl.compiler.names import identifier as name


def _angles(c: Context, p: dict[str, Any]) -> Lines:
    cos, sin = p["out"]
    limit, row = size(c, p["cos"], 0), cos.replace("cosine", "position")
    return [
        f"{row}_given = {name(p['pos'])}[0]",
        f"{row} = kv.clamp({row}_given, 0, {limit} - 1)",
        f"{cos}, {sin} = rope.angles({name(p['cos'])}, {name(p['sin'])}, {row}, {p['half']})",
    ]


def _length(c: Context, p: dict[str, Any]) -> Lines:
    given, room = f"{p['out']}_given", capacity(c, p["cache"], p["layout"])
    return [f"{given} = {name(p['length'])}[0]", f"{p['out']} = kv.clamp({given}, 0, {room})"]


def _flags(c: Context, p: dict[str, Any]) -> Lines:
    lines = []
    for bit, variable, cache in p["flags"]:
        wrong = f"{variable} != {variable}_given"
        if cache:  # a full cache has no room for the token that the call appends
            wrong = f"({wrong}) | ({variable} == {capacity(c, *cache)})"
        lines.append(f"kv.flag(ws_sync.iterator + 1, kv.{bit}, {wrong})")
    return lines


def _rope(c: Context, p: dict[str, Any]) -> Lines:
    shape = f"{p['heads']}, {p['dim']}, {p['half']}, {p['interleaved']}"
    return [f"rope.rotate({p['x']}, {shape}, {p['cos']}, {p['sin']}, THREADS)"]


def head_base(c: Context, cache: Any, j: int = 0) -> str:
    """The element where head `j` of the cluster starts in a cache tensor."""
    head = str(cache.base + Affine.of(j))
    head = f"({head})" if " " in head else head
    room = capacity(c, cache.name, cache.layout)
    return f"Int64({head}) * {room} * {cache.dim}" if cache.layout == "bhtd" else f"Int64({head}) * {cache.dim}"


def head_stride(c: Context, cache: Any) -> str:
    """Elements from one head of a cache tensor to the next, in 64 bits."""
    room = capacity(c, cache.name, cache.layout)
    return f"Int64({room}) * {cache.dim}" if cache.layout == "bhtd" else f"Int64({cache.dim})"


def _append(c: Context, p: dict[str, Any]) -> Lines:
    cache = p["cache"]
    stride = cache.dim if cache.layout == "bhtd" else cache.all_heads * cache.dim
    conditions = ["(rank == 0)"]
    if p["repeat"] > 1:
        conditions.append(f"(cluster % {p['repeat']} == 0)")
    conditions += [f"({p['tokens']} == {p['tokens']}_given)", f"({p['tokens']} < {capacity(c, cache.name, cache.layout)})"]
    base = f"{head_base(c, cache)} + Int64({p['tokens']}) * {stride}"
    call = f"kv.append({name(cache.name + '_k')}, {name(cache.name + '_v')}, {p['k']}, {p['v']}, {cache.heads}, {cache.dim}, {base}"
    return [f"if {' & '.join(conditions)}:", f"    {call}, {head_stride(c, cache)}, THREADS)"]


def holder(p: dict[str, Any]) -> tuple[str, str]:
    """Who this CTA is among those that share a head's tokens, and how many they are."""
    if p["splits"] > 1:
        return "holder", f"{p['splits']} * RANKS"
    return ("rank", "RANKS") if p["sharded"] else ("Int32(0)", "1")


def attend_constant(c: Context, p: dict[str, Any]) -> str:
    """The constant with the geometry of an attention step."""
    shape = f"heads={p['group']}, dim={p['dim']}, tokens={p['tokens_per_tile']}, warps={c.warps}"
    return c.constant("ATTEND", f"attention.Attend({shape}, ahead={p['ahead']}, batches={p['batches']})")


def _decode(c: Context, p: dict[str, Any]) -> Lines:
    shape = attend_constant(c, p)
    rank, ranks = holder(p)
    group, dim, j = p["group"], p["dim"], p["head"]
    q, k, v = p["q"], p["k"], p["v"]
    if p["cache"].heads > 1:
        q, k, v = cut(q, j * group * dim, group * dim), cut(k, j * dim, dim), cut(v, j * dim, dim)
    dtype = c.dtype(f"{p['cache'].name}_k")
    tiles = f"tiles{j}" if j else "tiles"
    return [
        f"{tiles} = stream.tile_count({p['tokens']}, {p['tokens_per_tile']}, {rank}, {ranks})",
        f"at = attention.decode(smem, RING, at, {q}, {k}, {v}, {shape}, {dtype}, {p['scale']!r}, {p['tokens']}, {tiles}, {rank}, {ranks}, "
        f"{p['part_o']}, {p['part_ml']})",
    ]


def cut(buffer: str, offset: int, size: int) -> str:
    """A piece of a vector in shared memory."""
    return f"cta.piece({buffer}, {offset}, {size})"


def _combine_warps(c: Context, p: dict[str, Any]) -> Lines:
    shape = attend_constant(c, p)
    head0 = p["head"] * p["group"]
    return [f"attention.combine_warps({p['part_o']}, {p['part_ml']}, {shape}, {p['out']}, {p['stats']}, {head0}, THREADS)"]


ATTENTION: dict[str, Callable[[Context, dict[str, Any]], Lines]] = {
    "angles": _angles, "length": _length, "flags": _flags, "rope": _rope, "append": _append, "decode": _decode,
    "combine_warps": _combine_warps,
}  # fmt: skip
