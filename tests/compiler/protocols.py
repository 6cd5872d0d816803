"""The collectives' protocols, and ways to break one: for the tests of their proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from cfdsl.compiler.collective.check import faults
from cfdsl.compiler.collective.designs import ALGORITHMS, design, refusals
from cfdsl.compiler.collective.protocol import Act, Protocol
from cfdsl.compiler.collective.request import KINDS, Collective

Wanted = Callable[[Act], bool]


def protocol(kind: str, algorithm: str, ranks: int = 4, op: str = "sum") -> Protocol:
    shape = (16, 64) if op == "lse" else (16, 12)
    return design(Collective(kind, op, shape, "f32", ranks), algorithm).protocol


LONG = [
    design(Collective(kind, "sum", (4096,), "f32", ranks), algorithm).protocol
    for kind, algorithm in (("reduce", "push"), ("reduce_scatter", "bulk"), ("gather", "bulk"), ("reduce", "scatter_gather"))
    for ranks in (2, 4, 8)
]
SCALAR = design(Collective("reduce", "sum", (1,), "f32", 4), "push").protocol


def everything() -> Iterator[tuple[str, str, str, int]]:
    """Every kind, algorithm, operator that moves differently, and size."""
    for kind in KINDS:
        for algorithm in ALGORITHMS:
            for op in ("sum", "lse") if kind.startswith("reduce") else ("sum",):
                for ranks in (1, 2, 4, 8, 16):
                    if not list(refusals(Collective(kind, op, (16, 64), "f32", ranks), algorithm)):
                        yield kind, algorithm, op, ranks


def without(whole: Protocol, unwanted: Wanted) -> Protocol:
    """The protocol with some acts left out."""
    return replace(whole, acts=tuple(a for a in whole.acts if not unwanted(a)), ending=tuple(a for a in whole.ending if not unwanted(a)))


def changed(whole: Protocol, which: Wanted, **fields: object) -> Protocol:
    """The protocol with some acts changed."""
    return replace(whole, acts=tuple(replace(a, **fields) if which(a) else a for a in whole.acts))  # type: ignore[arg-type]


def sets(whole: Protocol, place: str, count: int) -> Protocol:
    """The protocol with another number of copies of a buffer."""
    return replace(whole, places=tuple(replace(p, sets=count) if p.name == place else p for p in whole.places))


def sized(whole: Protocol, **nbytes: int) -> Protocol:
    """The protocol with buffers of other sizes."""
    return replace(whole, places=tuple(replace(p, nbytes=nbytes.get(p.name, p.nbytes)) for p in whole.places))


def found(broken: Protocol) -> str:
    return "\n".join(str(error) for error in faults(broken))


def nth(do: str, n: int) -> Wanted:
    """The act number `n` of its kind."""
    seen = []

    def wanted(act: Act) -> bool:
        if act.do == do:
            seen.append(act)
        return act.do == do and len(seen) == n + 1

    return wanted
