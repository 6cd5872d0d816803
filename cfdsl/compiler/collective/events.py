"""What `check` knows of a protocol's run: each rank on its way, every push, and every use of a buffer.

An event's number in its rank is its time; what an event knows is, for each rank, the last event that has surely happened before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.compiler.collective.protocol import Act

Clock = list[int]
Slot = tuple[int, str, int]  # rank, place, set
Phase = tuple[int, int, int, int]  # rank, round, set, number of the phase


@dataclass(frozen=True)
class Sent:
    """One push: from whom, in which call, what it knew when it was issued, and where it lands."""

    rank: int
    act: Act
    call: int
    nbytes: int
    knows: tuple[int, ...]
    lands: Slot


@dataclass
class Run:
    """A rank on its way: its script, how far it is, what it knows of each rank (`clock`), and its last barrier (`synced`)."""

    rank: int
    script: list[tuple[Act, int]]
    clock: Clock
    at: int = 0
    synced: int = 0
    fenced: int = -1

    @property
    def published(self) -> tuple[int, ...]:
        """What a push of any thread may count on: own events only up to the last consumer barrier."""
        known = list(self.clock)
        known[self.rank] = self.synced
        return tuple(known)


@dataclass(frozen=True)
class Use:
    """A read or a write of a place, by event `at` of `rank`, in which `knows` was known."""

    slot: Slot
    rank: int
    call: int
    at: int
    knows: tuple[int, ...]
    what: str = ""
