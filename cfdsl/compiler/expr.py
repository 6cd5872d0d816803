"""Elementwise expressions of a plan: small trees that a step evaluates per element, in float32.

A tree is read in one of two ways: over a *fragment* (the registers of `primitives.frag`), or at one index `i` of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cfdsl.compiler.affine import Affine

POINTWISE = ("add", "mul", "silu", "gelu")


@dataclass(frozen=True)
class Expr:
    """One node of a tree.

    leaf    element i of the launch argument `name`, from `offset`; blocks of `block` elements lie `stride` apart (0: no blocks)
    smem    element i of the shared-memory buffer `name`, from `offset`; `dtype` is that of its elements (blocks as for a leaf)
    total   row i, from `offset`, of the product whose warps' terms are in buffer `name`; `warps` of them
    terms   combined softmax terms: workspace `name`, statistics in the `var` of `args`, (splits, heads, dim) in `terms`
    var     the variable `name`: a fragment, or the same scalar for every element
    fetched a fragment that is on its way to the registers `name`, in the type of the argument that it comes from
    add, mul, silu, gelu    of `args`
    cast    the argument, rounded to the 16-bit dtype `name` and back
    """

    kind: str
    name: str = ""
    offset: Affine = Affine()
    args: tuple[Expr, ...] = ()
    block: int = 0
    stride: int = 0
    warps: int = 0
    terms: tuple[int, ...] = ()
    dtype: str = "f32"

    def walk(self) -> Iterator[Expr]:
        yield self
        for arg in self.args:
            yield from arg.walk()

    def buffers(self) -> tuple[str, ...]:
        """The shared-memory buffers that evaluating this reads."""
        return tuple(dict.fromkeys(e.name for e in self.walk() if e.kind in ("smem", "total")))

    def __str__(self) -> str:
        if self.kind in POINTWISE:
            sign = {"add": " + ", "mul": " * "}.get(self.kind)
            inner = [str(arg) for arg in self.args]
            return f"({sign.join(inner)})" if sign else f"{self.kind}({inner[0]})"
        if self.kind == "cast":
            return f"{self.name}({self.args[0]})"
        if self.kind in ("var", "fetched"):
            return self.name
        if self.kind == "terms":
            return f"softmax of {self.name}, {self.args[0]}"
        if self.kind == "total":
            return f"total({self.name})"
        start = "" if self.offset == Affine() else f" + {self.offset}"
        return f"{self.name}[i{start}]"
