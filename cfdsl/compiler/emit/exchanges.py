"""Emitters of exchanges: pushes, waits, and what combines the terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cfdsl.compiler.emit.context import Context, Lines
from cfdsl.compiler.names import identifier as name


def _rendezvous(c: Context, p: dict[str, Any]) -> Lines:
    return ["cute.arch.cluster_wait()"]


def _wait(c: Context, p: dict[str, Any]) -> Lines:
    return [f"exchange.wait({p['mbar']})"]


def _multicast(c: Context, p: dict[str, Any]) -> Lines:
    return [f"multicast.gather({name(p['arg'])}, {p['dst']}, {p['n']}, {p['mbar']}, rank, RANKS)"]


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


def _lse_merge(c: Context, p: dict[str, Any]) -> Lines:
    args = f"{p['box']}, {p['stats']}, {p['out']}, {p['out_stats']}, {p['heads']}, {p['block']}"
    return [f"cluster_reduce.merge_lse({args}, RANKS, THREADS)"]


def _store_terms(c: Context, p: dict[str, Any]) -> Lines:
    shape = f"{p['heads']}, {p['block']}, {p['dim']}, {p['all_heads']}"
    args = f"{p['outs']}, {p['stats']}, {p['source']}, {p['source_stats']}, {shape}"
    return [f"terms.store({args}, split, {p['head0']}, rank, THREADS)"]


def _terms_push(c: Context, p: dict[str, Any]) -> Lines:
    args = f"{p['outs']}, {p['stats']}, {p['splits']}, {p['heads']}, {p['dim']}, {p['dst']}, {p['mbar']}"
    return [f"terms.push({args}, rank, RANKS, THREADS)"]


def _publish(c: Context, p: dict[str, Any]) -> Lines:
    return [f"argmax.publish({p['workspace']}, {p['key']}, {p['index']})"]


def _store_index(c: Context, p: dict[str, Any]) -> Lines:
    return [f"argmax.store_best({name(p['dst'])}, {p['pairs']}, CTAS)"]


def _grid_barrier(c: Context, p: dict[str, Any]) -> Lines:
    lines = ["phase = grid.barrier(ws_sync, phase, CTAS, WARPS)"]
    return [*lines, f"rings.passed(smem, RING, {p['number']})"] if c.plan.ring and c.plan.ring.early else lines


def _fetch(c: Context, p: dict[str, Any]) -> Lines:
    return [f"{p['out']} = grid.fetch({p['workspace']}, {p['offset']}, {p['n']}, THREADS)"]


def _keep(c: Context, p: dict[str, Any]) -> Lines:
    return [f"grid.keep({p['out']}, {p['value']}, {p['n']}, THREADS)"]


EXCHANGES: dict[str, Callable[[Context, dict[str, Any]], Lines]] = {
    "rendezvous": _rendezvous, "wait": _wait, "multicast": _multicast, "gather_push": _gather_push, "reduce_push": _reduce_push,
    "scatter_push": _scatter_push, "lse_push": _lse_push, "scalar_push": _scalar_push, "scalar_sum": _scalar_sum,
    "reduce_sum": _reduce_sum, "lse_combine": _lse_combine, "lse_merge": _lse_merge, "store_terms": _store_terms, "terms_push": _terms_push,
    "publish": _publish, "store_index": _store_index, "grid_barrier": _grid_barrier, "fetch": _fetch, "keep": _keep,
}  # fmt: skip
