"""The launch that the oracle acts out: its mesh, its sizes, what ranks have computed so far, and the counter that watches."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cfdsl.dsl.graph import Node
from cfdsl.dsl.interpret.local import Local, Rank, Span, Spans
from cfdsl.dsl.interpret.traffic import Counter
from cfdsl.dsl.placement import Mesh, shard_bounds

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cfdsl.dsl.place import PlacedGraph


@dataclass
class Machine:
    """The launch being acted out: its mesh, the compute type, and what ranks computed so far.

    Ranks that do the same arithmetic on the same bytes share one run of it: `memo` is keyed by the bytes. A 7B model's replicated
    RMSNorm is then computed once and not 128 times, and every rank still gets only what its own operands give.
    """

    placed: PlacedGraph
    mesh: Mesh
    dtype: torch.dtype
    dtypes: dict[str, torch.dtype]
    sizes: dict[str, int]
    counter: Counter
    memo: dict[Hashable, Local] = field(default_factory=dict)
    caches: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # the new caches, logical shape
    appended: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def load(self, rank: Rank, *operands: Local) -> None:
        """Count the operands that are leaves as loaded by this CTA."""
        for operand in operands:
            self.counter.load(rank, operand)

    def once(self, node: Node, operands: tuple[Any, ...], make: Callable[[], Local]) -> Local:
        """`make()`, or what it gave for the same operands before."""
        key = (node, *(operand.key for operand in operands))
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def run(self, node: Node, rank: Rank, operands: tuple[Local, ...], spans: Spans, make: Callable[..., Tensor]) -> Local:
        """Load the operands and apply `make` to them in the compute type."""
        self.load(rank, *operands)
        return self.once(node, operands, lambda: Local(make(*(operand.data.to(self.dtype) for operand in operands)), spans))

    def shape(self, node: Node) -> tuple[int, ...]:
        """The logical shape, symbols filled in."""
        return tuple(self.sizes[dim] if isinstance(dim, str) else dim for dim in node.type.shape)


Handler = Callable[[Machine, Node, Rank, list[Any]], Any]  # of Local, or LocalCache where the value is a KV cache


def part_of(span: Span, parts: int, index: int) -> Span:
    """Slice `index` of `parts` of what is held."""
    lo, hi = shard_bounds(span[1] - span[0], parts, index)
    return span[0] + lo, span[0] + hi


def share_of(span: Span, parts: int, index: int) -> Span:
    """Share `index` of `parts` of what is held, each element in one share only: of more parts than elements, some get nothing."""
    lo, size = span[0], span[1] - span[0]
    return lo + size * index // parts, lo + size * (index + 1) // parts
