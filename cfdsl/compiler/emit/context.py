"""What the step emitters share: names of constants, of coordinates and of expressions."""

from __future__ import annotations

from dataclasses import dataclass, field

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.emit.marks import CONSUMER, Mark
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import RowTiles
from cfdsl.compiler.names import identifier as name
from cfdsl.compiler.plan import TRACE_ARG, KernelPlan
from cfdsl.dsl.graph import TOKENS_DIM, Src

Lines = list[str]
WIDTH = 140  # of a line of generated code
DTYPES = {"f32": "Float32", "bf16": "BFloat16", "f16": "Float16", "i32": "Int32"}
FIXED = ("ATTRS", "CTAS", "MARKS", "RANKS", "RING", "THREADS", "WARPS")  # constants that every module has


@dataclass
class Context:
    plan: KernelPlan
    constants: dict[str, str] = field(default_factory=dict)  # name -> text, in order
    shapes: dict[str, RowTiles] = field(default_factory=dict)  # those of them that are geometries of rows
    marks: list[Mark] = field(default_factory=list)  # of a traced kernel, in the order of their numbers

    @property
    def warps(self) -> int:
        return self.plan.config.warps

    def dtype(self, arg: str) -> str:
        return DTYPES[next(a.dtype for a in self.plan.args if a.name == arg)]

    def mark(self, lane: str, label: str, text: str = "", sources: tuple[Src, ...] = ()) -> Lines:
        """The line in which a lane notes the time, after what `label` and `text` say; no line where the kernel is not traced."""
        if not self.plan.config.trace:
            return []
        made = Mark(lane, label, text, sources)
        self.marks.append(made)
        how, who = "anchor" if made.is_anchor else "mark", "0" if lane == CONSUMER else "THREADS"
        return [f"trace.{how}({TRACE_ARG}, MARKS, {len(self.marks) - 1}, {who})"]

    def constant(self, base: str, text: str) -> str:
        """The module-level name of a constant: one per text."""
        for constant, known in self.constants.items():
            if known == text:
                return constant
        constant, n = base, 2
        while constant in self.constants or constant in FIXED:
            constant, n = f"{base}_{n}", n + 1
        self.constants[constant] = text
        return constant

    def rows(self, base: str, tiles: RowTiles) -> str:
        """The constant with the geometry of a weight's tiles, or of a fragment."""
        text = f"stream.Rows(cols={tiles.cols}, ld={tiles.ld}, rows={tiles.rows}, warps_per_row={tiles.warps_per_row}"
        if tiles.block_rows:
            text += f", block_rows={tiles.block_rows}, block_stride={tiles.block_stride}"
        if tiles.pieces > 1:
            text += f", pieces={tiles.pieces}"
        constant = self.constant(base.upper(), text + f", warps={self.warps})")
        self.shapes.setdefault(constant, tiles)
        return constant

    def fragment(self, tiles: RowTiles) -> str:
        """A constant whose fragments are those of `tiles`: any stream with the same columns, pieces and warps per row will do."""
        spread = (tiles.cols, tiles.pieces, tiles.warps_per_row)
        alike = (constant for constant, shape in self.shapes.items() if (shape.cols, shape.pieces, shape.warps_per_row) == spread)
        return next(alike, None) or self.rows("ROW", tiles)


def element(expr: Expr, i: str = "i") -> str:
    """Source of an expression at index `i`, float32."""
    start = "" if expr.offset == Affine() else f"{expr.offset} + "
    index = f"{i} // {expr.block} * {expr.stride} + {i} % {expr.block}" if expr.block and expr.stride else i
    if expr.kind == "leaf":
        return f"{name(expr.name)}[{start}{index}].to(Float32)"
    if expr.kind == "smem":
        return f"{expr.name}[{start}{index}]{'' if expr.dtype == 'f32' else '.to(Float32)'}"
    if expr.kind == "total":
        return f"gemv.total({expr.name}, {start}{i}, {expr.warps})"
    if expr.kind == "var":
        return expr.name
    return _pointwise(expr, [element(arg, i) for arg in expr.args])


def fragment(expr: Expr, shape: str) -> str:
    """Source of an expression over a fragment of geometry `shape`."""
    if expr.kind in ("leaf", "smem"):
        start = "" if expr.offset == Affine() else f", {expr.offset}"
        load = name(expr.name) if expr.kind == "leaf" else expr.name
        return f"frag.load({load}, {shape}{start})"
    if expr.kind == "terms":
        return f"terms.load({expr.name}, {expr.args[0].name}, {', '.join(map(str, expr.terms))}, {shape})"
    if expr.kind == "var":
        return expr.name
    if expr.kind == "fetched":
        return f"frag.widen({expr.name})"
    return _pointwise(expr, [fragment(arg, shape) for arg in expr.args])


def _pointwise(expr: Expr, args: list[str]) -> str:
    if expr.kind == "add":
        return f"({args[0]} + {args[1]})"
    if expr.kind == "mul":
        return f"{args[0]} * {args[1]}"
    if expr.kind == "cast":
        return f"({bare(args[0])}).to({DTYPES[expr.name]}).to(Float32)"
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


def loop(n: int | str, body: str) -> Lines:
    """Each consumer thread takes every THREADS-th index."""
    return [f"for i in cutlass.range(tidx, {n}, THREADS, unroll=1):", f"    {body}"]


def size(c: Context, arg: str, dim: int) -> str:
    """A dimension of an argument: its number, or the variable with it where that is known at launch only."""
    found = next(a.shape for a in c.plan.args if a.name == arg)[dim]
    return f"n_{found}" if isinstance(found, str) else str(found)


def capacity(c: Context, cache: str, layout: str) -> str:
    """How many tokens a cache has room for."""
    return size(c, f"{cache}_k", TOKENS_DIM[layout])


def fold(line: str, width: int) -> Lines:
    """A call too long for a line, broken after commas and aligned with its first argument."""
    if len(line) <= width or "(" not in line:
        return [line]
    start = line.index("(") + 1
    parts, lines = line.split(", "), [""]
    for n, part in enumerate(parts):
        text = part + ("," if n < len(parts) - 1 else "")
        if lines[-1] and len(lines[-1]) + 1 + len(text) > width and len(lines[-1]) > start:
            lines.append(" " * start + text)
        else:
            lines[-1] += f" {text}" if lines[-1] else text
    return lines
