"""What a spec holds in its hands while it is traced: values, the axis of a `clusters` block, and the outputs.

A `Value` wraps a node. After a mistake it is *poison*: it wraps nothing, every op on it gives poison again without a word, and the
trace goes on to the next independent mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from cfdsl.dsl.graph import Dim, Node
from cfdsl.errors import TraceError

if TYPE_CHECKING:
    from cfdsl.dsl.trace import Tracer


class Poisoned(Exception):
    """Python code of a spec looked inside a value that an earlier mistake spoiled; the trace ends and reports what it has."""


@dataclass(frozen=True)
class Axis:
    """The work units of a `with clusters(over=n) as axis` block. `x[axis]` gives each cluster its slice of x."""

    over: int


@dataclass(frozen=True)
class Outputs:
    """What a spec returns: the names of its outputs, in order."""

    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the spec: a logical tensor whose shape and dtype are known and whose contents are not.

    Operators: `a + b`, `a * b` (equal shapes, or broadcasting), `x[axis]` (slice dimension 0 over the clusters; of a cache: its
    heads), `x[:, axis]` (slice dimension 1).
    """

    tracer: Tracer
    _node: Node | None

    @property
    def poisoned(self) -> bool:
        return self._node is None

    @property
    def node(self) -> Node:
        if self._node is None:
            raise Poisoned
        return self._node

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The logical shape of the whole value, not of a slice."""
        return self.node.type.shape

    @property
    def dtype(self) -> str:
        return self.node.type.dtype

    def __add__(self, other: object) -> Value:
        from cfdsl.dsl import ops

        return ops.add(self, other)

    def __radd__(self, other: object) -> Value:
        from cfdsl.dsl import ops

        return ops.add(other, self)

    def __mul__(self, other: object) -> Value:
        from cfdsl.dsl import ops

        return ops.mul(self, other)

    def __rmul__(self, other: object) -> Value:
        from cfdsl.dsl import ops

        return ops.mul(other, self)

    def __getitem__(self, key: object) -> Value:
        from cfdsl.dsl import ops

        return ops.slice_grid(self, key)

    def split_heads(self, heads: int) -> Value:
        """See `cfdsl.split_heads`."""
        from cfdsl.dsl import ops

        return ops.split_heads(self, heads)

    def append(self, k: Value, v: Value, *, at: Value) -> Value:
        """Write the keys and values of one new token per sequence into this cache, at index `at`.

        k, v: (batch, kv heads, dim), rounded to the cache's dtype. at: (batch,) i32, the number of tokens that the cache holds.
        Where that is out of range, nothing is stored.
        Returns the cache with the token in it.
        """
        from cfdsl.dsl import ops

        return ops.append(self, k, v, at=at)

    def __iter__(self) -> Iterator[Value]:
        self._refuse("looped over or unpacked", "use split(x, sizes, dim) to take a value apart")

    def __bool__(self) -> bool:
        self._refuse("used as a condition", "branch on the model's config or on an option of the fusion instead")

    def __len__(self) -> int:
        self._refuse("asked for its len()", "use its .shape")

    def _refuse(self, what: str, advice: str) -> NoReturn:
        from cfdsl.dsl.source import user_line

        raise TraceError(problem=f"a traced value cannot be {what}: its contents are not known", advice=advice, src=user_line())

    def __repr__(self) -> str:
        return "<poison>" if self._node is None else repr(self._node)
