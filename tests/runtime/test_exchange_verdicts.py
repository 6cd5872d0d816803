"""What follows from the rows of `bench collectives`; all numbers are made up by hand."""

from __future__ import annotations

from typing import Any

import pytest

from cfdsl.compiler.parts import PARTS
from cfdsl.runtime.exchange_bench import verdicts
from cfdsl.runtime.exchange_bench.paper import TABLE, cases

Row = dict[str, Any]


def row(operator: str, payload: int, algorithm: str, cycles: float, cluster: int = 4, chosen: bool = False, **rest: Any) -> Row:
    """A right row; it pushes payload * (cluster - 1) bytes unless it goes through global memory."""
    pushed = 0 if algorithm == "global" else payload * (cluster - 1)
    rate = pushed / cycles
    return {
        "operator": operator, "cluster": cluster, "payload": payload, "algorithm": algorithm, "cycles": cycles, "chosen": chosen,
        "on_chip": algorithm != "global", "error": None, "senders": cluster, "bytes_pushed": pushed, "b_per_clk": rate,
        "gbps_per_sm": rate * 2, "launch_us": 2.0, "dtype": "f32", **rest,
    }  # fmt: skip


def failed(operator: str, payload: int, algorithm: str, cluster: int = 4) -> Row:
    return {
        "operator": operator, "cluster": cluster, "payload": payload, "algorithm": algorithm, "chosen": True, "dtype": "f32",
        "on_chip": algorithm != "global", "error": "WrongResult: no",
    }  # fmt: skip


def pays(*rows: Row) -> list[tuple[str, int, int]]:
    """(verdict, lowest, highest payload) of all ranges."""
    return [(part["verdict"], *part["payloads"]) for entry in verdicts.when_it_pays(rows) for part in entry["ranges"]]


# ---- when it pays --------------------------------------------------------------------------------------------------------------------


def test_ranges_end_where_the_verdict_changes() -> None:
    on = [(4, 250), (512, 400), (4096, 900), (8192, 1590), (16384, 3000)]
    off = [(4, 1000), (512, 1000), (4096, 1200), (8192, 1600), (16384, 2000)]
    rows = [row("sum", payload, name, cycles) for name, side in (("push", on), ("global", off)) for payload, cycles in side]
    assert pays(*rows) == [("wins", 4, 4096), ("even", 8192, 8192), ("loses", 16384, 16384)]
    (entry,) = verdicts.when_it_pays(rows)
    assert (entry["operator"], entry["cluster"]) == ("sum", 4)
    assert entry["ranges"][0]["speedup"] == [pytest.approx(1200 / 900), pytest.approx(4.0)]
    assert entry["ranges"][2]["speedup"] == [pytest.approx(2 / 3), pytest.approx(2 / 3)]


def test_the_fastest_on_the_chip_counts_and_is_named() -> None:
    rows = [
        row("gather", 4, "push", 250), row("gather", 4, "bulk", 700), row("gather", 4, "global", 500),
        row("gather", 512, "push", 800), row("gather", 512, "bulk", 400), row("gather", 512, "global", 500),
    ]  # fmt: skip
    (entry,) = verdicts.when_it_pays(rows)
    assert entry["ranges"] == [
        {"verdict": "wins", "payloads": [4, 512], "speedup": [pytest.approx(1.25), pytest.approx(2.0)], "algorithms": ["push", "bulk"]}
    ]


@pytest.mark.parametrize(("cycles", "verdict"), [(949, "wins"), (951, "even"), (1049, "even"), (1051, "loses")])
def test_five_per_cent_are_even(cycles: float, verdict: str) -> None:
    assert pays(row("sum", 4, "push", cycles), row("sum", 4, "global", 1000)) == [(verdict, 4, 4)]


def test_where_one_side_is_missing_nothing_is_said() -> None:
    assert pays(row("sum", 4, "push", 250)) == []
    assert pays(row("sum", 4, "global", 1000), failed("sum", 4, "push")) == []
    assert pays(row("sum", 4, "global", 1000)) == []
    assert pays(row("sum", 4, "global", 1000, chosen=True)) == [("off chip", 4, 4)]
    assert pays(row("sum", 4, "push", 250), failed("sum", 4, "global")) == []


def test_a_range_does_not_reach_over_a_payload_that_nothing_is_known_of() -> None:
    rows = [row("sum", payload, name, cycles) for payload in (4, 4096) for name, cycles in (("push", 300), ("global", 900))]
    assert pays(*rows, row("sum", 512, "global", 900)) == [("wins", 4, 4), ("wins", 4096, 4096)]


def test_operators_and_sizes_are_apart_and_one_rank_is_no_exchange() -> None:
    pair = (("push", 300), ("global", 900))
    rows = [row(name, 4, how, t, cluster) for cluster in (8, 2, 1) for name in ("gather", "sum") for how, t in pair]
    assert [(entry["operator"], entry["cluster"]) for entry in verdicts.when_it_pays(rows)] == [
        ("sum", 2), ("sum", 8), ("gather", 2), ("gather", 8),
    ]  # fmt: skip


def test_a_multicast_is_no_way_for_what_a_cta_has_computed() -> None:
    rows = [row("gather", 4, "multicast", 100, chosen=True), row("gather", 4, "push", 500), row("gather", 4, "global", 400)]
    assert pays(*rows) == [("loses", 4, 4)]
    assert pays(rows[0], rows[2]) == []


# ---- the push bandwidth --------------------------------------------------------------------------------------------------------------


def test_the_push_bandwidth_is_of_the_largest_payloads() -> None:
    """sum: 49152 / 3072 = 16; gather: 49152 / 3277 = 15, and between its payloads (49152 - 24576) / (3277 - 1741) = 16."""
    rows = [
        row("sum", 16384, "push", 3072), row("gather", 16384, "push", 3277), row("gather", 8192, "push", 1741),
        row("sum", 512, "push", 50),  # faster per cycle, but not the largest
        row("gather", 16384, "bulk", 2000),  # not by st.async
        row("broadcast", 16384, "push", 1000, senders=1), row("max", 16384, "push", 3300, cluster=2), failed("min", 65536, "push"),
    ]  # fmt: skip
    found = verdicts.push_bandwidth(rows)
    assert set(found) == {2, 4}
    assert (found[4]["operator"], found[4]["payload"], found[4]["b_per_clk"]) == ("sum", 16384, pytest.approx(16.0))
    assert found[4]["marginal"] == pytest.approx(16.0)
    assert found[2]["marginal"] is None
    shares = [entry["of_push"] for entry in verdicts.with_share_of_push(rows, found)]
    assert shares[:2] == [pytest.approx(1.0), pytest.approx(49152 / 3277 / 16)]
    assert shares[-1] is None


def test_references_cite_the_part() -> None:
    assert verdicts.references(PARTS["h200"]) == {
        "one_way_cycles": 240,
        "push_b_per_clk": [16.0, 19.0],
        "source": "Timing in cfdsl/compiler/parts.py: measured on one H100 80GB HBM3, 2026-11",
    }


# ---- bars ----------------------------------------------------------------------------------------------------------------------------


def bars(rows: list[Row], table: list[Row] | None = None) -> list[tuple[str, bool | None]]:
    """(measured, met) of all bars."""
    return [(found["got"], found["met"]) for found in verdicts.bars(rows, table or [], verdicts.push_bandwidth(rows))]


@pytest.mark.parametrize(("cycles", "met"), [(350, True), (351, False)])
def test_the_bar_of_one_float_is_of_the_chosen_algorithm(cycles: float, met: bool) -> None:
    rows = [row("sum", 4, "push", cycles, chosen=True), row("sum", 4, "bulk", 100), row("sum", 4, "push", 100, cluster=2)]
    assert bars(rows)[0] == (f"{cycles} cycles (push)", met)


@pytest.mark.parametrize(("cycles", "met"), [(600, True), (601, False)])
def test_the_bar_of_512_bytes(cycles: float, met: bool) -> None:
    assert bars([row("sum", 512, "push", cycles, chosen=True)])[1] == (f"{cycles} cycles (push)", met)


def test_without_a_chosen_row_the_fastest_on_the_chip_counts() -> None:
    assert bars([row("sum", 4, "push", 400), row("sum", 4, "bulk", 300), row("sum", 4, "global", 200)])[0] == ("300 cycles (bulk)", True)


@pytest.mark.parametrize(("cycles", "share", "met"), [(3600, "85%", True), (3640, "84%", False)])
def test_large_gathers_against_the_push_bandwidth(cycles: float, share: str, met: bool) -> None:
    """The reference pushes 49152 bytes in 3072 cycles, 16 a cycle; 49152 / 3600 is 13.65, 85.3 %; 49152 / 3640 is 13.5, 84.4 %."""
    gathers = [row("gather", 16384, "push", cycles, chosen=True), row("gather", 512, "push", 400, chosen=True)]
    rows = [row("sum", 16384, "push", 3072), *gathers]
    got, found = bars(rows)[2]
    assert found is met
    assert got.startswith(f"{share}: {49152 / cycles:.1f} of 16.0 B/clk/SM (push; sum of 16,384 B)")


def test_a_gather_that_is_the_reference_says_so() -> None:
    assert bars([row("gather", 16384, "push", 3072, chosen=True)])[2] == ("100%: 16.0 of 16.0 B/clk/SM (push; which is this row)", True)


def test_where_a_multicast_is_chosen_the_gather_from_shared_memory_has_a_bar_too() -> None:
    """49152 bytes: in 1536 cycles 32 a cycle, twice the 16 of the push; in 4096 cycles 12, 75 %."""
    rows = [row("gather", 16384, "multicast", 1536, chosen=True), row("gather", 16384, "bulk", 4096), row("sum", 16384, "push", 3072)]
    assert bars(rows)[2:] == [
        ("200%: 32.0 of 16.0 B/clk/SM (multicast; sum of 16,384 B)", True),
        ("75%: 12.0 of 16.0 B/clk/SM (bulk; sum of 16,384 B)", False),
    ]
    assert bars(rows[::2])[3] == ("not measured", None)


def test_the_share_without_latency_is_told_beside_the_bar() -> None:
    """Between the gathers 24576 bytes in 1536 cycles: 16 a cycle; the larger one 49152 / 3413 = 14.4, 90 % of it."""
    rows = [row("gather", 16384, "push", 3413, chosen=True), row("gather", 8192, "push", 1877)]
    assert bars(rows)[2] == ("100%: 14.4 of 14.4 B/clk/SM (push; which is this row); 90% of 16.0 without latency", True)


def test_small_gathers_tell_nothing() -> None:
    assert bars([row("gather", 512, "push", 300, chosen=True)])[2] == ("not measured", None)
    assert bars([row("gather", 8192, "bulk", 3000, chosen=True)])[2] == ("no push was measured at this cluster size", None)


def test_where_the_chosen_one_is_wrong_no_other_stands_in_for_it() -> None:
    rows = [failed("sum", 4, "push"), row("sum", 4, "bulk", 100), failed("gather", 8192, "bulk"), row("gather", 8192, "push", 1600)]
    assert bars(rows) == [("WrongResult: no", None), ("not measured", None), ("WrongResult: no", None)]


def test_nothing_measured_is_neither_met_nor_missed() -> None:
    assert bars([]) == [("not measured", None)] * 3


# ---- the paper's table ---------------------------------------------------------------------------------------------------------------


def test_the_papers_numbers() -> None:
    assert [(line.operator, line.size >> 10, line.on_chip_us, line.off_chip_us) for line in TABLE] == [
        ("sum", 32, 6.77, 8.03), ("sum", 256, 9.17, 22.44), ("gather", 32, 3.90, 6.26), ("gather", 256, 4.15, 6.61),
    ]  # fmt: skip


def test_equal_counting_is_the_total_of_32_clusters_of_4() -> None:
    """32 KB / 128 CTAs = 256 B, 256 KB / 128 = 2 KB; of one cluster 8 KB and 64 KB per CTA."""
    assert [line.payload("total") for line in TABLE] == [256, 2048, 256, 2048]
    assert [line.payload("cluster") for line in TABLE] == [8192, 65536, 8192, 65536]
    on, off = cases(TABLE[0], "total")
    assert (on.clusters, on.cluster, on.shape, on.dtype, on.algorithm, on.builds) == (32, 4, (128,), "f16", None, ((1, False),))
    assert off.algorithm == "global"


def table(us: float) -> list[Row]:
    mine = [row("sum", 256, "push", 1.0, launch_us=us), row("sum", 256, "global", 1.0, launch_us=4.0)]
    return verdicts.paper_table({("total", TABLE[0]): mine, ("cluster", TABLE[0]): mine})


@pytest.mark.parametrize(("us", "met"), [(3.38, True), (3.39, False)])
def test_twice_as_fast_as_the_papers_row(us: float, met: bool) -> None:
    """6.77 / 3.38 = 2.003, 6.77 / 3.39 = 1.997. The other reading has no bar."""
    found = verdicts.bars([], table(us), {})
    assert [one["met"] for one in found] == [met, None, None, None]
    assert found[0]["name"] == "reduce of 32 KB, with a launch"
    assert found[0]["wanted"] == "2x as fast as 6.77 us"
    assert found[0]["got"] == f"{us} us: 2.00x (push)"
    assert table(us)[0]["off_chip_us"] == 4.0


def test_a_failed_row_beside_the_paper_is_not_met() -> None:
    (line,) = verdicts.paper_table({("total", TABLE[0]): [failed("sum", 256, "push")]})
    assert (line["us"], line["speedup"], line["error"]) == (None, None, "WrongResult: no")
    assert verdicts.bars([], [line], {})[0] == {
        "name": "reduce of 32 KB, with a launch", "wanted": "2x as fast as 6.77 us", "got": "WrongResult: no", "met": None,
    }  # fmt: skip
