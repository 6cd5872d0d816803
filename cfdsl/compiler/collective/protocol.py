"""How one exchange goes, as a record: who writes, sends, waits for and reads what, in which order. `check` proves it.

A protocol mirrors the functions of `primitives.collectives`, `doubling` and `offchip`, which tests hold against it act by act.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SYNC, FENCE, WRITE, READ, PUSH, WAIT, ARM, MEET = "sync", "fence", "write", "read", "push", "wait", "arm", "meet"
ST_ASYNC, BULK, MULTICAST = "st.async", "bulk", "multicast"
EACH, OTHERS, PARTNER, ROOT = "each", "others", "partner", "root"


@dataclass(frozen=True)
class Act:
    """One thing that the consumer threads of a rank do in call i.

    do       sync: the consumer barrier. fence: the proxy fence, by each thread. write, read: own threads, of `places`.
             push: `nbytes` of `places` (none: of a register, or by multicast of device memory) to each of the ranks `to`, landing in
             `lands`, counted on the barrier of round `round`. Peer p gets the bytes from p * `step` on; those of rank r land from
             r * `apart` on.
             wait: for round `round` of call i - `lag`. arm: thread 0, the same barrier, for the next call that uses it.
             meet: all ranks' barrier in device memory
    only     "": every rank does it; "root": rank 0 alone
    by       what moves the bytes of a push
    caller   the barrier is one that the caller owes
    lag      the act is about call i - `lag`, and left out while there is none
    """

    do: str
    places: tuple[str, ...] = ()
    round: int = 0
    nbytes: int = 0
    to: str = ""
    lands: str = ""
    by: str = ""
    only: str = ""
    lag: int = 0
    step: int = 0
    apart: int = 0
    caller: bool = False

    @property
    def text(self) -> str:
        what = ", ".join(self.places)
        who = "rank 0: " if self.only else ""
        of = f" of call i - {self.lag}" if self.lag else ""
        if self.do == PUSH:
            source = what or ("device memory" if self.by == MULTICAST else "a register")
            return f"{who}{self.by} {self.nbytes} B of {source} to {self.to}, into {self.lands}, on round {self.round}{of}"
        if self.do in (WAIT, ARM):
            return f"{who}{self.do} round {self.round}{of}"
        return f"{who}{self.do} {what}".rstrip() + of


@dataclass(frozen=True)
class Place:
    """A buffer: in each rank's arena at `offset`, `sets` of `nbytes` used in turn. `offchip`: in device memory, a row of each rank.

    `part_of` another one: it has no place of its own, and is told apart because it is used at other times.
    """

    name: str
    nbytes: int
    sets: int = 1
    offset: int = 0
    offchip: bool = False
    part_of: str = ""

    @property
    def in_arena(self) -> bool:
        return not (self.offchip or self.part_of)


@dataclass(frozen=True)
class Protocol:
    """One collective's protocol on a cluster of `ranks`.

    tx      bytes that each round's barrier is armed with, for every rank; `sets` barriers to a round are used in turn
    before  acts before the first call
    acts    of one call, in order, the caller's writing of the source and reading of the result among them
    ending  acts after the last call, where i is the number of calls
    closes  whether the cluster meets once more before anybody exits
    meets   whether it meets before the first call
    """

    ranks: int
    tx: tuple[int, ...]
    sets: int
    places: tuple[Place, ...]
    acts: tuple[Act, ...]
    before: tuple[Act, ...] = ()
    ending: tuple[Act, ...] = ()
    closes: bool = False
    meets: bool = True

    @property
    def mbars(self) -> int:
        return len(self.tx) * self.sets

    def place(self, name: str) -> Place:
        """The buffer of this name."""
        return next(place for place in self.places if place.name == name)

    def peers(self, act: Act, rank: int) -> Iterator[int]:
        """Whom `rank` pushes to."""
        if act.to == ROOT:
            yield 0
        elif act.to == PARTNER:
            yield rank ^ (1 << act.round)
        else:
            yield from (peer for peer in range(self.ranks) if act.to != OTHERS or peer != rank)

    def arriving(self, act: Act, rank: int) -> int:
        """Bytes that one push of `rank` brings to each of its peers. A multicast's are spread over the ranks in chunks of 16."""
        if act.by != MULTICAST:
            return act.nbytes
        chunks = act.nbytes // 16
        return 16 * ((rank + 1) * chunks // self.ranks - rank * chunks // self.ranks)

    def landing(self, act: Act, rank: int) -> int:
        """Where in its landing place the bytes of `rank` begin."""
        return rank * act.apart if act.by != MULTICAST else 16 * (rank * (act.nbytes // 16) // self.ranks)

    def sent(self) -> int:
        """Bytes that go to other ranks in one call, of the rank that sends most."""
        each = []
        for rank in range(self.ranks):
            acts = [act for act in self.acts if act.do == PUSH and (rank == 0 or not act.only)]
            each.append(sum(self.arriving(act, rank) for act in acts for peer in self.peers(act, rank) if peer != rank))
        return max(each)


def wait(round: int, **more: object) -> tuple[Act, Act]:
    """Wait for a round, and arm its barrier again."""
    return Act(WAIT, round=round, **more), Act(ARM, round=round, **more)  # type: ignore[arg-type]


def protocol_text(protocol: Protocol) -> str:
    """The protocol as aligned lines."""
    armed = ", ".join(map(str, protocol.tx)) or "0"
    lines = [f"cluster of {protocol.ranks}; {protocol.mbars} barriers in {protocol.sets} sets, armed with {armed} B"]
    for place in protocol.places:
        where = "device memory" if place.offchip else f"in {place.part_of}" if place.part_of else f"at {place.offset:6}"
        lines.append(f"  {place.name:10} {where}, {place.sets} x {place.nbytes} B")
    lines += ["call i"] + [f"  {n:3} {act.text}" for n, act in enumerate(protocol.acts)]
    if protocol.ending:
        lines += ["after the last call"] + [f"  {n:3} {act.text}" for n, act in enumerate(protocol.ending)]
    if protocol.closes:
        lines.append("the cluster meets before anybody exits")
    return "\n".join(lines) + "\n"
