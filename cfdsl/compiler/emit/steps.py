"""One emitter per step op: a few lines of source, nearly all of them one call of a primitive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.emit.attention import ATTENTION
from cfdsl.compiler.emit.context import Context, Lines, bare, element, fragment, loop
from cfdsl.compiler.emit.exchanges import EXCHANGES
from cfdsl.compiler.geometry import RowTiles
from cfdsl.compiler.names import identifier as name
from cfdsl.compiler.plan import Step
from cfdsl.errors import PlanError

PRIMITIVES = (
    "argmax.better", "argmax.nothing", "argmax.order", "argmax.over_block", "argmax.publish", "argmax.store_best",
    "attention.Attend", "attention.combine_warps", "attention.decode",
    "cluster_gather.push", "cluster_reduce.combine_lse", "cluster_reduce.merge_lse", "cluster_reduce.push",
    "cluster_reduce.push_lse", "cluster_reduce.push_scalar", "cluster_reduce.scatter", "cluster_reduce.sum_rows",
    "cluster_reduce.sum_scalar", "cta.arena", "cta.barriers", "cta.consumer_sync", "cta.piece", "cta.row", "cta.thread", "cta.view",
    "cta.warp", "exchange.arm", "exchange.init", "exchange.wait", "frag.fetch", "frag.hold",
    "frag.load", "frag.store", "frag.widen", "gemv.rows", "gemv.total",
    "grid.add", "grid.barrier", "grid.fetch", "grid.keep", "grid.phase", "host.flat", "host.gapless", "host.room",
    "kv.LENGTH_CLAMPED", "kv.POSITION_CLAMPED", "kv.TOKEN_CLAMPED", "kv.append", "kv.clamp", "kv.flag",
    "multicast.gather", "pointwise.gelu", "pointwise.silu",
    "rings.Ring", "rings.init", "rings.passed", "rmsnorm.mean_square", "rmsnorm.rsqrt", "rope.angles",
    "rope.rotate", "stream.Rows", "stream.Tokens", "stream.rows", "stream.tile_count", "stream.tokens",
    "terms.load", "terms.push", "terms.store",
    "trace.anchor", "trace.mark",
)  # fmt: skip


def _fragment(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']} = {bare(fragment(p['tree'], c.fragment(p['tiles'])))}"]


def _fetch_fragment(c: Context, p: dict[str, Any]) -> Lines:
    leaf = p["tree"]
    start = "" if leaf.offset == Affine() else f", {leaf.offset}"
    return [f"{p['out']} = frag.fetch({name(leaf.name)}, {c.fragment(p['tiles'])}{start})"]


def _slice(c: Context, p: dict[str, Any]) -> Lines:
    return loop(rows_of(c, p["share"].name), f"{p['out']}[i] = {bare(element(p['tree']))}")


def _mean_square(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']} = rmsnorm.mean_square({p['value']}, {c.fragment(p['tiles'])}, {p['scratch']}, {p['cols']})"]


def _argmax(c: Context, p: dict[str, Any]) -> Lines:
    pair = ", ".join(p["out"])
    at = "i" if p["first"] == Affine() else f"{p['first']} + i"
    rows = p["n"] if p["share"] is None else rows_of(c, p["share"].name)
    found = loop(rows, f"{pair} = argmax.better({pair}, argmax.order({bare(element(p['tree']))}), {at})")
    return [f"{pair} = argmax.nothing()", *found, f"{pair} = argmax.over_block({pair}, {p['scratch']}, WARPS)"]


def _index(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']}_given = {name(p['token'])}[{p['at']}]", f"{p['out']} = kv.clamp({p['out']}_given, 0, {p['rows']} - 1)"]


def _rms(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']} = rmsnorm.rsqrt({p['mean']}, {p['eps']!r})"]


def _gemv(c: Context, p: dict[str, Any]) -> Lines:
    if p["first"]:
        return []  # one call with the step before
    stream = c.plan.streams[p["stream"]]
    shape = c.rows(stream.name, p["tiles"])
    together = [s.params["tiles"] for s in c.plan.steps if s.op == "gemv" and s.params["part"] == p["part"]]
    count = tiles_of(c, p["tiles"]) if len(together) == 1 else sum(tiles.tiles for tiles in together)
    return [f"at = gemv.rows(smem, RING, at, frag.hold({p['value']}), {c.dtype(stream.name)}, {shape}, {count}, {p['part']})"]


def _sync(c: Context, p: dict[str, Any]) -> Lines:
    return ["cta.consumer_sync(WARPS)"]


def _finish(c: Context, p: dict[str, Any]) -> Lines:
    return loop(p["rows"], f"{p['out']}[i] = {bare(element(p['tree']))}")


def _concat(c: Context, p: dict[str, Any]) -> Lines:
    at = [f"{first} + i" if first else "i" for _, first, _ in p["parts"]]
    return [line for (tree, _, n), i in zip(p["parts"], at) for line in loop(n, f"{p['out']}[{i}] = {bare(element(tree))}")]


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


def _clear(c: Context, p: dict[str, Any]) -> Lines:
    share, (workspace,) = p["share"], p["clears"]
    row = f"{Affine.of(**{share.symbol: share.granule})} + i"
    return loop(rows_of(c, share.name), f"{workspace}[{row}] = Float32(0.0)  # for the next launch")


def _store_fragment(c: Context, p: dict[str, Any]) -> Lines:
    shape = c.fragment(p["tiles"])
    start = "" if p["offset"] == Affine() else f", {p['offset']}"
    call = f"frag.store({name(p['dst'])}, {bare(fragment(p['tree'], shape))}, {shape}{start})"
    return ["if rank == 0:", f"    {call}"] if p["alone"] else [call]


def _atomic_add(c: Context, p: dict[str, Any]) -> Lines:
    lines = loop(p["rows"], f"grid.add({p['workspace']}, {p['offset']} + i, {bare(element(p['tree']))})")
    return ["if rank == 0:", *(f"    {line}" for line in lines)] if p["alone"] else lines


def rounded(c: Context, dst: str, value: str) -> str:
    """A float32 value in the type of the argument that it is stored to."""
    dtype = c.dtype(dst)
    return bare(value) if dtype == "Float32" else f"({bare(value)}).to({dtype})"


def rows_of(c: Context, share: str) -> int | str:
    """How many rows this CTA has of a partition: a number, or a variable where CTAs differ."""
    found = next(s for s in c.plan.shares if s.name == share)
    return found.most if found.even else share


def tiles_of(c: Context, tiles: RowTiles) -> int | str:
    """How many tiles this CTA streams of a weight."""
    if tiles.share is None:
        return tiles.tiles
    rows = rows_of(c, tiles.share)
    if isinstance(rows, int):
        return tiles.tiles
    nth = rows if tiles.rows == 1 else f"{rows} // {tiles.rows}"
    return nth if tiles.pieces == 1 else f"{nth} * {tiles.pieces}"


EMITTERS: dict[str, Callable[[Context, dict[str, Any]], Lines]] = {
    "fragment": _fragment, "fetch_fragment": _fetch_fragment, "slice": _slice, "mean_square": _mean_square, "argmax": _argmax,
    "index": _index, "rms": _rms, "gemv": _gemv, "sync": _sync, "finish": _finish, "concat": _concat,
    "store_vector": _store_vector, "store_rows": _store_rows, "store_fragment": _store_fragment, "clear": _clear,
    "atomic_add": _atomic_add, **EXCHANGES, **ATTENTION,
}  # fmt: skip


def emit_step(c: Context, step: Step) -> Lines:
    """The lines of one step."""
    emitter = EMITTERS.get(step.op)
    if emitter is None:
        raise PlanError(what=f"no emitter for step {step.op!r}", sum="known: " + ", ".join(sorted(EMITTERS)), src=step.src)
    return emitter(c, step.params)
