"""What a type rule may look at, and the questions that several rules ask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cfdsl.dsl.graph import FLOATS, Dim, Node, Src, Type
from cfdsl.errors import ArgumentError, CfdslError, DtypeMismatch, ShapeMismatch, listed

VIEWS_OF_CACHE = ("slice_grid", "append")


@dataclass(frozen=True)
class Call:
    """One use of an op: what its type rule may look at. `declared` are the types of a leaf, which nothing else can tell."""

    op: str
    args: tuple[Node, ...]
    attrs: dict[str, Any]
    src: Src | None = None
    over: int | None = None
    declared: tuple[Type, ...] = ()

    def shape(self, index: int) -> tuple[Dim, ...]:
        return self.args[index].type.shape

    def mismatch(self, expected: str, got: str) -> CfdslError:
        return ShapeMismatch(op=self.op, expected=expected, got=got, src=self.src)

    def rank(self, index: int, name: str, dims: str) -> tuple[Dim, ...]:
        """The shape of an argument that must have as many dimensions as `dims` names."""
        shape = self.shape(index)
        if len(shape) != len(dims.split(", ")):
            raise self.mismatch(f"{name} of shape ({dims})", show(shape))
        return shape

    def floats(self, *names: str) -> None:
        """The first arguments must be floating-point values, and no caches."""
        for arg, name in zip(self.args, names):
            if is_cache(arg):
                raise ArgumentError(argument=name, expected=f"a tensor value in {self.op}", got="a kv_cache", src=self.src)
            self.dtype(arg, name, FLOATS)

    def one_16_bit_dtype(self, *names: str) -> None:
        """f16 and bf16 do not meet: a mixture is most likely a dtype that was forgotten."""
        first = next((arg.type.dtype for arg in self.args if arg.type.dtype in ("f16", "bf16")), "f32")
        for arg, name in zip(self.args, names):
            if arg.type.dtype in ("f16", "bf16"):
                self.dtype(arg, name, (first,))

    def dtype(self, arg: Node, name: str, allowed: tuple[str, ...]) -> None:
        if arg.type.dtype not in allowed:
            raise DtypeMismatch(op=self.op, argument=name, expected=listed(allowed), got=arg.type.dtype, src=self.src)


def show(shape: tuple[Dim, ...]) -> str:
    """A shape as the user wrote it: (1, 4096)."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def is_cache(node: Node) -> bool:
    """Whether a node is a key/value cache, a slice of one, or one that was appended to."""
    return cache_leaf(node) is not None


def cache_leaf(node: Node) -> Node | None:
    """The kv_cache that a node is a view of, or None."""
    while node.op in VIEWS_OF_CACHE:
        node = node.args[0]
    return node if node.op == "kv_cache" else None


def appended(node: Node) -> bool:
    """Whether a cache has had a token appended."""
    while node.op in VIEWS_OF_CACHE:
        if node.op == "append":
            return True
        node = node.args[0]
    return False


def is_weight(node: Node) -> bool:
    """Whether a node is a weight or a view of one; the head split of a weight is along its first dimension."""
    while node.op in ("slice_grid", "slice_cluster", "split_heads", "reshape"):
        node = node.args[0]
    return node.op == "weight"


def dim_of(call: Call, dim: object, shape: tuple[Dim, ...]) -> int:
    """A dimension of `shape`, or the mistake of naming one that it has not."""
    if not isinstance(dim, int) or not 0 <= dim < len(shape):
        raise ArgumentError(argument="dim", expected=f"a dimension of {show(shape)}", got=repr(dim), src=call.src)
    return dim


def number(call: Call, name: str, expected: str, fits: Callable[[float], bool]) -> None:
    """An attribute must be a finite number that `fits`."""
    value = call.attrs[name]
    if not isinstance(value, float) or not math.isfinite(value) or not fits(value):
        raise ArgumentError(argument=name, expected=expected, got=repr(value), src=call.src)


def needs_cache(call: Call, node: Node) -> None:
    """An argument must be a cache."""
    if not is_cache(node):
        raise ArgumentError(argument="cache", expected="a kv_cache", got=str(node.type), src=call.src)


def per_sequence(call: Call, arg: Node, name: str, batch: Dim) -> None:
    """An argument must have one i32 per sequence."""
    call.dtype(arg, name, ("i32",))
    if arg.type.shape != (batch,):
        raise call.mismatch(f"{name} of shape {show((batch,))}", show(arg.type.shape))


Rule = Callable[[Call], tuple[Type, ...]]
