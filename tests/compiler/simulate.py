"""A plan run on the CPU, step by step, all CTAs at once: what a kernel computes if it does what its plan says.

Shared memory is one arena a CTA, so that buffers which share bytes do; what nobody wrote is NaN. A push lands at once, and waits do
nothing: what they order, `check` proves. Numbers are float32; a cast rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.plan import KernelPlan, Step

Array = np.ndarray
LOWEST = -1e30
NO_PAIR = (-math.inf, 2**31 - 1)
TORCH = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def simulate(plan: KernelPlan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs, and caches after the call, by name: float32, outputs not rounded. What is not written is NaN."""
    launch = _Launch(plan, tensors)
    with np.errstate(all="ignore"):  # of what nobody wrote
        for step in plan.steps:
            run = STEPS.get(step.op)
            for cta in launch.ctas if run is not None else ():
                run(cta, step, step.params)
    results = {}
    for arg in plan.args:
        if arg.role in ("output", "cache"):
            shape = [launch.sizes[dim] if isinstance(dim, str) else dim for dim in arg.shape]
            results[arg.name] = torch.from_numpy(launch.memory[arg.name]).reshape(shape)
    return results


class _Launch:
    """Global memory, flat, and the CTAs."""

    def __init__(self, plan: KernelPlan, tensors: Mapping[str, torch.Tensor]) -> None:
        self.plan, self.memory, self.sizes = plan, {}, {}  # type: tuple[KernelPlan, dict[str, Array], dict[str, int]]
        for arg in plan.args:
            if arg.name in tensors:
                self.sizes |= {dim: size for dim, size in zip(arg.shape, tensors[arg.name].shape) if isinstance(dim, str)}
        summed = {step.params["workspace"] for step in plan.steps if step.op == "atomic_add"}
        for arg in plan.args:
            if arg.name in tensors and arg.role != "output":
                whole = tensors[arg.name]
                self.memory[arg.name] = (whole.float() if whole.is_floating_point() else whole).numpy().flatten()
            else:
                size = math.prod(self.sizes[dim] if isinstance(dim, str) else dim for dim in arg.shape)
                self.memory[arg.name] = np.full(size, 0.0 if arg.name in summed else math.nan, np.float32)
        self.ctas = [_Cta(self, number) for number in range(plan.mesh.ctas)]


@dataclass
class _Cta:
    """One CTA: its coordinates, its arena with a view for each buffer, and its variables."""

    launch: _Launch
    number: int
    coordinates: dict[str, int] = field(init=False)
    buffers: dict[str, Array] = field(init=False)
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.launch.plan
        self.coordinates = plan.coordinates(self.number)
        arena = np.full(plan.smem_bytes // 4, math.nan, np.float32)
        # a landing place of an argument's own 16-bit type is kept beside the arena, which holds float32
        self.buffers = {
            b.name: arena[b.offset // 4 : b.offset // 4 + math.prod(b.shape)].reshape(b.shape)
            if b.dtype in ("f32", "i32") else np.full(b.shape, math.nan, np.float32) for b in plan.buffers
        }  # fmt: skip

    @property
    def rank(self) -> int:
        return self.coordinates["rank"]

    @property
    def peers(self) -> list[_Cta]:
        """All ranks of the cluster, this one included."""
        ranks = self.launch.plan.mesh.ranks
        return self.launch.ctas[self.number - self.rank :][:ranks]

    def at(self, offset: Affine) -> int:
        return offset.at(self.coordinates)

    def flat(self, name: str) -> Array:
        return self.buffers[name].reshape(-1)

    def rows(self, share: Any) -> int:
        first, last = share.bounds(self.number)
        return int(last - first)

    def value(self, expr: Expr, n: int) -> Array:
        """`n` elements of an expression."""
        i = np.arange(n)
        i = i // expr.block * expr.stride + i % expr.block if expr.block else i
        if expr.kind == "leaf":
            return _read(self.launch.memory[expr.name], self.at(expr.offset) + i)
        if expr.kind == "smem":
            return _read(self.flat(expr.name), self.at(expr.offset) + i)
        if expr.kind == "total":
            return self.buffers[expr.name][: expr.warps].sum(0)[self.at(expr.offset) + i]
        if expr.kind in ("var", "fetched"):
            return np.broadcast_to(self.variables[expr.name], (n,))
        if expr.kind == "terms":
            return self.combined(expr.name, expr.args[0].name, *expr.terms)[:n]
        return POINTWISE[expr.kind](expr, *(self.value(arg, n) for arg in expr.args))

    def combined(self, outs: str, stats: str, splits: int, heads: int, dim: int) -> Array:
        """Softmax terms of clusters that split tokens, from global memory, as a flat vector."""
        memory = self.launch.memory
        out, _ = _merged(memory[outs].reshape(splits, heads, dim), memory[stats].reshape(splits, heads, 2))
        return (out[..., :dim] / out[..., dim:]).reshape(-1)


def _read(source: Array, index: Array) -> Array:
    assert index.size == 0 or (index.min() >= 0 and index.max() < source.size), "read past an end"
    return source[index].astype(np.float32)


def _merged(outs: Array, stats: Array) -> tuple[Array, Array]:
    """Terms (n, heads, dim) with (m, l) each: the unnormalised output with its sum behind it, (heads, dim + 1), and (m, l)."""
    top = stats[..., 0].max(0)
    keep = np.exp2(stats[..., 0] - top)
    total = (keep * stats[..., 1]).sum(0)
    out = (keep[..., None] * outs).sum(0)
    return np.concatenate([out, total[:, None]], -1).astype(np.float32), np.stack([top, total], -1)


def _gelu(_: Expr, x: Array) -> Array:
    return torch.nn.functional.gelu(torch.from_numpy(np.array(x)), approximate="tanh").numpy()


POINTWISE: dict[str, Callable[..., Array]] = {
    "add": lambda _, a, b: a + b,
    "mul": lambda _, a, b: a * b,
    "silu": lambda _, x: x / (1 + np.exp(-x)),
    "gelu": _gelu,
    "cast": lambda expr, x: torch.from_numpy(np.array(x)).to(TORCH[expr.name]).float().numpy(),
}
P = dict[str, Any]


# ---- products and vectors


def _fragment(cta: _Cta, step: Step, p: P) -> None:
    cta.variables[p["out"]] = cta.value(p["tree"], p["tiles"].cols)


def _gemv(cta: _Cta, step: Step, p: P) -> None:
    plan, tiles = cta.launch.plan, p["tiles"]
    weight = cta.launch.memory[plan.streams[p["stream"]].name]
    run = tiles.run if tiles.share is None else cta.rows(next(share for share in plan.shares if share.name == tiles.share))
    i = np.arange(run)
    row = cta.at(tiles.row0) + (i // tiles.block_rows * tiles.block_stride + i % tiles.block_rows if tiles.block_rows else i)
    matrix = _read(weight, row[:, None] * tiles.ld + cta.at(tiles.col0) + np.arange(tiles.cols))
    part = cta.buffers[p["part"]]
    part[:, p["first"] : p["first"] + run] = 0.0
    part[0, p["first"] : p["first"] + run] = matrix @ cta.variables[p["value"]]


def _mean_square(cta: _Cta, step: Step, p: P) -> None:
    cta.variables[p["out"]] = np.float32((cta.variables[p["value"]] ** 2).sum() / p["cols"])


def _rms(cta: _Cta, step: Step, p: P) -> None:
    cta.variables[p["out"]] = np.float32(1 / math.sqrt(cta.variables[p["mean"]] + p["eps"]))


def _finish(cta: _Cta, step: Step, p: P) -> None:
    cta.flat(p["out"])[: p["rows"]] = cta.value(p["tree"], p["rows"])


def _concat(cta: _Cta, step: Step, p: P) -> None:
    for tree, first, n in p["parts"]:
        cta.flat(p["out"])[first : first + n] = cta.value(tree, n)


def _slice(cta: _Cta, step: Step, p: P) -> None:
    n = cta.rows(p["share"])
    cta.flat(p["out"])[:n] = cta.value(p["tree"], n)


def _fetch(cta: _Cta, step: Step, p: P) -> None:
    cta.variables[p["out"]] = _read(cta.launch.memory[p["workspace"]], cta.at(p["offset"]) + np.arange(p["n"]))


def _keep(cta: _Cta, step: Step, p: P) -> None:
    cta.flat(p["out"])[: p["n"]] = cta.variables[p["value"]]


def _index(cta: _Cta, step: Step, p: P) -> None:
    given = int(cta.launch.memory[p["token"]][cta.at(p["at"])])
    cta.coordinates[p["out"]] = min(max(given, 0), p["rows"] - 1)


# ---- stores


def _write(cta: _Cta, name: str, index: Array, value: Array) -> None:
    memory = cta.launch.memory[name]
    assert index.size == 0 or (index.min() >= 0 and index.max() < memory.size), "written past an end"
    memory[index] = value


def _store_vector(cta: _Cta, step: Step, p: P) -> None:
    if (p["alone"] and cta.rank) or (p["everywhere"] and cta.coordinates["cluster"]):
        return
    i = np.arange(p["n"])
    index = i // p["block"] * p["stride"] + i % p["block"] if p["block"] else i
    _write(cta, p["dst"], cta.at(p["offset"]) + index, cta.value(p["tree"], p["n"]))


def _store_fragment(cta: _Cta, step: Step, p: P) -> None:
    if not (p["alone"] and cta.rank):
        n = p["tiles"].cols
        _write(cta, p["dst"], cta.at(p["offset"]) + np.arange(n), cta.value(p["tree"], n))


def _store_rows(cta: _Cta, step: Step, p: P) -> None:
    n = cta.rows(p["share"])
    rows = p["share"].bounds(cta.number)[0] + np.arange(n)
    _write(cta, p["dst"], rows, cta.value(p["tree"], n))
    _clear(cta, step, p)


def _clear(cta: _Cta, step: Step, p: P) -> None:
    rows = np.arange(*p["share"].bounds(cta.number))
    for name in p["clears"]:
        _write(cta, name, rows, np.zeros(rows.size, np.float32))


def _atomic_add(cta: _Cta, step: Step, p: P) -> None:
    if p["alone"] and cta.rank:
        return
    rows = cta.at(p["offset"]) + np.arange(p["rows"])
    _write(cta, p["workspace"], rows, cta.launch.memory[p["workspace"]][rows] + cta.value(p["tree"], p["rows"]))


# ---- exchanges


def _gather_push(cta: _Cta, step: Step, p: P) -> None:
    source, block = cta.flat(p["source"])[: p["n"]].copy(), p["block"]
    for peer in cta.peers:
        whole = peer.flat(p["dst"])[: p["n"] * len(cta.peers)].reshape(-1, len(cta.peers), block)
        whole[:, cta.rank] = source.reshape(-1, block)


def _reduce_push(cta: _Cta, step: Step, p: P) -> None:
    for peer in cta.peers:
        peer.buffers[p["box"] if "box" in p else p["dst"]][cta.rank] = cta.flat(p["source"])[: p["n"]]


def _scatter_push(cta: _Cta, step: Step, p: P) -> None:
    ranks, block = len(cta.peers), p["block"]
    slices = cta.flat(p["source"])[: p["n"] * ranks].reshape(-1, ranks, block)
    for peer in cta.peers:
        peer.buffers[p["dst"]][cta.rank] = slices[:, peer.rank].reshape(-1)


def _lse_push(cta: _Cta, step: Step, p: P) -> None:
    for peer in cta.peers:
        peer.buffers[p["box"]][cta.rank] = cta.buffers[p["stats"]]


def _scalar_push(cta: _Cta, step: Step, p: P) -> None:
    for peer in cta.peers:
        peer.buffers[p["box"]][cta.rank] = cta.variables[p["value"]]


def _scalar_sum(cta: _Cta, step: Step, p: P) -> None:
    cta.variables[p["out"]] = cta.buffers[p["box"]].sum()


def _reduce_sum(cta: _Cta, step: Step, p: P) -> None:
    cta.flat(p["out"])[: p["n"]] = cta.buffers[p["box"]].sum(0)[: p["n"]]


def _lse_terms(cta: _Cta, p: P) -> tuple[Array, Array]:
    box, stats = cta.buffers[p["box"]], cta.buffers[p["stats"]]
    if p.get("own"):
        box, stats = box[None], stats[None]
    return _merged(box.reshape(len(box), p["heads"], p["block"]), stats)


def _lse_combine(cta: _Cta, step: Step, p: P) -> None:
    out, _ = _lse_terms(cta, p)
    cta.flat(p["out"])[:] = (out[:, :-1] / out[:, -1:]).reshape(-1)


def _lse_merge(cta: _Cta, step: Step, p: P) -> None:
    out, stats = _lse_terms(cta, p)
    cta.flat(p["out"])[:] = out[:, :-1].reshape(-1)
    cta.buffers[p["out_stats"]][:] = stats


def _store_terms(cta: _Cta, step: Step, p: P) -> None:
    heads, block, dim = p["heads"], p["block"], p["dim"]
    head = cta.coordinates["split"] * p["all_heads"] + cta.at(p["head0"]) + np.arange(heads)
    index = head[:, None] * dim + cta.rank * block + np.arange(block)
    _write(cta, p["outs"], index.reshape(-1), cta.flat(p["source"])[: heads * block])
    if cta.rank == 0:
        _write(cta, p["stats"], (head[:, None] * 2 + np.arange(2)).reshape(-1), cta.flat(p["source_stats"])[: 2 * heads])


def _terms_push(cta: _Cta, step: Step, p: P) -> None:
    mine = slice(cta.rank * p["n"], (cta.rank + 1) * p["n"])
    whole = cta.combined(p["outs"], p["stats"], p["splits"], p["heads"], p["dim"])
    for peer in cta.peers:
        peer.flat(p["dst"])[mine] = whole[mine]


def _multicast(cta: _Cta, step: Step, p: P) -> None:
    cta.flat(p["dst"])[:] = cta.launch.memory[p["arg"]]


# ---- indices of greatest values


def _argmax(cta: _Cta, step: Step, p: P) -> None:
    n = p["n"] if p["share"] is None else cta.rows(p["share"])
    found = cta.value(p["tree"], n)
    best = (float(found.max()), int(found.argmax()) + cta.at(p["first"])) if n else NO_PAIR
    cta.variables |= dict(zip(p["out"], best))


def _publish(cta: _Cta, step: Step, p: P) -> None:
    index = 2 * cta.number + np.arange(2)
    _write(cta, p["workspace"], index, np.array([cta.variables[p["key"]], cta.variables[p["index"]]], np.float32))


def _store_index(cta: _Cta, step: Step, p: P) -> None:
    pairs = cta.launch.memory[p["pairs"]].reshape(-1, 2)
    cta.launch.memory[p["dst"]][0] = min((-key, index) for key, index in pairs.tolist())[1]


# ---- attention


def _length(cta: _Cta, step: Step, p: P) -> None:
    cta.variables[p["out"]] = min(max(int(cta.launch.memory[p["length"]][0]), 0), _capacity(cta, p["cache"]))


def _capacity(cta: _Cta, cache: str) -> int:
    arg = next(arg for arg in cta.launch.plan.args if arg.name == f"{cache}_k")
    layout = next(s.params["layout"] for s in cta.launch.plan.steps if s.op == "length" and s.params["cache"] == cache)
    dim = arg.shape[2 if layout == "bhtd" else 1]
    return cta.launch.sizes[dim] if isinstance(dim, str) else dim


def _angles(cta: _Cta, step: Step, p: P) -> None:
    half = p["half"]
    rows = cta.launch.memory[p["cos"]].size // half
    at = min(max(int(cta.launch.memory[p["pos"]][0]), 0), rows - 1)
    for name, table in zip(p["out"], (p["cos"], p["sin"])):
        cta.variables[name] = cta.launch.memory[table][at * half : (at + 1) * half]


def _rope(cta: _Cta, step: Step, p: P) -> None:
    x, half = cta.flat(p["x"])[: p["heads"] * p["dim"]].reshape(p["heads"], p["dim"]), p["half"]
    lo, hi = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if p["interleaved"] else (slice(0, half), slice(half, 2 * half))
    cos, sin, a, b = cta.variables[p["cos"]], cta.variables[p["sin"]], x[:, lo].copy(), x[:, hi].copy()
    x[:, lo], x[:, hi] = a * cos - b * sin, b * cos + a * sin


def _tokens(cta: _Cta, cache: Any, head: int, tokens: Array) -> Array:
    """The flat index of each token's row of one of the cluster's heads."""
    head, room = cta.at(cache.base) + head, _capacity(cta, cache.name)
    row = head * room + tokens if cache.layout == "bhtd" else tokens * cache.all_heads + head
    return (row[:, None] * cache.dim + np.arange(cache.dim)).astype(int)


def _append(cta: _Cta, step: Step, p: P) -> None:
    cache, at = p["cache"], int(cta.launch.memory[p["length"]][0])
    if cta.rank or cta.coordinates["cluster"] % p["repeat"] or not 0 <= at < _capacity(cta, cache.name):
        return
    for kv in "kv":
        for head in range(cache.heads):
            index = _tokens(cta, cache, head, np.array([at]))[0]
            _write(cta, f"{cache.name}_{kv}", index, _new_token(cta, p, kv, head))


def _new_token(cta: _Cta, p: P, kv: str, head: int) -> Array:
    """The appended token's keys or values of one of the cluster's heads, rounded as the cache holds them."""
    cache = p["cache"]
    dtype = next(arg.dtype for arg in cta.launch.plan.args if arg.name == f"{cache.name}_{kv}")
    token = cta.flat(p[kv])[head * cache.dim : (head + 1) * cache.dim]
    return torch.from_numpy(token.copy()).to(TORCH[dtype]).float().numpy()


def _decode(cta: _Cta, step: Step, p: P) -> None:
    """All of a CTA's tokens as the term of its first warps; the other warps have none."""
    plan, cache, group, dim = cta.launch.plan, p["cache"], p["group"], p["dim"]
    ranks = plan.mesh.ranks if p["sharded"] else 1
    holder, holders = (cta.rank if p["sharded"] else 0) + cta.coordinates["split"] * ranks * (p["splits"] > 1), ranks * p["splits"]
    tokens = np.arange(cta.variables[p["tokens"]])
    tokens = tokens[tokens // p["tokens_per_tile"] % holders == holder]
    index, head = _tokens(cta, cache, p["head"], tokens), p["head"]
    keys, values = (_read(cta.launch.memory[f"{cache.name}_{kv}"], index) for kv in "kv")
    if holder == holders - 1:
        keys, values = (np.concatenate([old, _new_token(cta, p, kv, head)[None]]) for old, kv in ((keys, "k"), (values, "v")))
    q = cta.flat(p["q"])[head * group * dim : (head + 1) * group * dim].reshape(group, dim)
    scores = (q @ keys.T) * np.float32(p["scale"])
    top = scores.max(1, initial=LOWEST)
    weights = np.exp2(scores - top[:, None])
    out, stats = cta.buffers[p["part_o"]], cta.buffers[p["part_ml"]]
    out[:], stats[..., 0], stats[..., 1] = 0.0, LOWEST, 0.0
    out[0], stats[0] = weights @ values, np.stack([top, weights.sum(1)], -1)


def _combine_warps(cta: _Cta, step: Step, p: P) -> None:
    out, stats = _merged(cta.buffers[p["part_o"]], cta.buffers[p["part_ml"]])
    head, group = p["head"] * p["group"], p["group"]
    cta.flat(p["out"])[head * p["dim"] : (head + group) * p["dim"]] = out[:, :-1].reshape(-1)
    cta.buffers[p["stats"]][head : head + group] = stats


STEPS: dict[str, Callable[[_Cta, Step, P], None]] = {
    "fragment": _fragment, "fetch_fragment": _fragment, "gemv": _gemv, "mean_square": _mean_square, "rms": _rms, "finish": _finish,
    "concat": _concat, "slice": _slice, "fetch": _fetch, "keep": _keep, "index": _index, "store_vector": _store_vector,
    "store_fragment": _store_fragment, "store_rows": _store_rows, "clear": _clear, "atomic_add": _atomic_add, "gather_push": _gather_push,
    "reduce_push": _reduce_push, "scatter_push": _scatter_push, "lse_push": _lse_push, "scalar_push": _scalar_push,
    "scalar_sum": _scalar_sum, "reduce_sum": _reduce_sum, "lse_combine": _lse_combine, "lse_merge": _lse_merge,
    "store_terms": _store_terms, "terms_push": _terms_push, "multicast": _multicast, "argmax": _argmax, "publish": _publish,
    "store_index": _store_index, "length": _length, "angles": _angles, "rope": _rope, "append": _append, "decode": _decode,
    "combine_warps": _combine_warps,
}  # fmt: skip
NOTHING = ("sync", "wait", "rendezvous", "grid_barrier", "flags")  # steps that order others, or tell the host
