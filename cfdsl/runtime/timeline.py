"""From the marks of traced launches to a timeline: when each CTA did what, as records, as a table, and as a file for Perfetto.

A mark has the clock of its SM, which counts cycles and says nothing to another SM's. The first and last mark of a lane also have the GPU's
global timer, which all SMs share and which ticks coarsely (32 ns and 1 us have been seen). So both are used: the cycles say how long
something took, and all the anchors of one SM together say what its clock was in the world's time, better than one tick would.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from cfdsl.compiler.emit import Mark
from cfdsl.errors import MarksMissing

Words = Sequence[Sequence[Sequence[int]]]  # of a launch: [cta][mark][word], as the kernel wrote them
LONGEST_GAP_NS = 1_000_000_000  # 2^31 cycles and more: beyond, a clock of 32 bits does not tell how often it went round
_MASK = (1 << 32) - 1


@dataclass(frozen=True)
class Record:
    """What one lane of one CTA did between two marks. `step` is the number of the later mark, `src` the spec's `file:line: text`.

    Times are in ns of the GPU's global timer, so those of several kernels can be compared.
    """

    cta: int
    sm: int
    lane: str
    step: int
    label: str
    text: str
    src: str
    start_ns: int
    end_ns: int


@dataclass
class _Lane:
    """One lane of one CTA of one launch: its clock at each of its marks, and the global timer at both ends."""

    launch: int
    cta: int
    sm: int
    marks: list[tuple[int, Mark]]
    cycles: list[int]  # since the lane's first mark
    clock: int
    timer: int
    end_timer: int
    at: float = 0.0  # when the first mark was, in ns, as all anchors of the SM have it


def timelines(launches: Sequence[tuple[Sequence[Mark], Words]]) -> list[list[Record]]:
    """The records of each launch, by CTA and lane. MarksMissing if a CTA did not run, or not to its end.

    Launches that were recorded together should be given together: more anchors, and a longer time between them, make a better clock.
    """
    lanes = [lane for index, (marks, words) in enumerate(launches) for lane in _lanes(index, marks, words)]
    base = min((lane.timer for lane in lanes), default=0)
    rate = _align(lanes, base)
    found: list[list[Record]] = [[] for _ in launches]
    for lane in lanes:
        times = [base + round(lane.at + cycles * rate) for cycles in lane.cycles]
        steps = zip(lane.marks[1:-1], pairwise(times), strict=False)  # the last mark is only an anchor
        found[lane.launch] += [
            Record(lane.cta, lane.sm, mark.lane, step, mark.label, mark.text, mark.line, start, end) for (step, mark), (start, end) in steps
        ]
    return found


def _lanes(launch: int, marks: Sequence[Mark], words: Words) -> Iterable[_Lane]:
    for cta, mine in enumerate(words):
        for name in dict.fromkeys(mark.lane for mark in marks):
            own = [(step, mark) for step, mark in enumerate(marks) if mark.lane == name]
            first, last = mine[own[0][0]], mine[own[-1][0]]
            if not (_timer(first) and _timer(last)):
                raise MarksMissing(launch=launch, cta=cta, lane=name)
            cycles = [(mine[step][0] - first[0]) & _MASK for step, _ in own]
            yield _Lane(launch, cta, first[3], own, cycles, first[0] & _MASK, _timer(first), _timer(last))


def _timer(words: Sequence[int]) -> int:
    return (words[2] & _MASK) << 32 | words[1] & _MASK


def _align(lanes: Sequence[_Lane], base: int) -> float:
    """Give every lane its start in ns after `base`; returns the ns of a cycle.

    The anchors of an SM, in order, are points (clock, timer) on one straight line. All SMs run at one rate: that of all their lines
    together. An SM's offset is the mean over its anchors; a pause of more than LONGEST_GAP_NS begins a new line.
    """
    lines = _lines(lanes)
    ns = sum(line[-1][1] - line[0][1] for line in lines)
    cycles = sum(line[-1][0] - line[0][0] for line in lines)
    rate = ns / cycles if cycles else 0.0
    for line in lines:
        offset = fmean(timer - base - clock * rate for clock, timer, _ in line)
        for clock, _, lane in line:
            if lane is not None:
                lane.at = offset + clock * rate
    return rate


def _lines(lanes: Sequence[_Lane]) -> list[list[tuple[int, int, _Lane | None]]]:
    """Per SM and run without a pause: (clock, counted on from the first anchor; timer; the lane that starts there, if one does)."""
    anchors: dict[int, list[tuple[int, int, _Lane | None]]] = defaultdict(list)
    for lane in lanes:
        anchors[lane.sm] += [(lane.timer, lane.clock, lane), (lane.end_timer, lane.clock + lane.cycles[-1], None)]
    lines = []
    for own in anchors.values():
        own.sort(key=lambda anchor: anchor[0])
        before, clock = own[0], 0
        line = [(0, before[0], before[2])]
        for now in own[1:]:
            if now[0] - before[0] > LONGEST_GAP_NS:
                lines.append(line)
                line, clock = [], 0
            else:
                step = (now[1] - before[1]) & _MASK
                clock += step - (1 << 32 if step >> 31 else 0)  # within one tick of the timer, a later clock may be sorted first
            line.append((clock, now[0], now[2]))
            before = now
        lines.append(line)
    return lines


# ---- what to make of it ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageTimes:
    """One step over all CTAs, in us after the launch's first mark: median start, median duration, latest end."""

    lane: str
    label: str
    src: str
    start_us: float
    duration_us: float
    latest_us: float


def stage_times(records: Sequence[Record]) -> list[StageTimes]:
    """A row per step of one launch, each lane in its order."""
    steps: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        steps[record.lane, record.step].append(record)
    zero = min((record.start_ns for record in records), default=0)
    return [
        StageTimes(
            lane,
            rows[0].label,
            rows[0].src,
            median(row.start_ns - zero for row in rows) / 1e3,
            median(row.end_ns - row.start_ns for row in rows) / 1e3,
            max(row.end_ns - zero for row in rows) / 1e3,
        )
        for (lane, _), rows in sorted(steps.items())
    ]


def chrome_trace(launches: Sequence[tuple[str, Sequence[Record]]]) -> dict[str, Any]:
    """The JSON object that Perfetto and chrome://tracing read: launches (kernel's name, records) in launch order, on one time axis.

    A process per SM; in it a pair of threads, consumer and producer, for each CTA that is on the SM at the same time (a successor under
    PDL starts before its predecessor ends). On the consumer's thread an event of the kernel's name spans the steps of a CTA. Complete
    events ("X"), in microseconds after the first of all.
    """
    every = [record for _, records in launches for record in records]
    zero = min((record.start_ns for record in every), default=0)
    events: list[dict[str, Any]] = []
    threads: dict[tuple[int, int], str] = {}
    for index, name, cta, slot in _slots(launches):
        lanes = list(dict.fromkeys(record.lane for record in cta))
        for number, lane in enumerate(lanes):
            own = [record for record in cta if record.lane == lane]
            at = {"pid": own[0].sm, "tid": 2 * slot + number + 1}
            threads[at["pid"], at["tid"]] = lane if slot == 0 else f"{lane}, beside {slot} more"
            if number == 0:
                span = {"launch": index, "cta": own[0].cta}
                events.append(_event(name, own[0].start_ns - zero, own[-1].end_ns - zero, at, span))
            for record in own:
                detail = {"kernel": name, "cta": record.cta, "step": record.text, "src": record.src}
                events.append(_event(record.label, record.start_ns - zero, record.end_ns - zero, at, detail))
    names = [_name("process_name", f"SM {sm}", pid=sm) for sm in sorted({pid for pid, _ in threads})]
    names += [_name("process_sort_index", sm, pid=sm) for sm in sorted({pid for pid, _ in threads})]
    names += [_name("thread_name", text, pid=pid, tid=tid) for (pid, tid), text in sorted(threads.items())]
    return {"displayTimeUnit": "ns", "traceEvents": [*names, *events]}


def _slots(launches: Sequence[tuple[str, Sequence[Record]]]) -> Iterable[tuple[int, str, list[Record], int]]:
    """Every CTA of every launch with the first of its SM's slots that is free when it starts: (launch, kernel, records, slot)."""
    ctas: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for index, (_, records) in enumerate(launches):
        for record in records:
            ctas[index, record.cta].append(record)
    busy: dict[int, list[int]] = defaultdict(list)  # SM -> when each of its slots is free again
    for (index, _), records in sorted(ctas.items(), key=lambda item: (min(record.start_ns for record in item[1]), item[0])):
        slots, start, end = busy[records[0].sm], min(r.start_ns for r in records), max(r.end_ns for r in records)
        slot = next((number for number, free in enumerate(slots) if free <= start), len(slots))
        slots[slot : slot + 1] = [end]
        yield index, launches[index][0], records, slot


def _event(name: str, start_ns: int, end_ns: int, at: dict[str, int], args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "X", "ts": start_ns / 1e3, "dur": (end_ns - start_ns) / 1e3, **at, "args": args}


def _name(kind: str, value: str | int, **at: int) -> dict[str, Any]:
    return {"name": kind, "ph": "M", **at, "args": {"sort_index" if isinstance(value, int) else "name": value}}
