"""Rows that are spread over all CTAs of a launch: who may take them, and what they meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plans import plan_graph

import cfdsl as cf
from cfdsl.compiler.check import check
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.plan import KernelPlan
from cfdsl.errors import NotLowered

Use = Callable[[cf.Value, cf.Value], cf.Value]  # (spread rows (1, 640), an input of that shape)

UNEVEN = "an argument is spread over all CTAs, in shares that may be uneven."
REFUSED: dict[str, tuple[Use, str]] = {
    "cluster_gather": (lambda y, x: cf.cluster_gather(y), f"cluster_gather cannot be compiled: {UNEVEN}"),
    "split_heads": (lambda y, x: cf.split_heads(y, 16), f"split_heads cannot be compiled: {UNEVEN}"),
    "reshape": (lambda y, x: cf.reshape(y, (1, 640, 1)), f"reshape cannot be compiled: {UNEVEN}"),
    "several rows": (
        lambda y, x: y + cf.input("two", (2, 640)),
        "add cannot be compiled: an operand of shape [2, 640] placed [R, R] meets rows spread over all CTAs.",
    ),
}


def plan_of(use: Use) -> KernelPlan:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        y = cf.linear(cf.input("x", (batch, 64)), cf.weight("w", (640, 64)), shard="out")
        return cf.outputs(y=use(y, cf.input("z", (batch, 640))))

    return plan_graph(spec.trace("llama-2-7b"), 8, 2)


@pytest.mark.parametrize("name", REFUSED)
def test_only_elementwise_ops_and_the_grid_take_them(name: str) -> None:
    """Anything else would take a share for an even slice."""
    use, says = REFUSED[name]
    with pytest.raises(NotLowered) as caught:
        plan_of(use)
    assert caught.value.message == says
    assert caught.value.src is not None


@pytest.mark.parametrize("use", [lambda y, x: cf.silu(y) * x, lambda y, x: cf.cast(y, "f32"), lambda y, x: cf.grid_gather(y)])
def test_what_takes_them(use: Use) -> None:
    plan = plan_of(use)
    check(plan, H100_SXM)
    assert [share.rows for share in plan.shares] == [640]


def test_a_clusters_rows_are_no_share() -> None:
    """Placed alike, [S(1), S(1)], and of the same length: a cluster's slice, cut over its ranks, and rows over all CTAs do not meet."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, 64)), cf.weight("w", (640, 64))
        everywhere = cf.linear(x, w, shard="out")
        with cf.clusters(over=4) as axis:
            mine = cf.linear(x, cf.weight("v", (640, 64))[axis], shard="out")
        return cf.outputs(y=everywhere + mine)

    placed = cf.place(spec.trace("llama-2-7b"), cf.Mesh(4, 2))
    assert {str(placed.of(node)) for node in placed.graph.leaves("linear")} == {"[S(1), S(1)]"}
    with pytest.raises(NotLowered, match="meets rows spread over all CTAs"):
        plan_graph(placed.graph, 4, 2)
