"""The oracle against the fusion's plain PyTorch reference, in seconds: on the model itself where it is small, else on a scaled-down one.

Scaled down means fewer heads and a smaller hidden size, and fewer clusters in proportion; head_dim, query heads per KV head, ranks of a
cluster and the rotary settings stay, so every exchange of the real launch takes place, between as many ranks.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd, isqrt, prod
from typing import TYPE_CHECKING, Any

from cfdsl.cli.companions import blamed_on_examples, example_tensors, lacking, reference_tensors
from cfdsl.cli.request import Request
from cfdsl.dsl.graph import Graph
from cfdsl.dsl.placement import Mesh

if TYPE_CHECKING:
    from cfdsl.models import ModelConfig

CHEAP_ELEMENTS = 4_000_000  # of all weights: above this the check is of a scaled-down model
CHEAP_CTAS = 64  # the oracle runs every rank of every cluster in turn
TOKENS = 37  # cached tokens of the check: no multiple of anything
ALLOWED = 1e-9  # both compute in float64: a new token's keys and values round alike, and what differs is the order of sums


def oracle_check(request: Request, mesh: Mesh) -> dict[str, Any] | None:
    """Run the oracle on `mesh` (or on its scaled-down likeness) and compare outputs and caches; None where there is no reference."""
    fusion = request.fusion
    if lacking(fusion):
        return None
    from cfdsl.dsl.interpret import interpret
    from cfdsl.runtime.measure import relative_error

    graph = fusion.trace(request.model, request.batch, request.dtype, **request.options)
    model, small = scaled_down(request.model, graph, mesh)
    if model is not request.model:
        graph = fusion.trace(model, request.batch, request.dtype, **request.options)
    tokens = min(request.kv_len, TOKENS)
    tensors = example_tensors(fusion, model, request.batch, request.dtype, length=tokens, capacity=tokens + 3, **request.options)
    with blamed_on_examples(fusion):
        got = interpret(graph, tensors, small, precision="f64", round_outputs=False)
    want = reference_tensors(fusion, got.outputs, model, tensors, "f64", **request.options)
    errors = {name: relative_error(value, want[name]) for name, value in {**got.outputs, **got.caches}.items() if name in want}
    allowed = {name: ALLOWED if name in got.outputs else cache_allowed(request.dtype) for name in errors}
    return {
        "ok": all(error <= allowed[name] for name, error in errors.items()),
        "relative_error": max(errors[name] for name in got.outputs),
        "tolerance": ALLOWED,
        "errors": errors,
        "dtype": "float64, outputs not rounded, like the reference",
        "reduced": model is not request.model,
        "model": {name: getattr(model, name) for name in ("hidden", "heads", "kv_heads", "head_dim")},
        "mesh": {"clusters": small.clusters, "ranks": small.ranks, "splits": small.splits},
        "kv_len": tokens,
        "note": note(request.model, model, small, tokens if graph.leaves("kv_cache") else None),
    }


def cache_allowed(dtype: str) -> float:
    """Caches are rounded to 16 bits on both sides; a value that lies on an edge may round the other way."""
    return 2**-8 if dtype == "bf16" else 2**-11


def scaled_down(model: ModelConfig, graph: Graph, mesh: Mesh) -> tuple[ModelConfig, Mesh]:
    """The model and mesh to check on: as they are where that is cheap, else heads, hidden size and clusters cut in proportion."""
    weights = sum(prod(dim for dim in leaf.type.shape if isinstance(dim, int)) for leaf in graph.leaves("weight"))
    if weights <= CHEAP_ELEMENTS and mesh.ctas <= CHEAP_CTAS:
        return model, mesh
    if graph.over != model.kv_heads:
        return _narrower(model, weights), mesh  # clusters do not stand for heads: their number stays, and rows are dealt to all of them
    ways = smallest_share(model.kv_heads, mesh.groups)
    if ways == 1:
        return model, mesh
    kv_heads, clusters = model.kv_heads // ways, mesh.clusters // ways
    hidden = max(64, -(-model.hidden // ways // 64) * 64)
    small = replace(model, name=f"{model.name} scaled down", hidden=hidden, heads=kv_heads * model.group, kv_heads=kv_heads)
    return small, Mesh(clusters, mesh.ranks, mesh.splits)


def _narrower(model: ModelConfig, weights: int) -> ModelConfig:
    """The model with every size of a weight cut alike, if there are too many of them: but for what it divides by, each is as it was."""
    if weights <= CHEAP_ELEMENTS:
        return model
    ways = isqrt(-(-weights // CHEAP_ELEMENTS) - 1) + 1
    hidden = max(64, -(-model.hidden // ways // 64) * 64)
    cut = {name: -(-getattr(model, name) // ways // 8) * 8 for name in ("intermediate", "vocab")}
    return replace(model, name=f"{model.name} scaled down", hidden=hidden, **cut)


def smallest_share(kv_heads: int, clusters: int) -> int:
    """By how much heads and clusters can both be divided while at least two clusters, and two heads where there are two, remain."""
    common = gcd(kv_heads, clusters)
    for ways in range(common, 0, -1):
        if common % ways == 0 and clusters // ways >= min(2, clusters) and kv_heads // ways >= min(2, kv_heads):
            return ways
    return 1


def note(model: ModelConfig, checked: ModelConfig, mesh: Mesh, tokens: int | None) -> str:
    """What was checked, in words; `tokens` in the cache, None where there is none."""
    cached = "" if tokens is None else f", {tokens} cached tokens"
    where = f"on {mesh}{cached}, every rank of every cluster in turn on the CPU"
    if checked is model:
        return f"Checked at full size {where}."
    if checked.kv_heads == model.kv_heads:
        sizes = ", ".join(f"{name} {getattr(checked, name)} for {getattr(model, name)}" for name in ("hidden", "intermediate", "vocab"))
        return f"Checked on a scaled-down model, to take seconds: {sizes}; CTAs as in the real one; {where}."
    heads = f"{checked.heads} query and {checked.kv_heads} KV heads for {model.heads} and {model.kv_heads}"
    sizes = f"hidden {checked.hidden} for {model.hidden}, {heads}"
    return f"Checked on a scaled-down model, to take seconds: {sizes}; head_dim, grouping and ranks as in the real one; {where}."
