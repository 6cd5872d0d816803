"""What one rank holds of a value, and how slices are taken and put together.

A `Local` knows the range of each logical dimension it covers. Two locals are thereby combined by what they are and not by what a
placement claims they are: a placement rule that is wrong gives wrong numbers or an `OracleError`, never a right answer by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cfdsl.dsl.graph import Node

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]
Spans = tuple[Span, ...]
Rank = tuple[int, int]  # (cluster, rank in the cluster)


class OracleError(RuntimeError):
    """What ranks hold contradicts the placement: a collective is missing, or a placement rule is wrong."""

    def __init__(self, node: Node | None, message: str) -> None:
        at = f" at {node.src}" if node is not None else ""
        what = f"{node.op}{at}: " if node is not None else ""
        super().__init__(f"{what}{message}")


@dataclass(frozen=True, eq=False)
class Local:
    """`data` covers `spans` of the logical value.

    stats   (m, l) where `data` is the unnormalised o of an online softmax: m the greatest score, l the sum of exp(score - m);
            (value,) where `data` is the index of a greatest value, of a slice only
    leaf    the input or weight that `data` is a view of, while nobody has loaded it
    mark    the same view of that leaf's touched bytes
    left_by the number of the grid exchange that left `data` in global memory, while nobody has read it
    """

    data: Tensor
    spans: Spans
    stats: tuple[Tensor, ...] | None = None
    leaf: str | None = None
    mark: Tensor | None = None
    left_by: int | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Locals with equal keys are the same bytes. Sound as long as both are alive."""
        return (self.data.data_ptr(), tuple(self.data.shape), self.data.stride(), self.spans)

    def view(self, change: Callable[[Tensor], Tensor], spans: Spans) -> Local:
        """The same bytes under another shape; `change` must return a view."""
        mark = change(self.mark) if self.mark is not None else None
        return Local(change(self.data), spans, None, self.leaf, mark, self.left_by)

    def narrow(self, dim: int, want: Span) -> Local:
        """The part of dimension `dim` that covers `want`, which must lie in what is held."""
        lo, hi = self.spans[dim]
        if want == (lo, hi):
            return self
        if not (lo <= want[0] <= want[1] <= hi):
            raise OracleError(None, f"a rank holds {lo}:{hi} of dimension {dim} and needs {want[0]}:{want[1]}")
        spans = (*self.spans[:dim], want, *self.spans[dim + 1 :])

        def cut(t: Tensor) -> Tensor:
            return t.narrow(dim, want[0] - lo, want[1] - want[0])

        part = self.view(cut, spans)
        if self.stats is None:
            return part
        return replace(part, stats=tuple(cut(t) if dim < t.dim() else t for t in self.stats))


Holdings = dict[Rank, Local]


def full_spans(shape: Iterable[int]) -> Spans:
    """The spans of a value that is held whole."""
    return tuple((0, size) for size in shape)


def meet(a: Span, b: Span, node: Node | None = None) -> Span:
    """The range two operands share. They share none: their placements do not fit."""
    lo, hi = max(a[0], b[0]), min(a[1], b[1])
    if hi <= lo and a[0] < a[1] and b[0] < b[1]:
        raise OracleError(node, f"one operand holds {a[0]}:{a[1]} of a dimension, the other {b[0]}:{b[1]}: nothing in common")
    return lo, hi


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal element by element, where NaN equals NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def bounding(spans: Iterable[Spans]) -> Spans:
    """The smallest box around several."""
    return tuple((min(lo for lo, _ in dim), max(hi for _, hi in dim)) for dim in zip(*spans, strict=True))


def assemble(parts: Mapping[Rank, Local], node: Node, spans: Spans | None = None) -> Local:
    """Put slices together, in rank order, into the box around them or into `spans`. What nobody holds is NaN (of indices: -1).

    Raises OracleError where two ranks hold different values of the same element.
    """
    box = spans if spans is not None else bounding(part.spans for part in parts.values())
    first = next(iter(parts.values())).data
    whole = first.new_full([hi - lo for lo, hi in box], float("nan") if first.is_floating_point() else -1)
    placed: dict[Spans, Rank] = {}
    for rank, part in parts.items():
        target = whole
        for dim, (lo, hi) in enumerate(part.spans):
            target = target.narrow(dim, lo - box[dim][0], hi - lo)
        if part.spans in placed and not same_bits(target, part.data):
            raise OracleError(node, f"ranks {placed[part.spans]} and {rank} hold different values of the same slice")
        placed[part.spans] = rank
        target.copy_(part.data)
    return Local(whole, box)
