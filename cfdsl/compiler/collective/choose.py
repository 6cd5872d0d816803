"""Which algorithm does a collective: those that can, how long each is expected to take, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cfdsl.compiler.collective.design import Design
from cfdsl.compiler.collective.designs import ALGORITHMS, design, refusals
from cfdsl.compiler.collective.protocol import BULK, EACH, MEET, MULTICAST, OTHERS, PUSH, Act
from cfdsl.compiler.collective.request import WIDTH, Collective, mistakes
from cfdsl.compiler.parts import Part
from cfdsl.errors import AlgorithmUnsupported, ArgumentError, CfdslError, raise_all

TIE = 0.01  # of the least estimate: no estimate is so good that such a difference would mean anything


@dataclass(frozen=True)
class Candidate:
    """An algorithm with its expected SM cycles, or the reasons that speak against it.

    cycles   of one exchange inside of a kernel
    bring    of bringing x into shared memory, once a launch
    """

    algorithm: str
    cycles: float | None
    reasons: tuple[str, ...] = ()
    design: Design | None = None
    bring: float = 0.0

    @property
    def each(self) -> float:
        """Cycles of an exchange, with its share of what comes before the first."""
        assert self.cycles is not None
        assert self.design is not None
        return self.cycles + self.bring / self.design.request.repeat


def candidates(request: Collective, part: Part) -> tuple[Candidate, ...]:
    """Every algorithm, weighed or refused."""
    found = []
    for algorithm in ALGORITHMS:
        reasons = tuple(refusals(request, algorithm))
        made = None if reasons else design(request, algorithm)
        if made is not None and made.smem_bytes > part.smem_budget():
            reasons = (f"a CTA needs {made.smem_bytes:,} bytes of shared memory, the limit is {part.smem_budget():,}",)
        possible = made if made is not None and not reasons else None
        if possible is None:
            found.append(Candidate(algorithm, None, reasons))
        else:
            found.append(Candidate(algorithm, cycles(possible, part), reasons, possible, bring_cycles(possible, part)))
    return tuple(found)


def ranked(found: Iterable[Candidate]) -> list[Candidate]:
    """Those that are possible, fastest by estimate first; of those that tie with it, the one with fewest rounds and barriers is the first.

    That is their order in ALGORITHMS. With 2 ranks recursive doubling sends as much as a push does, one barrier later.
    """
    order = sorted((c for c in found if c.design is not None), key=lambda c: c.each)
    ties = [c for c in order if c.each <= (1 + TIE) * order[0].each]
    first = sorted(ties, key=lambda c: ALGORITHMS.index(c.algorithm))[:1]
    return [*first, *(c for c in order if c not in first)]


def asked_wrongly(request: Collective, part: Part, algorithm: str | None) -> Iterator[CfdslError]:
    """Everything that is wrong with asking for this, before any algorithm is weighed."""
    yield from mistakes(request, part)
    if algorithm is not None and algorithm not in ALGORITHMS:
        yield ArgumentError(argument="algorithm", expected=f"one of {', '.join(ALGORITHMS)}, or None", got=repr(algorithm))


def choose(request: Collective, part: Part, algorithm: str | None = None) -> tuple[Design, tuple[Candidate, ...]]:
    """The design to use, the fastest by estimate or the one that is asked for, and all that were weighed. Raises all mistakes at once."""
    raise_all(asked_wrongly(request, part, algorithm))
    found = candidates(request, part)
    possible = {c.algorithm: c for c in found if c.design is not None}
    if algorithm not in (*possible, None) or not possible:
        reasons = [(c.algorithm, reason) for c in found if algorithm in (None, c.algorithm) for reason in c.reasons]
        grows = request.kind == "gather" and request.cluster > 1
        raise AlgorithmUnsupported(request=request.text, algorithm=algorithm, reasons=reasons, possible=tuple(possible), grows=grows)
    best = possible[algorithm] if algorithm else ranked(found)[0]
    assert best.design is not None
    return best.design, found


def cycles(made: Design, part: Part) -> float:
    """SM cycles of one exchange: its rounds one after another, each with its way, its bytes, and the reading of what has come.

    Latencies and rates are those of `Timing`, where they come from stands there. A round's bytes leave a rank at the rate of stores or of
    bulk copies; a multicast's arrive at the rate of the L2. Off chip: stores, a barrier, and loads of what the others stored.
    """
    t = part.timing
    total = 0.0
    for act in made.protocol.acts:
        if act.do == PUSH and not act.lag:
            total += t.round_cycles + _way(act, made, part)
        if act.do == MEET:
            total += t.meet_cycles + made.bytes_global / t.meet_bytes_per_clk
    return total + _folded_bytes(made) / t.fold_bytes_per_clk


def bring_cycles(made: Design, part: Part) -> float:
    """SM cycles of a launch before its first exchange: x comes from device memory into shared memory. A multicast does that by itself.

    It decides at small sizes: with the launch, 256 bytes of each of 4 ranks were gathered in 0.91 us by multicast and in 1.17 by push,
    2 KB in 2.00 and 2.74 (H100 80GB HBM3, 2026-11-28: `bench collectives`), where an exchange by push alone is the shorter one.
    """
    if made.algorithm == "multicast":
        return 0.0
    t, request = part.timing, made.request
    return t.global_round_us * part.clock_ghz * 1000 + request.payload * request.width / t.port_bytes_per_clk


def _way(act: Act, made: Design, part: Part) -> float:
    t, ranks = part.timing, made.request.cluster
    if act.by == MULTICAST:
        return t.multicast_cycles + act.nbytes / t.multicast_bytes_per_clk
    nbytes = act.nbytes * {EACH: ranks, OTHERS: ranks - 1}.get(act.to, 1)
    if act.by == BULK:
        return t.bulk_cycles + nbytes / t.bulk_bytes_per_clk
    return t.st_async_cycles + nbytes / t.push_bytes_per_clk


def _folded_bytes(made: Design) -> int:
    """Bytes that one rank's threads read from shared memory to combine terms."""
    request = made.request
    if not request.folds:
        return 0
    row = made.sent_stride * WIDTH[made.sent_dtype]
    if made.algorithm == "doubling":
        return 2 * row * (request.cluster.bit_length() - 1)
    return row * request.cluster


def explain(found: tuple[Candidate, ...], chosen: Design) -> str:
    """What was weighed, fastest first, then what was refused and why."""
    lines = [f"{chosen.request.text}: {chosen.algorithm}, {chosen.warps} warps, {chosen.smem_bytes:,} B of shared memory"]
    for c in ranked(found):
        assert c.design is not None
        moved = f"pushes {c.design.bytes_pushed:,} B, device memory {c.design.bytes_global:,} B"
        lines.append(f"  {c.algorithm:15} {c.cycles:8,.0f} cycles expected, {c.bring:,.0f} a launch before the first; {moved}")
    lines += [f"  {c.algorithm:15} refused: {reason}" for c in found for reason in c.reasons]
    return "\n".join(lines) + "\n"
