"""Proof of a protocol, on the host: several calls in a row by all ranks, in whatever order their threads may run.

Every act of every rank is an event. What must have happened before an event is known from program order, consumer barriers, waits (which
follow every push that the phase counts), and meetings; never from how fast somebody is. From that knowledge follows, or does not:

    bytes      a phase is armed once, with exactly the bytes that are pushed to it, after the phase before was waited for (another arrival
               in a phase that still runs would end it early, or break the barrier) and before any of them can land
    phases     a push for the next phase of a barrier comes after every thread of its owner has seen the last one end
    reuse      a place is overwritten, by whomever, after everybody has read what was there
    reading    what is read or pushed has been written or has landed, is synchronised, and is fenced for the engine that copies it
    leaving    nobody exits before all that is sent to it has landed, and all that its engine reads has arrived

That places have room for what is in them, `check_bytes` proves.

`Run` is what a rank knows; an event's number in its rank is its time. A wait tells every thread; own events count for others only up to
the last consumer barrier, as threads run apart in between.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from cfdsl.compiler.check import MAX_TX
from cfdsl.compiler.collective.check_bytes import byte_faults
from cfdsl.compiler.collective.events import Phase, Run, Sent, Slot, Use
from cfdsl.compiler.collective.protocol import ARM, BULK, FENCE, MEET, PUSH, READ, SYNC, WAIT, WRITE, Act, Protocol
from cfdsl.errors import CfdslError, PlanError, raise_all

CALLS = 6  # enough for each set to be used three times: what goes wrong later has gone wrong by then


class Proof:
    """All ranks' runs of `calls` calls, and the mistakes found on the way. What depends on who is faster is looked at when all is known."""

    def __init__(self, protocol: Protocol, calls: int = CALLS) -> None:
        self.protocol, self.calls = protocol, calls
        ranks = range(protocol.ranks)
        self.runs = [Run(rank, list(self._script(rank)), [0] * protocol.ranks) for rank in ranks]
        self.pushes: dict[Phase, list[Sent]] = {}
        self.landed: dict[Slot, list[Sent]] = {}
        self.copied: dict[Slot, list[Sent]] = {}  # bulk copies, by what they read
        self.reads: dict[Slot, list[Use]] = {}
        self.writes: dict[Slot, list[Use]] = {}  # by the owner's own threads, and by peers
        self.waits: dict[Phase, int] = {}
        self.arms: dict[Phase, list[int]] = {}
        self.errors: dict[str, PlanError] = {}

    # ---- scripts -------------------------------------------------------------------------------------------------------------------

    def _script(self, rank: int) -> Iterator[tuple[Act, int]]:
        protocol = self.protocol
        parts = [(protocol.before, 0), *((protocol.acts, call) for call in range(self.calls)), (protocol.ending, self.calls)]
        for acts, call in parts:
            for act in acts:
                if call >= act.lag and (rank == 0 or not act.only):
                    yield act, call - act.lag

    def phase(self, rank: int, act: Act, call: int) -> Phase:
        """Which phase of which barrier an act is about."""
        sets = self.protocol.sets
        return rank, act.round, call % sets, call // sets

    def slot(self, rank: int, name: str, call: int) -> Slot:
        """Which copy of a buffer a call uses."""
        return rank, name, call % self.protocol.place(name).sets

    def wrong(self, what: str, total: str) -> None:
        """Note a mistake, each once."""
        self.errors.setdefault(what, PlanError(what=what, sum=total))

    # ---- running -------------------------------------------------------------------------------------------------------------------

    def run(self) -> list[PlanError]:
        """Every mistake."""
        for run in self.runs:
            for r in range(len(self.protocol.tx)):
                for s in range(self.protocol.sets):
                    self.arms[(run.rank, r, s, 0)] = [0]
            run.clock[run.rank] = run.at = 1
            run.synced = 1
        if self.protocol.meets:
            for run in self.runs:
                run.clock = [1] * self.protocol.ranks
        steps = [0] * self.protocol.ranks
        moved = True
        while moved:
            moved = False
            for run in self.runs:
                while steps[run.rank] < len(run.script) and self._ready(run, *run.script[steps[run.rank]], steps):
                    self._do(run, *run.script[steps[run.rank]])
                    steps[run.rank] += 1
                    moved = True
        for run, step in zip(self.runs, steps, strict=True):
            if step < len(run.script):
                act, call = run.script[step]
                self.wrong("a wait never ends", f"rank {run.rank}, call {call}: {act.text}")
        if not any("never ends" in what for what in self.errors):
            self._after()
        return list(self.errors.values())

    def _ready(self, run: Run, act: Act, call: int, steps: list[int]) -> bool:
        """Whether a wait's pushes have been issued, or all have come to a meeting."""
        if act.do == WAIT:
            sent = sum(push.nbytes for push in self.pushes.get(self.phase(run.rank, act, call), ()))
            return sent >= self.protocol.tx[act.round]
        if act.do == MEET:
            return all(steps[other.rank] >= other.script.index((act, call)) for other in self.runs)
        return True

    def _do(self, run: Run, act: Act, call: int) -> None:
        run.at += 1
        run.clock[run.rank] = run.at
        if act.do == SYNC:
            run.synced = run.at
        elif act.do == FENCE:
            run.fenced = run.at
        elif act.do == WRITE:
            for name in act.places:
                self._write(run, name, call)
        elif act.do == READ:
            for name in act.places:
                self._read(run, name, call)
        elif act.do == PUSH:
            self._push(run, act, call)
        elif act.do == WAIT:
            self._wait(run, act, call)
        elif act.do == ARM:
            self._arm(run, act, call)
        elif act.do == MEET:
            self._meet(run, act, call)

    def _arm(self, run: Run, act: Act, call: int) -> None:
        """By thread 0, which knows what it has waited for itself, as all threads have."""
        rank, r, s, number = phase = self.phase(run.rank, act, call)
        if phase not in self.waits:
            self.wrong(f"round {r} is armed again before its phase was waited for", f"rank {rank}, set {s}, phase {number}")
        self.arms.setdefault((rank, r, s, number + 1), []).append(run.at)

    def _meet(self, run: Run, act: Act, call: int) -> None:
        """A consumer barrier, then everybody's knowledge as they came to it, then a consumer barrier."""
        run.synced = run.at
        for other in self.runs:
            arrived = next(n for n, step in enumerate(other.script) if step == (act, call))
            run.clock[other.rank] = max(run.clock[other.rank], arrived + 2)  # events are numbered from 2: 1 is making the barriers

    # ---- reading and writing -------------------------------------------------------------------------------------------------------

    def _owner(self, run: Run, name: str) -> tuple[int, ...]:
        return tuple(range(self.protocol.ranks)) if self.protocol.place(name).offchip else (run.rank,)

    def _read(self, run: Run, name: str, call: int) -> None:
        for owner in self._owner(run, name):
            slot = self.slot(owner, name, call)
            own = [use for use in self.writes.get(slot, ()) if use.what == name and use.call <= call]
            for use in own[-1:]:
                if (run.synced if owner == run.rank else run.clock[owner]) < use.at:
                    self.wrong(f"{name} is read without a barrier after it was written", f"rank {run.rank}, call {call}")
            self._has_landed(run, slot, call)
            self.reads.setdefault(slot, []).append(Use(slot, run.rank, call, run.at, run.published))

    def _has_landed(self, run: Run, slot: Slot, call: int) -> None:
        landed = [push for push in self.landed.get(slot, ()) if push.call == call]
        for push in landed:
            if self.phase(run.rank, push.act, push.call) not in self.waits:
                self.wrong(f"{slot[1]} is read before it has landed", f"rank {run.rank}, call {call}, from rank {push.rank}")
        if not landed and any(act.do == PUSH and act.lands == slot[1] for act in self.protocol.acts):
            self.wrong(f"{slot[1]} is read before it was sent", f"rank {run.rank}, call {call}")

    def _write(self, run: Run, name: str, call: int) -> None:
        slot = self.slot(run.rank, name, call)
        self.writes.setdefault(slot, []).append(Use(slot, run.rank, call, run.at, run.published, name))

    def _overwritten(self) -> None:
        """Every write, own or a peer's, comes after all reads of what was there."""
        for slot, writes in self.writes.items():
            for write in writes:
                total = f"rank {write.rank}, call {write.call}"
                for use in self.reads.get(slot, ()):
                    before = use.call < write.call or (use.rank == write.rank and use.at < write.at)
                    if before and write.knows[use.rank] < use.at:
                        total += f": read by rank {use.rank} at its event {use.at}, of which {write.knows[use.rank]} are known"
                        self.wrong(f"{slot[1]} is overwritten{' by a peer' * (write.what != slot[1])} while it may still be read", total)
                for push in self.copied.get(slot, ()):
                    landed = self.waits.get(self.phase(push.lands[0], push.act, push.call), 1 << 30)
                    if push.call < write.call and write.knows[push.lands[0]] < landed:
                        self.wrong(f"{slot[1]} is overwritten while a bulk copy still reads it", total)

    # ---- pushes and waits ----------------------------------------------------------------------------------------------------------

    def _push(self, run: Run, act: Act, call: int) -> None:
        reads = tuple(self.slot(run.rank, name, call) for name in act.places)
        for slot in reads:
            self._pushable(run, act, slot, call)
        for peer in self.protocol.peers(act, run.rank):
            lands, total = self.slot(peer, act.lands, call), f"rank {run.rank} to rank {peer}, call {call}"
            sent = Sent(run.rank, act, call, self.protocol.arriving(act, run.rank), run.published, lands)
            phase = self.phase(peer, act, call)
            if run.published[peer] < 1:
                self.wrong("a push before the cluster has met: the peer's barrier may not be made", total)
            self.pushes.setdefault(phase, []).append(sent)
            self.landed.setdefault(lands, []).append(sent)
            for slot in reads if act.by == BULK else ():
                self.copied.setdefault(slot, []).append(sent)
            self.writes.setdefault(lands, []).append(Use(lands, run.rank, call, run.at, run.published, "a peer"))
        for slot in reads:  # an engine goes on reading: `_overwritten` looks at that
            self.reads.setdefault(slot, []).append(Use(slot, run.rank, call, run.at, run.published))

    def _counted_right(self, phase: Phase, push: Sent) -> None:
        """A push knows that the phase before its own has ended and that its own is armed."""
        rank, r, s, number = phase
        total = f"rank {push.rank} to rank {rank}, call {push.call}"
        seen = self.waits.get((rank, r, s, number - 1), 1 << 30)
        if number and push.knows[rank] < seen:
            self.wrong(f"a push to round {r} may be counted for the phase before", total)
        armed = self.arms.get(phase, [1 << 30])
        if push.knows[rank] < armed[0]:
            self.wrong(f"a push to round {r} may land before its barrier is armed", total)

    def _pushable(self, run: Run, act: Act, slot: Slot, call: int) -> None:
        total = f"rank {run.rank}, call {call}: {act.text}"
        for use in [use for use in self.writes.get(slot, ()) if use.what == slot[1]][-1:]:
            if run.synced < use.at:
                self.wrong(f"{slot[1]} is pushed without a barrier after it was written", total)
            if act.by == BULK and not use.at < run.fenced < run.synced:
                self.wrong(f"{slot[1]} is copied without a proxy fence between its writes and the barrier", total)
        self._has_landed(run, slot, call)

    def _wait(self, run: Run, act: Act, call: int) -> None:
        phase = self.phase(run.rank, act, call)
        self.waits[phase] = run.at
        for push in self.pushes.get(phase, ()):
            run.clock = [max(pair) for pair in zip(run.clock, push.knows, strict=True)]
            run.clock[run.rank] = run.at

    # ---- at the end ----------------------------------------------------------------------------------------------------------------

    def _after(self) -> None:
        protocol = self.protocol
        self._overwritten()
        for (rank, r, s, number), pushes in self.pushes.items():
            total = sum(push.nbytes for push in pushes)
            where = f"rank {rank}, set {s}, phase {number}"
            if total != protocol.tx[r]:
                spelled = " + ".join(str(push.nbytes) for push in pushes)
                self.wrong(f"round {r} is armed with {protocol.tx[r]} bytes, but {total} arrive", f"{where}: {spelled} = {total}")
            if (rank, r, s, number) not in self.waits:
                self.wrong("a rank may leave while a peer still writes to it", f"{where} of round {r} is not waited for")
            arms = len(self.arms.get((rank, r, s, number), ()))
            if arms != 1:
                self.wrong(f"a phase of round {r} is not armed exactly once", f"{where}: {arms} times")
            for push in pushes:
                self._counted_right((rank, r, s, number), push)
                if push.act.by == BULK and not protocol.closes and self._unheard(push):
                    self.wrong("a rank may leave while its own bulk copies are still read", f"rank {push.rank}, call {push.call}")
        for r, nbytes in enumerate(protocol.tx):
            if nbytes > MAX_TX:
                self.wrong(f"round {r} waits for more than a phase can count", f"{nbytes} > {MAX_TX}")

    def _unheard(self, push: Sent) -> bool:
        """Whether the sender ends without knowing that the peer has received."""
        landed = self.waits.get(self.phase(push.lands[0], push.act, push.call))
        return landed is None or self.runs[push.rank].clock[push.lands[0]] < landed


def faults(protocol: Protocol) -> list[CfdslError]:
    """Everything that is wrong with a protocol."""
    return [*Proof(protocol).run(), *byte_faults(protocol)]


@functools.lru_cache(maxsize=1024)
def _proved(protocol: Protocol) -> tuple[CfdslError, ...]:
    return tuple(faults(protocol))


def check(protocol: Protocol) -> None:
    """Raise everything that is wrong with a protocol. Equal protocols are proved once."""
    raise_all(_proved(protocol))
