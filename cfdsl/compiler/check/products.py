"""Proofs about products: tiles lie in the weight that they are said to come from, and meet the vector that they are multiplied with."""

from __future__ import annotations

from collections.abc import Iterator

from cfdsl.compiler.accesses import rows_of
from cfdsl.compiler.check.memory import corners
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
    """A product's columns are those of the fragment it takes, spread alike; together the CTAs' columns are the whole vector, once."""
    made: dict[str, Step] = {step.params["out"]: step for step in plan.steps if step.op == "fragment"}
    for step in plan.steps:
        if step.op != "gemv":
            continue
        tiles: RowTiles = step.params["tiles"]
        name = plan.streams[step.params["stream"]].name
        vector = made.get(step.params["value"])
        spread = _spread(vector.params["tiles"]) if vector is not None else None
        if spread != _spread(tiles):
            total = f"(columns, pieces, warps to a row) {_spread(tiles)}, of the vector {spread}"
            yield PlanError(what=f"rows of {name} meet a vector that is spread in another way", sum=total, src=step.src)
        starts = sorted({tiles.col0.at(at) for at in plan.everywhere})
        whole = range(starts[0], starts[0] + step.params["length"], tiles.cols)
        if starts != list(whole) or tiles.cols * len(starts) != step.params["length"]:
            total = f"{len(starts)} x {tiles.cols} columns, of {step.params['length']}"
            yield PlanError(what=f"rows of {name} do not meet the whole vector once", sum=total, src=step.src)


def _spread(tiles: RowTiles) -> tuple[int, int, int]:
    return tiles.cols, tiles.pieces, tiles.warps_per_row
