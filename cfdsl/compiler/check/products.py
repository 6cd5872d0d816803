"""Proofs about products: tiles lie in the weight that they are said to come from, and meet the vector that they are multiplied with."""

from __future__ import annotations

from collections.abc import Iterator

from cfdsl.compiler.accesses import rows_of
from cfdsl.compiler.affine import Affine
from cfdsl.compiler.check.memory import corners
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import COPY_BYTES, RowTiles
from cfdsl.compiler.plan import KernelPlan, Step
from cfdsl.dsl.graph import ITEMSIZE
from cfdsl.errors import CfdslError, PlanError

Found = Iterator[CfdslError]


def addresses(plan: KernelPlan) -> Found:
    """No CTA reads a weight past its end or at an odd place: the first and last row and column of every stream."""
    args = {arg.name: arg for arg in plan.args}
    for step in plan.steps:
        if step.op != "gemv":
            continue
        tiles: RowTiles = step.params["tiles"]
        stream = plan.streams[step.params["stream"]]
        rows = args[stream.name].elements // tiles.ld
        first, last = _rows(plan, tiles)
        cols = [tiles.col0.at(at) for at in corners(plan)]
        if first < 0 or last > rows or min(cols) < 0 or max(cols) + tiles.cols > tiles.ld:
            total = f"rows {first} to {last} of {rows}, columns {min(cols)} to {max(cols) + tiles.cols} of {tiles.ld}"
            yield PlanError(what=f"{stream.name} is read past its end", sum=total, src=step.src)
        odd = next((col for col in cols if col * stream.itemsize % COPY_BYTES), None)
        if odd is not None:
            total = f"column {odd} x {stream.itemsize} B % {COPY_BYTES} = {odd * stream.itemsize % COPY_BYTES}"
            yield PlanError(what=f"tiles of {stream.name} start at an odd place", sum=total, src=step.src)


def _rows(plan: KernelPlan, tiles: RowTiles) -> tuple[int, int]:
    """The first row that any CTA reads, and the one after the last."""
    starts = [tiles.row0.at(at) for at in corners(plan)]
    if tiles.share is not None:
        share = next(share for share in plan.shares if share.name == tiles.share)
        return min(starts), max(starts) + max(rows_of(share, cta) for cta in (0, share.ctas - 1))
    run = tiles.run
    span = (run // tiles.block_rows - 1) * tiles.block_stride + tiles.block_rows if tiles.block_rows else run
    return min(starts), max(starts) + span


def streamed_types(plan: KernelPlan) -> Found:
    """Elements come through the ring as they lie in memory: a stream's are of the size of its tensors'."""
    args = {arg.name: arg for arg in plan.args}
    for stream in plan.streams:
        for name in stream.tensors:
            if (size := ITEMSIZE[args[name].dtype]) != stream.itemsize:
                total = f"{stream.itemsize} B an element, {args[name].dtype} has {size}"
                yield PlanError(what=f"{name} is streamed as another type than it has", sum=total, src=stream.src)


def products(plan: KernelPlan) -> Found:
    """A product's columns are those of the fragment it takes, spread alike; together the CTAs' columns, of all turns, are the whole vector,
    once."""
    made: dict[str, Step] = {step.params["out"]: step for step in plan.steps if step.op == "fragment"}
    for turns in _products(plan):
        first = turns[0]
        name, length = plan.streams[first.params["stream"]].name, first.params["length"]
        vectors = [made.get(step.params["value"]) for step in turns]
        for step, vector in zip(turns, vectors):
            spread = _spread(vector.params["tiles"]) if vector is not None else None
            if spread != _spread(step.params["tiles"]):
                total = f"(columns, pieces, warps to a row) {_spread(step.params['tiles'])}, of the vector {spread}"
                yield PlanError(what=f"rows of {name} meet a vector that is spread in another way", sum=total, src=step.src)
        tiles: RowTiles = first.params["tiles"]
        starts = sorted(start for step in turns for start in {step.params["tiles"].col0.at(at) for at in plan.everywhere})
        if starts != list(range(starts[0], starts[0] + length, tiles.cols)) or tiles.cols * len(starts) != length:
            total = f"{len(starts)} x {tiles.cols} columns, of {length}"
            yield PlanError(what=f"rows of {name} do not meet the whole vector once", sum=total, src=first.src)
        for step, vector in zip(turns, vectors):
            by = step.params["tiles"].col0 + tiles.col0.times(-1)
            if vector is not None and vectors[0] is not None and not _moved(vectors[0].params["tree"], vector.params["tree"], by):
                total = f"columns from {step.params['tiles'].col0}, of the vector {vector.params['tree']}"
                yield PlanError(what=f"rows of {name} meet another part of the vector", sum=total, src=step.src)


def _products(plan: KernelPlan) -> Iterator[list[Step]]:
    """The steps of each product: one for each turn of columns."""
    steps: list[Step] = []
    for step in plan.steps:
        if step.op != "gemv":
            continue
        if step.params["turn"] == 0 and steps:
            yield steps
            steps = []
        steps.append(step)
    if steps:
        yield steps


def _moved(one: Expr, other: Expr, by: Affine) -> bool:
    """Whether `other` is `one` for elements `by` further on. A variable holds the same for all elements, or was fetched for this tree;
    combined softmax terms are all that there are."""
    if {one.kind, other.kind} <= {"var", "fetched"}:
        return True
    if (one.kind, one.name, len(one.args)) != (other.kind, other.name, len(other.args)):
        return False
    if one.kind in ("leaf", "smem", "total") and other.offset != one.offset + by or one.kind == "terms" and by != Affine():
        return False
    return all(_moved(a, b, by) for a, b in zip(one.args, other.args))


def _spread(tiles: RowTiles) -> tuple[int, int, int]:
    return tiles.cols, tiles.pieces, tiles.warps_per_row
