"""Timelines from marks that a simulated GPU left: clocks of their own on each SM, near their wrap, and a coarse global timer."""

from __future__ import annotations

import json

import pytest

from cfdsl.compiler.emit import Mark
from cfdsl.dsl.graph import Src
from cfdsl.errors import MarksMissing
from cfdsl.runtime.timeline import Record, chrome_trace, stage_times, timelines

LINE = Src("specs/block.py", 7, "y = cf.linear(x, w)")
MARKS = (
    Mark("consumer", "start"), Mark("producer", "start"), Mark("producer", "stream w", "4 tiles", (LINE,)), Mark("producer", "end"),
    Mark("consumer", "gemv", "w . x", (LINE, Src("specs/block.py", 8, "z = y"))), Mark("consumer", "sync"), Mark("consumer", "end"),
)  # fmt: skip
EPOCH = 1_700_000_000_123_456_789  # ns: does not fit a float64
GHZ = 1.7
Times = tuple[float, ...]  # of the marks, in ns after the epoch


def signed(value: int) -> int:
    value &= (1 << 32) - 1
    return value - (value >> 31 << 32)


def words(ctas: list[tuple[int, Times]], tick: int = 32) -> list[list[list[int]]]:
    """What the CTAs, each (SM, times of its marks), would leave. The clocks of SM k are k * 1e9 cycles ahead and wrap soon."""
    left = []
    for sm, times in ctas:
        mine = []
        for mark, at in zip(MARKS, times, strict=True):
            clock = signed(round(at * GHZ) + (1 << 32) - 5000 + sm * 10**9)
            timer = (EPOCH + round(at)) // tick * tick
            mine.append([clock, signed(timer), signed(timer >> 32), sm] if mark.is_anchor else [clock, 0, 0, 0])
        left.append(mine)
    return left


def shifted(times: Times, by: float) -> Times:
    return tuple(at + by for at in times)


ONE = (0.0, 10.0, 2000.0, 2100.0, 2500.0, 3000.0, 3010.0)  # in the order of MARKS


def of(records: list[Record], cta: int, label: str) -> Record:
    (found,) = (record for record in records if record.cta == cta and record.label == label)
    return found


@pytest.mark.parametrize("tick", [1, 32, 1024])
def test_times_of_many_launches_are_finer_than_the_timers_tick(tick: int) -> None:
    # 40 launches of two CTAs on two SMs: 4.3 us apart, so that the tick falls on another place each time
    starts = [4321.0 * k for k in range(40)]
    launches = [(MARKS, words([(3, shifted(ONE, at)), (90, shifted(ONE, at + 500))], tick)) for at in starts]
    found = timelines(launches)
    assert [len(records) for records in found] == [2 * 3] * 40  # the anchors are no steps
    slack = max(2, tick / 8)
    for at, records in zip(starts, found, strict=True):
        gemv, sync, stream = of(records, 0, "gemv"), of(records, 0, "sync"), of(records, 0, "stream w")
        assert gemv.end_ns - gemv.start_ns == pytest.approx(2500, rel=0.01)
        assert sync.start_ns == gemv.end_ns
        assert stream.end_ns - stream.start_ns == pytest.approx(1990, rel=0.01)
        assert of(records, 1, "gemv").start_ns - gemv.start_ns == pytest.approx(500, abs=slack)
        # the timer only ever lags: by half a tick on average
        assert gemv.start_ns - EPOCH == pytest.approx(at - tick / 2, abs=2 * slack)


def test_records_say_where_and_what() -> None:
    (records,) = timelines([(MARKS, words([(3, ONE), (90, ONE)]))])
    gemv = of(records, 1, "gemv")
    assert (gemv.sm, gemv.lane, gemv.step, gemv.text) == (90, "consumer", 4, "w . x")
    assert gemv.src == "block.py:7: y = cf.linear(x, w); block.py:8: z = y"
    assert {record.lane for record in records} == {"consumer", "producer"}


def test_a_pause_in_which_clocks_go_round_begins_anew() -> None:
    late = shifted(ONE, 5e9)
    first, second = timelines([(MARKS, words([(3, ONE)], 1)), (MARKS, words([(3, late)], 1))])
    for records, at in ((first, 0), (second, 5e9)):
        assert of(records, 0, "gemv").start_ns - EPOCH == pytest.approx(at, abs=3)
        assert of(records, 0, "gemv").end_ns - EPOCH == pytest.approx(at + 2500, abs=3)


def test_a_cta_without_marks_is_told() -> None:
    left = words([(3, ONE), (90, ONE)])
    left[1][MARKS.index(Mark("producer", "end"))] = [0, 0, 0, 0]
    with pytest.raises(MarksMissing, match="launch 0 of the recording has no times of CTA 1's producer"):
        timelines([(MARKS, left)])


def test_the_table() -> None:
    (records,) = timelines([(MARKS, words([(0, ONE), (1, ONE), (2, shifted(ONE, 1000))], 1))])
    rows = stage_times(records)
    assert [(row.lane, row.label) for row in rows] == [("consumer", "gemv"), ("consumer", "sync"), ("producer", "stream w")]
    gemv, sync, stream = rows
    assert (gemv.start_us, gemv.duration_us, gemv.latest_us) == pytest.approx((0.0, 2.5, 3.5), abs=0.01)
    assert (sync.start_us, sync.duration_us, sync.latest_us) == pytest.approx((2.5, 0.5, 4.0), abs=0.01)
    assert stream.start_us == pytest.approx(0.01, abs=0.005)
    assert stage_times([]) == []


def record(cta: int, sm: int, lane: str, step: int, start: int, end: int) -> Record:
    return Record(cta, sm, lane, step, f"step {step}", "text", "block.py:7: y", EPOCH + start, EPOCH + end)


def test_the_file_for_perfetto() -> None:
    first = [record(0, 3, "consumer", 4, 0, 1500), record(0, 3, "consumer", 5, 1500, 2000), record(0, 3, "producer", 2, 5, 900),
             record(1, 7, "consumer", 4, 100, 1600)]  # fmt: skip
    successor = [record(0, 3, "consumer", 4, 1800, 4000), record(1, 7, "consumer", 4, 1700, 4000)]
    made = chrome_trace([("first", first), ("second", successor)])
    assert json.loads(json.dumps(made)) == made
    events = [event for event in made["traceEvents"] if event["ph"] == "X"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in made["traceEvents"] if e["name"] == "thread_name"}
    assert {e["pid"]: e["args"]["name"] for e in made["traceEvents"] if e["name"] == "process_name"} == {3: "SM 3", 7: "SM 7"}
    assert {(e["pid"], e["tid"]) for e in events} == set(names)
    step = next(e for e in events if e["name"] == "step 5")
    assert (step["ts"], step["dur"], step["pid"]) == (1.5, 0.5, 3)  # microseconds
    assert step["args"] == {"kernel": "first", "cta": 0, "step": "text", "src": "block.py:7: y"}
    spans = {(e["name"], e["pid"]): e for e in events if e["name"] in ("first", "second")}
    assert (spans["first", 3]["ts"], spans["first", 3]["dur"]) == (0.0, 2.0)
    # on SM 3 the successor starts before its predecessor ends and gets threads of its own; on SM 7 it takes the same ones
    assert spans["second", 3]["tid"] != spans["first", 3]["tid"]
    assert spans["second", 7]["tid"] == spans["first", 7]["tid"]
    assert names[3, spans["first", 3]["tid"]] == "consumer"
    assert names[3, spans["second", 3]["tid"]] == "consumer, beside 1 more"


def test_events_of_a_thread_are_nested_or_apart() -> None:
    launches = [[record(c, c % 2, "consumer", s, 900 * k + 500 * s, 900 * k + 500 * s + 500) for c in range(4) for s in range(3)]
                for k in range(6)]  # fmt: skip
    made = chrome_trace([("kernel", records) for records in launches])
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in made["traceEvents"]:
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert sum(map(len, threads.values())) == 6 * 4 * (3 + 1)
    for spans in threads.values():
        for a in spans:
            assert all(a[1] <= b[0] or b[1] <= a[0] or (a[0] <= b[0] and b[1] <= a[1]) or (b[0] <= a[0] and a[1] <= b[1]) for b in spans)
