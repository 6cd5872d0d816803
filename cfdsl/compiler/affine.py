"""Affine element offsets: a constant plus integer multiples of launch coordinates.

The plan addresses global memory with these instead of with code, so that the checker can bound every address on the host. Coordinates:

    cluster   number of the cluster            rank      rank in the cluster
    group     number of the group of clusters that split tokens, where they do
    sliceN    of N slices of the work, the one that this cluster has, where several groups share one
    granuleN  first granule of this CTA's share of N rows, partitioned over all CTAs

and variables of `index` steps: a number from device memory, brought into the rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Affine:
    terms: tuple[tuple[str, int], ...] = ()
    const: int = 0

    @staticmethod
    def of(const: int = 0, **terms: int) -> Affine:
        return Affine(tuple(sorted((name, k) for name, k in terms.items() if k)), const)

    def __add__(self, other: Affine) -> Affine:
        total = dict(self.terms)
        for name, k in other.terms:
            total[name] = total.get(name, 0) + k
        return Affine.of(self.const + other.const, **total)

    def times(self, factor: int) -> Affine:
        return Affine.of(self.const * factor, **{name: k * factor for name, k in self.terms})

    def at(self, coordinates: Mapping[str, int]) -> int:
        """The offset at the given coordinates."""
        return self.const + sum(k * coordinates[name] for name, k in self.terms)

    def __str__(self) -> str:
        parts = [name if k == 1 else f"{name} * {k}" for name, k in self.terms]
        if self.const or not parts:
            parts.append(str(self.const))
        return " + ".join(parts)
