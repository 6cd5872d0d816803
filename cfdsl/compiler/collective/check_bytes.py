"""Proof of a protocol's bytes: every place has room for what is in it, and what is pushed starts and ends where its way allows.

Nothing here depends on the order of acts, so there is nothing to run: `check` does that. Sizes are of one set of a place.
"""

from __future__ import annotations

from collections.abc import Iterator

from cfdsl.compiler.collective.design import VECTOR
from cfdsl.compiler.collective.protocol import PUSH, ST_ASYNC, Act, Place, Protocol
from cfdsl.errors import CfdslError, PlanError

WORD = 4  # bytes of the least store; bulk copies, multicasts and most stores move a VECTOR at a time
Found = Iterator[CfdslError]


def byte_faults(protocol: Protocol) -> Found:
    """Everything that is wrong with a protocol's bytes."""
    for rule in RULES:
        yield from rule(protocol)


def pushes(protocol: Protocol) -> tuple[Act, ...]:
    """The acts that push, before, in and after the calls."""
    return tuple(act for act in (*protocol.before, *protocol.acts, *protocol.ending) if act.do == PUSH)


def units(protocol: Protocol) -> Found:
    """Stores move words, bulk copies and multicasts 16 bytes at a time; rows of at least such a vector start at multiples of it."""
    for act in pushes(protocol):
        unit = WORD if act.by == ST_ASYNC else VECTOR
        if act.nbytes < unit or act.nbytes % unit:
            total = f"{act.nbytes} % {unit} = {act.nbytes % unit}"
            yield PlanError(what=f"a push by {act.by} is not a multiple of {unit} bytes", sum=total)
        start = VECTOR if act.nbytes >= VECTOR else WORD
        place = protocol.place(act.lands)
        for what, nbytes in (("sent", act.step), ("landing", act.apart), ("landing", place.nbytes if place.sets > 1 else 0)):
            if nbytes % start:
                total = f"{nbytes} % {start} = {nbytes % start}"
                yield PlanError(what=f"{what} rows of round {act.round} do not all start at multiples of {start} bytes", sum=total)


def sources(protocol: Protocol) -> Found:
    """What is pushed lies within its place, for every peer. A push of a register, or of device memory, has none here."""
    for act in pushes(protocol):
        room = sum(protocol.place(name).nbytes for name in act.places)
        peer = max(range(protocol.ranks) if act.step else (0,))
        end = peer * act.step + act.nbytes
        if act.places and end > room:
            total = f"{peer} x {act.step} + {act.nbytes} = {end} > {room}"
            yield PlanError(what=f"{' and '.join(act.places)} is smaller than what is pushed of it", sum=total)


def landings(protocol: Protocol) -> Found:
    """What lands in a place in one call lies within it, and no two ranks' rows share bytes."""
    for name in dict.fromkeys(act.lands for act in pushes(protocol)):
        place = protocol.place(name)
        for owner in range(protocol.ranks):
            spans = _landing(protocol, name, owner)
            error = _too_far(place, spans) or _shared(place, spans)
            if error:
                yield error
                break  # the other ranks' are as wrong


Span = tuple[int, int, int]  # start, end, the rank that pushes


def _landing(protocol: Protocol, name: str, owner: int) -> list[Span]:
    """What lands in place `name` of rank `owner` in one call, in order."""
    spans = []
    for act, rank in _senders(protocol, name, owner):
        start, nbytes = protocol.landing(act, rank), protocol.arriving(act, rank)
        spans += [(start, start + nbytes, rank)] if nbytes else []
    return sorted(spans)


def _senders(protocol: Protocol, name: str, owner: int) -> Iterator[tuple[Act, int]]:
    """Who pushes to place `name` of rank `owner` in one call, by which act."""
    for act in pushes(protocol):
        for rank in range(1 if act.only else protocol.ranks):
            if act.lands == name and owner in protocol.peers(act, rank):
                yield act, rank


def _too_far(place: Place, spans: list[Span]) -> PlanError | None:
    start, end, rank = max(spans, key=lambda span: span[1], default=(0, 0, 0))
    if end <= place.nbytes:
        return None
    return PlanError(what=f"{place.name} is smaller than what lands there", sum=f"of rank {rank}: {start} + {end - start} > {place.nbytes}")


def _shared(place: Place, spans: list[Span]) -> PlanError | None:
    for (_, end, rank), (start, _, other) in zip(spans, spans[1:]):
        if start < end:
            return PlanError(what=f"rows of two ranks share bytes of {place.name}", sum=f"rank {rank} to {end}, rank {other} from {start}")
    return None


def parts(protocol: Protocol) -> Found:
    """A place has room for all its parts, beside the rows that land in it as a whole, and they are used in turn no further than it is."""
    for whole in protocol.places:
        inside = [place for place in protocol.places if place.part_of == whole.name]
        rows = [max(act.apart, act.nbytes) for act, _ in _senders(protocol, whole.name, 0)]
        need = sum(rows) + sum(place.nbytes for place in inside)
        if inside and need > whole.nbytes:
            total = " + ".join(map(str, [*rows, *(place.nbytes for place in inside)]))
            yield PlanError(what=f"{whole.name} is smaller than its parts", sum=f"{total} = {need} > {whole.nbytes}")
        for place in inside:
            if place.sets > whole.sets:
                what = f"{place.name} has more sets than {whole.name}, which it is part of"
                yield PlanError(what=what, sum=f"{place.sets} > {whole.sets}")


def overlaps(protocol: Protocol) -> Found:
    """Buffers in the arena do not share bytes with each other or with the barriers, and start at multiples of 16."""
    spans = [(0, 8 * protocol.mbars, "the barriers")]
    spans += [(p.offset, p.offset + p.nbytes * p.sets, p.name) for p in protocol.places if p.in_arena]
    for start, _, name in spans:
        if start % VECTOR:
            yield PlanError(what=f"{name} is misplaced", sum=f"{start} % {VECTOR} = {start % VECTOR}")
    for (_, end, name), (start, _, following) in zip(sorted(spans), sorted(spans)[1:], strict=False):
        if start < end:
            yield PlanError(what=f"{name} and {following} overlap", sum=f"{start} < {end}")


RULES = (units, sources, landings, parts, overlaps)
