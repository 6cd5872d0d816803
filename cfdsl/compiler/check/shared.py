"""Proofs about vectors in shared memory: what steps write and read element by element stays within them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from cfdsl.compiler.check.memory import corners
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.plan import Buffer, KernelPlan, Step
from cfdsl.errors import CfdslError, PlanError

Found = Iterator[CfdslError]


def shared_vectors(plan: KernelPlan) -> Found:
    """No step writes past the end of the vector that it makes, or reads past the end of one in an expression over elements."""
    buffers, most = {buffer.name: buffer for buffer in plan.buffers}, {share.name: share.most for share in plan.shares}
    for step in plan.steps:
        for name, end in _written(step, most):
            if end > prod(buffers[name].shape):
                yield PlanError(what=f"{name} is written past its end", sum=f"{end} of {prod(buffers[name].shape)}", src=step.src)
        for tree, n in _trees(step, most):
            for expr in tree.walk():
                if expr.kind in ("smem", "total") and (end := _end(plan, expr, n)) > (size := _elements(expr, buffers[expr.name])):
                    yield PlanError(what=f"{expr.name} is read past its end", sum=f"{end} of {size} in {step.op}", src=step.src)


def _written(step: Step, most: dict[str, int]) -> Iterator[tuple[str, int]]:
    """(vector, one past the last element) of what a step writes element by element."""
    p = step.params
    if step.op == "finish":
        yield p["out"], p["rows"]
    if step.op in ("keep", "reduce_sum"):
        yield p["out"], p["n"]
    if step.op == "slice":
        yield p["out"], most[p["share"].name]
    for _, first, size in p.get("parts", ()):
        yield p["out"], first + size


def _trees(step: Step, most: dict[str, int]) -> Iterator[tuple[Expr, int]]:
    """The expressions that a step evaluates element by element, with how many elements; fragments are another matter."""
    p = step.params
    yield from ((tree, size) for tree, _, size in p.get("parts", ()))
    if "tree" in p and "tiles" not in p:
        yield p["tree"], most[p["share"].name] if p.get("share") is not None else p.get("rows", p.get("n", 0))


def _end(plan: KernelPlan, expr: Expr, n: int) -> int:
    """One past the last element that is read of a vector when `n` elements of the expression are evaluated."""
    reach = (n - 1) // expr.block * expr.stride + (n - 1) % expr.block + 1 if expr.block and n else n
    return max(expr.offset.at(at) for at in corners(plan)) + reach


def _elements(expr: Expr, buffer: Buffer) -> int:
    """Elements of a vector, or rows of a product."""
    return buffer.shape[-1] if expr.kind == "total" else prod(buffer.shape)
