"""The forms in which a node's value exists inside a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import RowTiles
from cfdsl.dsl.graph import Node, leaf_of
from cfdsl.errors import NotLowered


def stored(node: Node) -> Node:
    """The stored weight under the views of a linear's weight. NotLowered if there is none: what is computed lies nowhere to stream from."""
    at = leaf_of(node.args[1])
    if at.op == "weight":
        return at
    what = f"the input {at.attr('name')!r}" if at.op == "input" else f"what {at.op} computes"
    advice = "declare it with cf.weight, as the product needs it: its rows are streamed as they lie in memory"
    raise NotLowered(op="linear", why=f"its weight is {what}", advice=advice, src=node.src)


def made_with(node: Node) -> str:
    """A short name for the result of a linear: that of its weight, without the `w` in front."""
    name = str(stored(node).attr("name"))
    return name[1:] if name.startswith("w") and name[1:].isidentifier() else name


@dataclass(frozen=True)
class Product:
    """A matrix-vector product of `rows` rows. For each turn of columns (see `column_turns`), its warps' terms are rows `first` and on of a
    buffer `part` f32 (warps_per_row, ..); `bias` is added to their sum."""

    parts: tuple[tuple[str, int], ...]
    tiles: RowTiles
    rows: int
    bias: Expr | None = None

    @property
    def expr(self) -> Expr:
        totals = [Expr("total", part, Affine.of(first), warps=self.tiles.warps_per_row) for part, first in self.parts]
        return reduce(lambda one, other: Expr("add", args=(one, other)), [*totals, self.bias] if self.bias is not None else totals)


@dataclass(frozen=True)
class Vector:
    """This rank's slice, f32, flattened, in shared memory."""

    buffer: str
    size: int


@dataclass(frozen=True)
class Scalar:
    """One f32 that every consumer thread holds."""

    variable: str


@dataclass(frozen=True)
class Best:
    """A term of P(argmax): the variables with its key (see `primitives.argmax`) and its index, the same in every consumer thread."""

    key: str
    index: str


@dataclass(frozen=True)
class GlobalBest:
    """Terms of P(argmax), a pair of i32 of every CTA, in a workspace in global memory."""

    workspace: str


@dataclass(frozen=True)
class Softmax:
    """A term of P(lse): unnormalised outputs f32 (heads * dim,) and (max, sum) f32 (heads, 2), in shared memory."""

    out: str
    stats: str
    heads: int
    dim: int


@dataclass(frozen=True)
class Fetched:
    """`size` f32 on their way from global memory to the registers `variable` (see `primitives.grid.fetch`)."""

    variable: str
    size: int


@dataclass(frozen=True)
class GlobalTerms:
    """Terms of P(lse), one per split, in workspaces in global memory.

    Outputs are f32 (splits, heads, dim), (max, sum) f32 (splits, heads, 2).
    """

    outs: str
    stats: str
    splits: int
    heads: int
    dim: int


@dataclass(frozen=True)
class GlobalVector:
    """The whole vector, f32, in a workspace in global memory, complete after a grid barrier. `share`: each CTA reads its rows only."""

    workspace: str
    size: int
    share: str | None = None


@dataclass(frozen=True)
class Cache:
    """A cluster's heads of a KV cache: `base` is the first one's element offset in units of one head."""

    name: str
    layout: str
    heads: int
    all_heads: int
    dim: int
    base: Affine
    appended: tuple[str, str] | None = None  # buffers of the new token's keys and values
