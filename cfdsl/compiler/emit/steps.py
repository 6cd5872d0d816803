"""One emitter per step op: a few lines of source, nearly all of them one call of a primitive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.emit.context import DTYPES, Context, bare, element, fragment, name
from cfdsl.compiler.plan import Step
from cfdsl.errors import PlanError

PRIMITIVES = (
    "attention.Attend", "attention.combine_warps", "attention.decode", "cluster_gather.push", "cluster_reduce.combine_lse",
    "cluster_reduce.push", "cluster_reduce.push_lse", "cluster_reduce.push_scalar", "cluster_reduce.scatter", "cluster_reduce.sum_rows",
    "cluster_reduce.sum_scalar", "cta.arena", "cta.barriers", "cta.consumer_sync", "cta.thread", "cta.view", "cta.warp", "exchange.arm",
    "exchange.init", "exchange.wait", "frag.hold", "frag.load", "frag.store", "gemv.rows", "gemv.total", "grid.add", "grid.barrier",
    "kv.LENGTH_CLAMPED", "kv.POSITION_CLAMPED", "kv.append", "kv.clamp", "rmsnorm.mean_square", "rmsnorm.rsqrt", "pointwise.gelu",
    "pointwise.silu", "rings.Ring", "rings.init", "rope.angles", "rope.rotate", "stream.Rows", "stream.Tokens", "stream.rows",
    "stream.tile_count", "stream.tokens",
)  # fmt: skip

Lines = list[str]


def loop(n: int | str, body: str) -> Lines:
    """Each consumer thread takes every THREADS-th index."""
    return [f"for i in cutlass.range(tidx, {n}, THREADS, unroll=1):", f"    {body}"]


def _angles(c: Context, p: dict[str, Any]) -> Lines:
    cos, sin = p["out"]
    limit, row = f"n_{_symbol(c, p['cos'])}", cos.replace("cosine", "position")
    return [
        f"{row} = kv.clamp({name(p['pos'])}[0], 0, {limit} - 1, kv.POSITION_CLAMPED, status)",
        f"{cos}, {sin} = rope.angles({name(p['cos'])}, {name(p['sin'])}, {row}, {p['half']})",
    ]


def _length(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']} = kv.clamp({name(p['length'])}[0], 0, n_{_symbol(c, p['cache'] + '_k')}, kv.LENGTH_CLAMPED, status)"]


def _fragment(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']} = {bare(fragment(p['tree'], c.fragment(p['tiles'])))}"]


def _slice(c: Context, p: dict[str, Any]) -> Lines:
    return loop(rows_of(c, p["share"].name), f"{p['out']}[i] = {bare(element(p['tree']))}")


def _mean_square(c: Context, p: dict[str, Any], step: Step) -> Lines:
    return [f"{p['out']} = rmsnorm.mean_square({p['value']}, {c.fragment(p['tiles'])}, {step.out}, {p['cols']})"]


def _rms(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']} = rmsnorm.rsqrt({p['mean']}, {p['eps']!r})"]


def _gemv(c: Context, p: dict[str, Any]) -> Lines:
    stream = c.plan.streams[p["stream"]]
    shape = c.rows(stream.name, p["tiles"])
    count = tiles_of(c, p["tiles"])
    return [f"at = gemv.rows(smem, RING, at, frag.hold({p['value']}), {c.dtype(stream.name)}, {shape}, {count}, {p['part']})"]


def _sync(c: Context, p: dict[str, Any]) -> Lines:
    return ["cta.consumer_sync(WARPS)"]


def _finish(c: Context, p: dict[str, Any]) -> Lines:
    return loop(p["rows"], f"{p['out']}[i] = {bare(element(p['tree']))}")


def _rendezvous(c: Context, p: dict[str, Any]) -> Lines:
    return ["cute.arch.cluster_wait()"]


def _wait(c: Context, p: dict[str, Any]) -> Lines:
    return [f"exchange.wait({p['mbar']})"]


def _gather_push(c: Context, p: dict[str, Any]) -> Lines:
    return [f"cluster_gather.push({p['source']}, {p['dst']}, {p['n']}, {p['block']}, {p['mbar']}, rank, RANKS, THREADS)"]


def _reduce_push(c: Context, p: dict[str, Any]) -> Lines:
    return [f"cluster_reduce.push({p['source']}, {p['dst']}, {p['n']}, {p['mbar']}, rank, RANKS, THREADS)"]


def _scatter_push(c: Context, p: dict[str, Any]) -> Lines:
    blocks = p["n"] // p["block"]
    return [f"cluster_reduce.scatter({p['source']}, {p['dst']}, {blocks}, {p['block']}, {p['mbar']}, rank, RANKS, THREADS)"]


def _lse_push(c: Context, p: dict[str, Any]) -> Lines:
    return [f"cluster_reduce.push_lse({p['stats']}, {p['box']}, {p['heads']}, {p['mbar']}, rank, RANKS, THREADS)"]


def _scalar_push(c: Context, p: dict[str, Any]) -> Lines:
    return [f"cluster_reduce.push_scalar({p['value']}, {p['box']}, {p['mbar']}, rank, RANKS)"]


def _scalar_sum(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']} = cluster_reduce.sum_scalar({p['box']}, RANKS)"]


def _reduce_sum(c: Context, p: dict[str, Any]) -> Lines:
    return [f"cluster_reduce.sum_rows({p['box']}, {p['out']}, {p['n']}, RANKS, THREADS)"]


def _lse_combine(c: Context, p: dict[str, Any]) -> Lines:
    box, stats = p["box"], p["stats"]
    if p.get("own"):  # the CTA's own terms: a box of one row
        box, stats = f"cta.row({box})", f"cta.row({stats})"
    return [f"cluster_reduce.combine_lse({box}, {stats}, {p['out']}, {p['heads']}, {p['block']}, {p['ranks']}, THREADS)"]


def _rope(c: Context, p: dict[str, Any]) -> Lines:
    shape = f"{p['heads']}, {p['dim']}, {p['half']}, {p['interleaved']}"
    return [f"rope.rotate({p['x']}, {shape}, {p['cos']}, {p['sin']}, THREADS)"]


def head_base(c: Context, cache: Any, j: int = 0) -> str:
    """The element where head `j` of the cluster starts in a cache tensor."""
    head = str(cache.base + Affine.of(j))
    head = f"({head})" if " " in head else head
    return f"Int64({head}) * {head_stride(c, cache)}"


def head_stride(c: Context, cache: Any) -> str:
    capacity = f"n_{_symbol(c, cache.name + '_k')}"
    return f"{capacity} * {cache.dim}" if cache.layout == "bhtd" else str(cache.dim)


def _append(c: Context, p: dict[str, Any]) -> Lines:
    cache = p["cache"]
    stride = cache.dim if cache.layout == "bhtd" else cache.all_heads * cache.dim
    conditions = ["(rank == 0)"]
    if p["repeat"] > 1:
        conditions.append(f"(cluster % {p['repeat']} == 0)")
    conditions += [f"({p['tokens']} == {name(p['length'])}[0])", f"({p['tokens']} < n_{_symbol(c, cache.name + '_k')})"]
    base = f"{head_base(c, cache)} + Int64({p['tokens']}) * {stride}"
    call = f"kv.append({name(cache.name + '_k')}, {name(cache.name + '_v')}, {p['k']}, {p['v']}, {cache.heads}, {cache.dim}, {base}"
    return [f"if {' & '.join(conditions)}:", f"    {call}, Int64({head_stride(c, cache)}), THREADS)"]


def attend_constant(c: Context, p: dict[str, Any]) -> str:
    text = f"attention.Attend(heads={p['group']}, dim={p['dim']}, tokens={p['tokens_per_tile']}, warps={c.warps})"
    return c.constant("ATTEND", text)


def _decode(c: Context, p: dict[str, Any]) -> Lines:
    shape = attend_constant(c, p)
    rank, ranks = ("rank", "RANKS") if p["sharded"] else ("Int32(0)", "1")
    group, dim, j = p["group"], p["dim"], p["head"]
    q, k, v = (cut(p[name], j * size, size) for name, size in (("q", group * dim), ("k", dim), ("v", dim)))
    whole = p["cache"].heads == 1
    q, k, v = (p["q"], p["k"], p["v"]) if whole else (q, k, v)
    dtype = c.dtype(f"{p['cache'].name}_k")
    tiles = f"tiles{j}" if j else "tiles"
    return [
        f"{tiles} = stream.tile_count({p['tokens']}, {p['tokens_per_tile']}, {rank}, {ranks})",
        f"at = attention.decode(smem, RING, at, {q}, {k}, {v}, {shape}, {dtype}, {p['scale']!r}, {p['tokens']}, {tiles}, {rank}, {ranks},",
        f"                      {p['part_o']}, {p['part_ml']})",
    ]


def cut(buffer: str, offset: int, size: int) -> str:
    return f"cta.piece({buffer}, {offset}, {size})"


def _combine_warps(c: Context, p: dict[str, Any]) -> Lines:
    shape = attend_constant(c, p)
    head0 = p["head"] * p["group"]
    return [f"attention.combine_warps({p['part_o']}, {p['part_ml']}, {shape}, {p['out']}, {p['stats']}, {head0}, THREADS)"]


def _store_vector(c: Context, p: dict[str, Any]) -> Lines:
    index = "i" if not p["block"] else f"i // {p['block']} * {p['stride']} + i % {p['block']}"
    value = rounded(c, p["dst"], element(p["tree"]))
    start = "" if p["offset"] == Affine() else f"{p['offset']} + "
    lines = loop(p["n"], f"{name(p['dst'])}[{start}{index}] = {value}")
    guard = ["(rank == 0)"] * p["alone"] + ["(cluster == 0)"] * p["everywhere"]
    return [f"if {' & '.join(guard)}:", *(f"    {line}" for line in lines)] if guard else lines


def _store_rows(c: Context, p: dict[str, Any]) -> Lines:
    share = p["share"]
    row = f"{Affine.of(**{share.symbol: share.granule})} + i"
    lines = loop(rows_of(c, share.name), f"{name(p['dst'])}[{row}] = {rounded(c, p['dst'], element(p['tree']))}")
    return lines + [f"    {workspace}[{row}] = Float32(0.0)  # for the next launch" for workspace in p["clears"]]


def _store_fragment(c: Context, p: dict[str, Any]) -> Lines:
    shape = c.fragment(p["tiles"])
    start = "" if p["offset"] == Affine() else f", {p['offset']}"
    call = f"frag.store({name(p['dst'])}, {bare(fragment(p['tree'], shape))}, {shape}{start})"
    return ["if rank == 0:", f"    {call}"] if p["alone"] else [call]


def _atomic_add(c: Context, p: dict[str, Any]) -> Lines:
    return loop(p["rows"], f"grid.add({p['workspace']}, {p['offset']} + i, {bare(element(p['tree']))})")


def _grid_barrier(c: Context, p: dict[str, Any]) -> Lines:
    return ["grid.barrier(ws_sync, CTAS, WARPS)"]


def rounded(c: Context, dst: str, value: str) -> str:
    dtype = c.dtype(dst)
    return bare(value) if dtype == "Float32" else f"({bare(value)}).to({dtype})"


def rows_of(c: Context, share: str) -> int | str:
    """How many rows this CTA has of a partition: a number, or a variable where CTAs differ."""
    found = next(s for s in c.plan.shares if s.name == share)
    return found.most if found.even else share


def tiles_of(c: Context, tiles: Any) -> int | str:
    """How many tiles this CTA streams of a weight."""
    if tiles.share is None:
        return tiles.tiles
    rows = rows_of(c, tiles.share)
    return tiles.tiles if isinstance(rows, int) else f"{rows} // {tiles.rows}"


def _symbol(c: Context, arg: str) -> str:
    shape = next(a.shape for a in c.plan.args if a.name == arg)
    return next(dim for dim in shape if isinstance(dim, str))


EMITTERS: dict[str, Callable[[Context, dict[str, Any]], Lines]] = {
    "angles": _angles, "length": _length, "fragment": _fragment, "slice": _slice, "rms": _rms, "gemv": _gemv, "sync": _sync,
    "finish": _finish, "rendezvous": _rendezvous, "wait": _wait, "gather_push": _gather_push, "reduce_push": _reduce_push,
    "scatter_push": _scatter_push, "lse_push": _lse_push, "scalar_push": _scalar_push, "scalar_sum": _scalar_sum,
    "reduce_sum": _reduce_sum, "lse_combine": _lse_combine, "rope": _rope, "append": _append, "decode": _decode,
    "combine_warps": _combine_warps, "store_vector": _store_vector, "store_rows": _store_rows, "store_fragment": _store_fragment,
    "atomic_add": _atomic_add, "grid_barrier": _grid_barrier,
}  # fmt: skip


def emit_step(c: Context, step: Step) -> Lines:
    """The lines of one step."""
    if step.op == "mean_square":
        return _mean_square(c, step.params, step)
    emitter = EMITTERS.get(step.op)
    if emitter is None:
        raise PlanError(what=f"no emitter for step {step.op!r}", sum="known: " + ", ".join(sorted(EMITTERS)), src=step.src)
    return emitter(c, step.params)


__all__ = ["DTYPES", "EMITTERS", "PRIMITIVES", "emit_step", "head_base", "rows_of", "tiles_of"]
