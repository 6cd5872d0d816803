"""What a collective is asked to do, and everything that is wrong with asking for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from cfdsl.compiler.config import CLUSTER_SIZES
from cfdsl.compiler.parts import Part
from cfdsl.dsl.graph import ITEMSIZE
from cfdsl.errors import ArgumentError, CfdslError, ClusterSizeUnsupported, ShardDoesNotDivide, is_whole

KINDS = ("reduce", "reduce_scatter", "gather", "broadcast")
OPERATORS = ("sum", "max", "min", "lse")
WARPS = (1, 2, 4, 8)
WIDTH = {dtype: ITEMSIZE[dtype] for dtype in ("f32", "bf16", "f16")}  # bytes of an element of each type that there is
LEAST_BYTES = 4
MOST_ELEMENTS = 2**28  # of a tensor: offsets are 32-bit, and rows in device memory come in two sets and grow to four words an element
MOST_REPEAT = 2**31 - 1  # calls are counted in 32 bits
MOST_TIMED = 2**16  # so are the cycles of a launch: of an exchange that fills shared memory they are some 2^15
TERM_TAIL = 4  # f32 behind the outputs of a head in a softmax term; mirrors `primitives.fold.TAIL`


@dataclass(frozen=True)
class Collective:
    """One collective on `clusters` clusters of `cluster` ranks: each rank's payload has `shape` and `dtype`.

    `repeat` exchanges back to back inside of one launch; `timed`: with the SM's clock around them. `warps` of each CTA; None: as many as
    the design of an algorithm takes for its bytes.
    """

    kind: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    cluster: int
    clusters: int = 1
    repeat: int = 1
    timed: bool = False
    warps: int | None = None

    @property
    def folds(self) -> bool:
        """Whether terms are combined: else `op` does not matter."""
        return self.kind in ("reduce", "reduce_scatter")

    @property
    def lse(self) -> bool:
        return self.folds and self.op == "lse"

    @property
    def width(self) -> int:
        """Bytes of an element of x and y."""
        return WIDTH[self.dtype]

    @property
    def held(self) -> str:
        """Type of a source and of a result in shared memory: terms of LSE are f32 there, and so is what comes of them."""
        return "f32" if self.lse else self.dtype

    @property
    def payload(self) -> int:
        """Elements of one rank's `x`."""
        return prod(self.shape)

    @property
    def heads(self) -> int:
        return self.shape[0]

    @property
    def dim(self) -> int:
        """Of a head, for LSE."""
        return self.shape[1] if self.lse else 0

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Of one rank's `y`."""
        first, *rest = self.shape
        if self.kind == "reduce_scatter":
            first //= self.cluster
        if self.kind == "gather":
            first *= self.cluster
        return (first, *rest)

    @property
    def text(self) -> str:
        """In words, for errors and listings."""
        shape = "x".join(map(str, self.shape))
        op = f" {self.op}" if self.folds else ""
        return f"{self.kind}{op} of {self.dtype} {shape} on clusters of {self.cluster}"


def mistakes(request: Collective, part: Part) -> Iterator[CfdslError]:
    """Everything that no algorithm could do, or that nobody could mean."""
    yield from _choices(request)
    if not is_whole(request.cluster):
        yield ArgumentError(argument="cluster", expected="a number of CTAs", got=repr(request.cluster))
    elif request.cluster not in CLUSTER_SIZES or request.cluster > part.cluster_limit:
        yield ClusterSizeUnsupported(size=request.cluster, supported=[size for size in CLUSTER_SIZES if size <= part.cluster_limit])
    yield from _counts(request)
    shape: object = request.shape  # whatever a caller passed
    if not isinstance(shape, tuple) or not shape or not all(is_whole(size, 1) for size in shape):
        yield ArgumentError(argument="shape", expected="a tuple of at least one positive integer", got=repr(request.shape))
        return
    if request.dtype in tuple(WIDTH) and request.payload * request.width < LEAST_BYTES:
        got = f"{request.payload} x {request.width} bytes"
        yield ArgumentError(argument="shape", expected=f"a payload of at least {LEAST_BYTES} bytes", got=got)
    if request.kind == "reduce_scatter" and request.cluster in CLUSTER_SIZES and request.shape[0] % request.cluster:
        yield ShardDoesNotDivide(op="reduce_scatter", dim=0, size=request.shape[0], parts=request.cluster, axis="ranks")
    if isinstance(request.clusters, int) and request.cluster in CLUSTER_SIZES:
        most = max(request.payload, prod(request.result_shape))
        if request.clusters * request.cluster * most > MOST_ELEMENTS:
            got = f"{request.clusters} x {request.cluster} x {most}"
            yield ArgumentError(argument="clusters", expected=f"such that x and y have at most {MOST_ELEMENTS} elements each", got=got)
    if request.lse:
        yield from _softmax(request)


def _choices(request: Collective) -> Iterator[CfdslError]:
    for name, value, known in (("kind", request.kind, KINDS), ("op", request.op, OPERATORS), ("dtype", request.dtype, tuple(WIDTH))):
        if value not in known:
            yield ArgumentError(argument=name, expected=f"one of {', '.join(known)}", got=repr(value))


def _counts(request: Collective) -> Iterator[CfdslError]:
    if not is_whole(request.clusters, 1):
        yield ArgumentError(argument="clusters", expected="an integer of at least 1", got=repr(request.clusters))
    timed: object = request.timed  # whatever a caller passed
    if not isinstance(timed, bool):
        yield ArgumentError(argument="timed", expected="True or False", got=repr(timed))
    most, why = (MOST_TIMED, "with timed=True (cycles") if request.timed else (MOST_REPEAT, "(calls")
    if not (is_whole(request.repeat, 1) and request.repeat <= most):
        expected = f"an integer from 1 to {most} {why} are counted in 32 bits)"
        yield ArgumentError(argument="repeat", expected=expected, got=repr(request.repeat))
    if request.warps is not None and not (is_whole(request.warps) and request.warps in WARPS):
        yield ArgumentError(argument="warps", expected=f"one of {', '.join(map(str, WARPS))}, or None", got=repr(request.warps))


def _softmax(request: Collective) -> Iterator[CfdslError]:
    if len(request.shape) != 2 or request.shape[1] % 4:
        expected = "(heads, dim) with dim a multiple of 4 for op='lse'"
        yield ArgumentError(argument="shape", expected=expected, got=repr(request.shape))
