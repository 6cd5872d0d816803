"""Graphs to weigh, and their candidates by shape."""

from __future__ import annotations

from typing import Any

from cfdsl import Mesh, place
from cfdsl.compiler.cost import choice as cost
from cfdsl.compiler.cost import choose
from cfdsl.compiler.cost.traffic import Load, traffic
from cfdsl.compiler.parts import H100_SXM
from fusions.attention_block import attention_block

LLAMA = attention_block.trace("llama-2-7b", qkv="rows")
GROUPED = attention_block.trace("llama-3.1-8b", qkv="rows")
SPLIT = attention_block.trace("llama-2-7b", qkv="grid")
SPLIT_GROUPED = attention_block.trace("llama-3.1-8b", qkv="grid")


def table(graph: Any = LLAMA, part: Any = H100_SXM, **overrides: Any) -> dict[tuple[int, int, int], cost.Candidate]:
    """Candidates by (clusters, cluster size, CTAs per SM)."""
    rows = choose(graph, part, overrides).rows
    return {(row.config.clusters, row.config.cluster_size, row.config.ctas_per_sm): row for row in rows}


def walk(graph: Any, clusters: int, ranks: int, tokens: int = 4096) -> dict[str, Load]:
    """What a launch loads, by name."""
    found = traffic(place(graph, Mesh(clusters, ranks)), {"tokens": tokens})
    return {load.name: load for load in found.loads}
