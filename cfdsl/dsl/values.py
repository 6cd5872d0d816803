"""What a spec holds in its hands while it is traced: values, the axis of a `clusters` block, and the outputs.

A `Value` wraps a node. After a mistake it is *poison*: it wraps nothing, every op on it gives poison again without a word, and the
trace goes on to the next independent mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from cfdsl.dsl.graph import Dim, Node
from cfdsl.dsl.source import user_line
from cfdsl.dsl.word import word
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

    @word
    def split_heads(self, heads: int) -> Value:
        """See `cfdsl.split_heads`."""
        from cfdsl.dsl import ops

        return ops.split_heads(self, heads)

    @word
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
        if self.poisoned:
            raise Poisoned
        raise TraceError(problem=f"a traced value cannot be {what}: its contents are not known", advice=advice, src=user_line())

    def __repr__(self) -> str:
        return "<poison>" if self._node is None else repr(self._node)


def _no_operator(sign: str, advice: str) -> Callable[..., Value]:
    """Of an operator that the language has not: note it, and go on with poison."""

    def operator(value: Value, *other: object) -> Value:
        problem = f"a traced value has no operator {sign}"
        return value.tracer.refuse(TraceError(problem=problem, advice=advice, src=user_line()))

    return operator


def _no_comparison(value: Value, other: object) -> NoReturn:
    value._refuse("compared", "branch on the model's config or on an option of the fusion instead")


for _sign, _names in {"-": ("sub", "rsub", "neg"), "/": ("truediv", "rtruediv"), "**": ("pow", "rpow")}.items():
    for _name in _names:
        setattr(Value, f"__{_name}__", _no_operator(_sign, "write it with + and *, of values: the language has no other arithmetic"))
for _name in ("matmul", "rmatmul"):
    setattr(Value, f"__{_name}__", _no_operator("@", "write linear(x, w), which is x @ w.T"))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Value, f"__{_name}__", _no_comparison)
