"""What a product may be a product with: stored weights under views, read where they lie, and any bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plans import plan_graph
from random_specs import random_tensors
from simulate import simulate

import cfdsl as cf
from cfdsl.compiler.affine import Affine
from cfdsl.compiler.check import check
from cfdsl.compiler.lowering.weights import divided
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.plan import KernelPlan
from cfdsl.dsl.interpret import interpret
from cfdsl.errors import NotLowered, RowUnsupported

ROWS, COLS, UNITS = 320, 576, 4
Make = Callable[[Any], cf.Value]


def product(weight: Make, bias: Make | None = None, shard: str | None = "out", inside: bool = False) -> cf.Fusion:
    """A fusion of one product; what makes its weight and bias is given the axis of the clusters block, or None outside of one."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, COLS))
        if not inside:
            return cf.outputs(y=cf.linear(x, weight(None), bias and bias(None), shard=shard))
        with cf.clusters(over=UNITS) as axis:
            y = cf.linear(x, weight(axis), bias and bias(axis), shard=shard)
        return cf.outputs(y=y)

    return spec


def refused(spec: cf.Fusion) -> NotLowered:
    with pytest.raises(NotLowered) as caught:
        plan_graph(spec.trace("llama-2-7b"), 4, 2)
    assert caught.value.src is not None
    assert caught.value.src.code.strip().startswith(("return cf.outputs(y=cf.linear(", "y = cf.linear("))
    return caught.value


def runs(spec: cf.Fusion, clusters: int = 4, ranks: int = 2) -> KernelPlan:
    """The checked plan, which computes what the oracle does."""
    graph = spec.trace("llama-2-7b")
    plan = plan_graph(graph, clusters, ranks)
    check(plan, H100_SXM)
    tensors = random_tensors(graph)
    want = interpret(cf.place(graph, cf.Mesh(clusters, ranks)), tensors, precision="f32", round_outputs=False).outputs["y"]
    torch.testing.assert_close(simulate(plan, tensors)["y"], want, rtol=1e-3, atol=1e-3)
    return plan


def w(name: str = "w", rows: int = ROWS, cols: int = COLS, dtype: str | None = None) -> cf.Value:
    return cf.weight(name, (rows, cols), dtype)


COMPUTED: dict[str, Make] = {
    "silu": lambda _: cf.silu(w()),
    "gelu": lambda _: cf.gelu(w()),
    "add": lambda _: w() + w("w2"),
    "mul": lambda _: w() * cf.weight("s", (1, COLS)),
    "cast": lambda _: cf.cast(w(dtype="f32"), "bf16"),
    "concat": lambda _: cf.concat([w("a", 160), w("b", 160)], dim=0),
    "rms_norm": lambda _: cf.rms_norm(w(), cf.weight("n", (COLS,)), 1e-5),
}


@pytest.mark.parametrize("op", COMPUTED)
def test_a_weight_that_is_computed_is_refused(op: str) -> None:
    """It lies nowhere: what would be streamed is an argument of what computes it."""
    found = refused(product(COMPUTED[op]))
    assert found.message == f"linear cannot be compiled: its weight is what {op} computes."
    assert found.remedy == "declare it with cf.weight, as the product needs it: its rows are streamed as they lie in memory."


def test_a_view_of_what_is_computed_is_refused_too() -> None:
    spec = product(lambda _: cf.reshape(cf.silu(w("w", 1, ROWS * COLS)), (ROWS, COLS)))
    assert "its weight is what silu computes" in refused(spec).message


def test_an_input_is_no_weight() -> None:
    """It may be the work of the kernel ahead, which a load stream does not wait for."""
    assert refused(product(lambda _: cf.input("given", (ROWS, COLS)))).message == (
        "linear cannot be compiled: its weight is the input 'given'."
    )


WHERE: dict[str, tuple[Make, Affine]] = {  # (weight, first row)
    "as it is": (lambda _: w(), Affine.of(rank=160)),
    "of half as many rows": (lambda _: cf.reshape(w("w", 160, 2 * COLS), (ROWS, COLS)), Affine.of(rank=160)),
    "of twice as many rows": (lambda _: cf.reshape(w("w", 640, 288), (ROWS, COLS)), Affine.of(rank=160)),
    "a vector": (lambda _: cf.reshape(cf.weight("w", (ROWS * COLS,)), (ROWS, COLS)), Affine.of(rank=160)),
    "a cluster's rows": (lambda axis: w()[axis], Affine.of(cluster=80, rank=40)),
    "a cluster's heads": (lambda axis: w().split_heads(4)[axis], Affine.of(cluster=80, rank=40)),
    "heads of a cluster's rows": (lambda axis: w()[axis].split_heads(4), Affine.of(cluster=80, rank=40)),
}  # fmt: skip


@pytest.mark.parametrize("name", WHERE)
def test_a_weight_is_read_where_it_lies(name: str) -> None:
    weight, first = WHERE[name]
    plan = runs(product(weight, inside=True))
    tiles = next(step.params["tiles"] for step in plan.steps if step.op == "gemv")
    assert (tiles.row0, tiles.col0, tiles.ld) == (first, Affine(), COLS)


def test_a_reshaped_weight_is_read_whole_by_all_ctas() -> None:
    """Columns are those of the view, and so is the granule of the partition."""
    plan = runs(product(lambda _: cf.reshape(w("w", 640, 288), (ROWS, COLS))))
    assert [(s.rows, s.cols, s.ld) for s in plan.streams] == [(8, COLS, COLS)]


def test_fewer_slices_than_clusters() -> None:
    """Neighbours hold the same one, with or without a cache in the spec."""
    plan = runs(product(lambda axis: w("w", 64).split_heads(4)[axis], inside=True), clusters=8)
    assert next(s.params["tiles"].row0 for s in plan.steps if s.op == "gemv") == Affine.of(slice4=16, rank=8)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (lambda axis: w().split_heads(4)[:, axis], "its slice of w is neither a run of rows nor one of columns"),
        (lambda _: cf.split(cf.weight("w", (1, 600)), (24, 576), dim=1)[1], "its slice of w is neither a run of rows nor one of columns"),
    ],
)
def test_slices_that_are_no_runs(weight: Make, says: str) -> None:
    assert says in refused(product(weight, shard=None, inside=True)).message


def test_rows_that_are_not_whole_chunks() -> None:
    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.linear(cf.input("x", (batch, 100)), cf.weight("w", (64, 100)), shard="out"))

    with pytest.raises(RowUnsupported, match="rows of 100 elements, as those of w, are not supported"):
        plan_graph(spec.trace("llama-2-7b"), 4, 2)


def test_heads_of_a_weight_over_all_ctas_are_refused() -> None:
    """A partition is over the rows of one head there, which would leave the other heads out."""
    assert "rows of a weight by heads are spread over all CTAs" in refused(product(lambda _: w().split_heads(5))).message


BIASES: dict[str, tuple[Make, bool]] = {
    "plain": (lambda _: cf.weight("b", (ROWS,)), False),
    "of float32": (lambda _: cf.weight("b", (ROWS,), "f32"), False),
    "an input": (lambda _: cf.input("b", (ROWS,)), False),
    "a sum": (lambda _: cf.weight("b", (ROWS,)) + cf.weight("b2", (ROWS,)), False),
    "silu": (lambda _: cf.silu(cf.weight("b", (ROWS,))), False),
    "scaled": (lambda _: cf.weight("b", (ROWS,)) * cf.weight("s", (ROWS,)), False),
    "a view": (lambda _: cf.reshape(cf.weight("b", (10, 32)), (ROWS,)), False),
    "whole": (lambda _: cf.silu(cf.weight("b", (ROWS,))), True),
    "a cluster's": (lambda axis: cf.weight("b", (ROWS,))[axis], True),
    "a sum of slices": (lambda axis: cf.weight("b", (ROWS,))[axis] + cf.weight("b2", (ROWS,))[axis], True),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_is_whatever_the_spec_says(name: str) -> None:
    bias, inside = BIASES[name]
    plan = runs(product(lambda axis: w() if axis is None else w()[axis], bias, inside=inside))
    read = {leaf.name for step in plan.steps if "tree" in step.params for leaf in step.params["tree"].walk() if leaf.kind == "leaf"}
    assert read >= {arg.name for arg in plan.args if arg.role in ("input", "weight")} - {"w"}


def test_a_bias_by_heads_of_a_ranks_rows() -> None:
    """10 heads of 32 rows, 4 units of them would not be whole: 2 clusters of 5 heads, of which each of 2 ranks has 16 rows."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, COLS))
        with cf.clusters(over=2) as axis:
            bias = cf.weight("b", (ROWS,)).split_heads(10)[axis]
            y = cf.linear(x, w().split_heads(10)[axis], bias + cf.weight("b2", (10, 32)), shard="out")
        return cf.outputs(y=y)

    runs(spec, clusters=2)


def test_split_k_of_an_operand_that_is_cut_over_ranks_already() -> None:
    """Its slice is the rank's: it does not start at the rank's columns a second time."""

    @cf.fusion
    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, COLS))
        with cf.clusters(over=UNITS) as axis:
            y = cf.cluster_reduce(cf.linear(cf.shard(x, 1), w()[axis], shard="in"))
        return cf.outputs(y=y)

    runs(spec, ranks=4)


def test_offsets_as_rows_and_columns() -> None:
    assert divided(Affine.of(3 * 64 + 8, cluster=128, rank=16), 64) == (Affine.of(3, cluster=2), Affine.of(8, rank=16))

