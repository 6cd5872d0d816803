"""Plans of specs written in a test, checked; and what a refused one says."""

from __future__ import annotations

from typing import Any

import pytest
from plans import plan_graph, step_of

import cfdsl as cf
from cfdsl.compiler.check import check
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.plan import KernelPlan
from cfdsl.errors import CfdslError

LLAMA, GROUPED = "llama-2-7b", "llama-3.1-8b"


def lower(spec: Any, clusters: int = 32, cluster_size: int = 4, model: str = LLAMA, batch: int = 1, **fields: Any) -> KernelPlan:
    """The checked plan of a spec written in a test."""
    plan = plan_graph(cf.fusion(spec).trace(model, batch), clusters, cluster_size, **fields)
    check(plan, H100_SXM)
    return plan


def refused(error: type[CfdslError], spec: Any, **given: Any) -> str:
    with pytest.raises(error) as caught:
        lower(spec, **given)
    assert caught.value.src is not None
    assert caught.value.src.file == spec.__code__.co_filename
    return caught.value.message


def step_text(plan: KernelPlan, op: str) -> str:
    return plan.steps[step_of(plan, op)].text
