"""Which exchanges are timed: operators, cluster sizes, payloads and algorithms, as grids, and the cases that they come to on a part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cfdsl.compiler.parts import Part
from cfdsl.dsl.graph import ITEMSIZE
from cfdsl.errors import CfdslError

HEAD_DIM = 128  # of the online softmax's vectors, where the payload is a multiple of one

# Operators by the name that the command line and the tables give them: kind and op of `cfdsl.collective`.
OPERATORS: dict[str, tuple[str, str]] = {
    "sum": ("reduce", "sum"),
    "max": ("reduce", "max"),
    "min": ("reduce", "min"),
    "lse": ("reduce", "lse"),
    "reduce_scatter": ("reduce_scatter", "sum"),
    "gather": ("gather", "sum"),
    "broadcast": ("broadcast", "sum"),
}
CHOSEN, ALL, OFF_CHIP = "chosen", "all", "global"
FROM_MEMORY = ("multicast",)  # on the chip, of what lies in global memory: no way for what a CTA has computed
ALGORITHMS = (CHOSEN, ALL, "push", "bulk", "scatter_gather", "doubling", "multicast", OFF_CHIP)

PossibleAlgorithms = Callable[..., Iterable[str]]


@dataclass(frozen=True)
class Case:
    """One exchange to be timed: `clusters` clusters of `cluster` ranks, `payload` bytes of x per rank, in a launch of its own.

    algorithm       None: what the cost model chooses
    launches_only   times with the launch alone are wanted, not those inside a kernel
    """

    operator: str
    cluster: int
    payload: int
    clusters: int
    algorithm: str | None = None
    dtype: str = "f32"
    launches_only: bool = False

    @property
    def kind(self) -> str:
        """First argument of `cfdsl.collective`."""
        return OPERATORS[self.operator][0]

    @property
    def op(self) -> str:
        """`op` of `cfdsl.collective`."""
        return OPERATORS[self.operator][1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one rank's x: a vector; (heads, dim) for lse, whose m and l (8 bytes per head) come on top of the payload.

        Terms of lse are sent in f32 whatever `dtype` is: of halves twice the payload.
        """
        count = self.payload // ITEMSIZE[self.dtype]
        if self.operator != "lse":
            return (count,)
        dim = math.gcd(count, HEAD_DIM)  # no element more or less than were asked for
        return (count // dim, dim)

    @property
    def senders(self) -> int:
        """Ranks of a cluster that send."""
        return 1 if self.kind == "broadcast" else self.cluster

    @property
    def repeats(self) -> tuple[int, int]:
        """The two numbers of exchanges per launch whose times are subtracted; both even, since buffers alternate."""
        return (4, 68) if self.payload <= 4096 else (4, 20)

    @property
    def builds(self) -> tuple[tuple[int, bool], ...]:
        """(repeat, timed) of the kernels that measuring takes."""
        inside = () if self.launches_only else tuple((repeat, True) for repeat in self.repeats)
        return ((1, False), *inside)

    def arguments(self, repeat: int, timed: bool, part: Part | None) -> dict[str, Any]:
        """Keywords of `cfdsl.collective`."""
        return {
            "op": self.op, "shape": self.shape, "dtype": self.dtype, "cluster": self.cluster, "clusters": self.clusters,
            "algorithm": self.algorithm, "repeat": repeat, "timed": timed, "part": part,
        }  # fmt: skip

    def with_algorithm(self, name: str | None) -> Case:
        """The same exchange by another algorithm."""
        return replace(self, algorithm=name)


@dataclass(frozen=True)
class Grid:
    """A product of cases. algorithms: names, "chosen" (by the cost model), "all" that are possible."""

    cluster_sizes: tuple[int, ...]
    payloads: tuple[int, ...]
    operators: tuple[str, ...]
    algorithms: tuple[str, ...]


PAYLOADS = (4, 512, 2048, 4096, 8192, 16384, 65536)
FINE_PAYLOADS = (4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
BASES = {
    "quick": Grid((4,), (4, 512, 16384), ("sum", "gather"), (CHOSEN, "push", OFF_CHIP)),
    "default": Grid((2, 4, 8, 16), PAYLOADS, ("sum", "gather"), (ALL,)),
    "full": Grid((1, 2, 4, 8, 16), FINE_PAYLOADS, tuple(OPERATORS), (ALL,)),
}
# What `bench collectives` does unless it is restricted: the two operators that matter everywhere, the others over 4 ranks.
DEFAULT = (BASES["default"], Grid((4,), PAYLOADS, ("max", "min", "lse", "reduce_scatter", "broadcast"), (CHOSEN, OFF_CHIP)))


def grids(mode: str, **given: Sequence[Any] | None) -> tuple[Grid, ...]:
    """The grids of a mode ("quick", "default", "full"); axes that are given (not None) take the place of the mode's."""
    axes = {name: tuple(values) for name, values in given.items() if values is not None}
    if mode == "default" and not axes:
        return DEFAULT
    return (replace(BASES[mode], **axes),)


def resident(part: Part, cluster: int) -> int:
    """As many clusters as the part holds at one CTA per SM; where nobody has measured that, as many as its SMs would make."""
    known = part.resident(cluster)
    return max(1, part.sms // cluster) if known is None else known


def expand(asked: Iterable[Grid], part: Part, possible: PossibleAlgorithms) -> tuple[list[Case], list[str]]:
    """The cases of the grids, none twice, a point's chosen algorithm first; and what there is no case for, with the reason."""
    cases: dict[Case, None] = {}
    left_out: dict[str, None] = {}
    for grid in asked:
        for operator in grid.operators:
            for cluster in grid.cluster_sizes:
                for payload in grid.payloads:
                    case = Case(operator, cluster, payload, resident(part, cluster))
                    found, why = algorithms_of(case, grid.algorithms, possible)
                    cases.update(dict.fromkeys(case.with_algorithm(name) for name in found))
                    if why:
                        left_out[f"{operator} of {payload:,} B over {cluster}: {why}"] = None
    return list(cases), list(left_out)


def algorithms_of(case: Case, wanted: Sequence[str], possible: PossibleAlgorithms) -> tuple[list[str | None], str]:
    """The algorithms to time of those wanted (None stands for the chosen one), and why there is none."""
    if case.clusters < 1:
        return [], "the part has no clusters of this size"
    try:
        names = list(possible(case.kind, op=case.op, shape=case.shape, dtype=case.dtype, cluster=case.cluster))
    except CfdslError as error:
        return [], str(error).splitlines()[0]
    if not names:
        return [], "no algorithm can do it"
    found: list[str | None] = [None] if {CHOSEN, ALL} & set(wanted) else []
    found += [name for name in names if ALL in wanted or name in wanted]
    return found, "" if found else f"by {', '.join(wanted)} it is not possible"
