"""What the step emitters share: names of constants, of coordinates and of expressions."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import RowTiles
from cfdsl.compiler.plan import KernelPlan

MODULES = (
    "attention", "cluster_gather", "cluster_reduce", "cta", "exchange", "frag", "gemv", "grid", "kv", "pointwise", "rmsnorm", "rope",
    "stream",
)  # fmt: skip
LOCALS = ("at", "bid", "cluster", "cuda", "cute", "cutlass", "flat", "i", "kernel", "launch", "primitives", "rank", "rings", "smem", "status", "tidx")
RESERVED = frozenset((*MODULES, *LOCALS, *keyword.kwlist))
DTYPES = {"f32": "Float32", "bf16": "BFloat16", "f16": "Float16", "i32": "Int32"}


def name(arg: str) -> str:
    """The identifier of a launch argument in generated code: its own name, unless that means something there already."""
    return f"{arg}_" if arg in RESERVED else arg


@dataclass
class Context:
    plan: KernelPlan
    constants: dict[str, str] = field(default_factory=dict)  # name -> text, in order

    @property
    def warps(self) -> int:
        return self.plan.config.warps

    def dtype(self, arg: str) -> str:
        return DTYPES[next(a.dtype for a in self.plan.args if a.name == arg)]

    def constant(self, base: str, text: str) -> str:
        """The module-level name of a constant: one per text."""
        for name, known in self.constants.items():
            if known == text:
                return name
        name, n = base, 2
        while name in self.constants:
            name, n = f"{base}_{n}", n + 1
        self.constants[name] = text
        return name

    def rows(self, base: str, tiles: RowTiles) -> str:
        """The constant with the geometry of a weight's tiles, or of a fragment."""
        text = f"stream.Rows(cols={tiles.cols}, ld={tiles.ld}, rows={tiles.rows}, warps_per_row={tiles.warps_per_row}"
        if tiles.block_rows:
            text += f", block_rows={tiles.block_rows}, block_stride={tiles.block_stride}"
        return self.constant(base.upper(), text + f", warps={self.warps})")

    def fragment(self, tiles: RowTiles) -> str:
        """A constant whose fragments are those of `tiles`: any stream with the same columns and warps per row will do."""
        want = (f"stream.Rows(cols={tiles.cols}, ", f"warps_per_row={tiles.warps_per_row},")
        for name, text in self.constants.items():
            if text.startswith(want[0]) and want[1] in text + ",":
                return name
        return self.rows("ROW", tiles)



def element(expr: Expr, i: str = "i") -> str:
    """Source of an expression at index `i`, float32."""
    if expr.kind == "leaf":
        index = i
        if expr.block and expr.stride:
            index = f"{i} // {expr.block} * {expr.stride} + {i} % {expr.block}"
        start = "" if expr.offset == Affine() else f"{expr.offset} + "
        return f"{name(expr.name)}[{start}{index}].to(Float32)"
    if expr.kind == "smem":
        start = "" if expr.offset == Affine() else f"{expr.offset} + "
        return f"{expr.name}[{start}{i}]"
    if expr.kind == "total":
        return f"gemv.total({expr.name}, {i}, {expr.warps})"
    if expr.kind == "var":
        return expr.name
    return _pointwise(expr, [element(arg, i) for arg in expr.args])


def fragment(expr: Expr, shape: str) -> str:
    """Source of an expression over a fragment of geometry `shape`."""
    if expr.kind in ("leaf", "smem"):
        start = "" if expr.offset == Affine() else f", {expr.offset}"
        load = name(expr.name) if expr.kind == "leaf" else expr.name
        return f"frag.load({load}, {shape}{start})"
    if expr.kind == "var":
        return expr.name
    return _pointwise(expr, [fragment(arg, shape) for arg in expr.args])


def _pointwise(expr: Expr, args: list[str]) -> str:
    if expr.kind == "add":
        return f"({args[0]} + {args[1]})"
    if expr.kind == "mul":
        return f"{args[0]} * {args[1]}"
    return f"pointwise.{expr.kind}({args[0]})"


def bare(text: str) -> str:
    """Without the parentheses around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1]
