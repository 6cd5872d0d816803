"""Where a product's weight lies: the stored tensor under its views, and which of its rows and columns a cluster has."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.geometry import CHUNK
from cfdsl.compiler.lowering.pointwise import Where, through_view
from cfdsl.compiler.lowering.values import stored
from cfdsl.dsl.graph import Node
from cfdsl.errors import NotLowered


@dataclass(frozen=True)
class Matrix:
    """`rows` rows of `cols` elements of the stored tensor `leaf`, `ld` elements apart; the first starts at row `row0`, column `col0`."""

    leaf: Node
    rows: int
    cols: int
    ld: int
    row0: Affine
    col0: Affine

    @property
    def name(self) -> str:
        return str(self.leaf.attr("name"))


def matrix(b: Builder, node: Node) -> Matrix:
    """The weight of the linear `node` as its cluster has it, before ranks divide it: a run of rows, or a run of columns of all of them."""
    at, leaf, where = node.args[1], stored(node), Where()
    while at is not leaf:
        where, at = through_view(b, at, where), at.args[0]
    *rows, cols = b.local(node.args[1])
    ld = where.stride or cols
    row0, col0 = divided(where.at, ld)
    found = Matrix(leaf, prod(rows), cols, ld, row0, col0)
    if where.block not in (0, cols) or (ld == cols and col0 != Affine()):
        raise NotLowered(op="linear", why=f"its slice of {found.name} is neither a run of rows nor one of columns", src=node.src)
    if any(size % CHUNK for size in (cols, ld, col0.const, *(k for _, k in col0.terms))):
        why = f"rows of {found.name} do not begin and end at multiples of {CHUNK} elements: {cols} from column {col0} of {ld}"
        raise NotLowered(op="linear", why=why, src=node.src)
    return found


def divided(offset: Affine, ld: int) -> tuple[Affine, Affine]:
    """An offset in elements as rows and columns of a matrix with rows `ld` elements apart."""
    rows = Affine.of(offset.const // ld, **{name: k // ld for name, k in offset.terms})
    return rows, Affine.of(offset.const % ld, **{name: k % ld for name, k in offset.terms})
