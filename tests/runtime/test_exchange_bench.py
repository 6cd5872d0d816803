"""`bench collectives`, on a CPU: cases, checks and times, with kernels whose cycles follow a formula (see fake_exchange.py)."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cfdsl.compiler.parts import PARTS
from cfdsl.errors import UnknownPart
from cfdsl.runtime import measure
from cfdsl.runtime.arguments import DTYPES
from cfdsl.runtime.exchange_bench import run, timing
from cfdsl.runtime.exchange_bench.cases import BASES, DEFAULT, OPERATORS, PAYLOADS, Case, Grid, expand, grids, resident
from cfdsl.runtime.exchange_bench.reference import expected, inputs, largest_error, tolerance
from cfdsl.runtime.exchange_bench.warm import warm

sys.path.insert(0, str(Path(__file__).parent))

from fake_exchange import FIXED, GHZ, LAUNCH_US, FakeFactory, FakeKernel, possible

H100 = PARTS["h100-sxm"]
SMALL = Grid((4,), (4, 512), ("sum",), ("chosen", "global"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeFactory:
    """Kernels with a formula for a clock; what only a GPU can answer is a stand-in."""
    factory = FakeFactory()
    monkeypatch.setattr(measure, "time_graph", lambda *given: factory.time_graph(*given))
    monkeypatch.setattr(measure, "environment", lambda: {"gpu": "none", "date": "2026-11-23"})
    monkeypatch.setattr(timing, "TIMED_LAUNCHES", 3)
    return factory


def bench(factory: FakeFactory, *asked: Grid, **rest: Any) -> dict[str, Any]:
    settings = {"with_paper": False, "runs": 3, "possible": possible, "device": "cpu", **rest}
    return run.bench_collectives(H100, asked or (SMALL,), factory=factory, **settings)


# ---- cases ---------------------------------------------------------------------------------------------------------------------------


def test_the_default_grid_is_every_algorithm_of_two_operators_and_the_chosen_one_of_others() -> None:
    cases, left_out = expand(DEFAULT, H100, possible)
    for operator, cluster, names in (("gather", 8, [None, "push", "bulk", "global"]), ("lse", 4, [None, "global"]), ("lse", 8, [])):
        assert [case.algorithm for case in cases if (case.operator, case.cluster, case.payload) == (operator, cluster, 512)] == names
    assert {case.operator for case in cases} == set(OPERATORS)
    assert left_out == ["reduce_scatter of 4 B over 4: no algorithm can do it"]
    assert len(set(cases)) == len(cases)


def test_the_page_says_what_the_grids_have() -> None:
    page = (Path(__file__).parents[2] / "docs" / "collectives.md").read_text()
    for grid in (*DEFAULT, BASES["quick"], BASES["full"]):
        payloads = [f"{n >> 10}K" if n >= 1024 else str(n) for n in grid.payloads]
        cells = [", ".join(map(str, axis)) for axis in (grid.operators, grid.cluster_sizes, payloads, grid.algorithms)]
        assert f"| {' | '.join(cells)} |" in page
    assert {case.dtype for case in expand((*DEFAULT, BASES["full"]), H100, possible)[0]} == {"f32"}


def test_clusters_are_those_that_the_part_holds() -> None:
    assert [resident(H100, cluster) for cluster in (1, 2, 4, 8, 16)] == [132, 66, 30, 15, 7]
    assert resident(PARTS["b200"], 4) == 148 // 4  # nobody has measured how clusters pack there
    assert expand([Grid((16,), (4,), ("sum",), ("all",))], PARTS["rtx-pro-6000"], possible) == (
        [],
        ["sum of 4 B over 16: the part has no clusters of this size"],
    )


def test_axes_that_are_given_replace_those_of_the_mode() -> None:
    assert grids("default", cluster_sizes=None) == DEFAULT
    assert grids("default", payloads=(64,)) == (Grid((2, 4, 8, 16), (64,), ("sum", "gather"), ("all",)),)
    assert grids("quick", operators=("lse",))[0].operators == ("lse",)
    (full,) = grids("full")
    assert set(full.operators) == set(OPERATORS)
    assert set(PAYLOADS) <= set(full.payloads)
    assert list(full.payloads) == sorted(set(full.payloads))


def test_what_is_refused_is_left_out_with_its_reason() -> None:
    def refuse(kind: str, **rest: Any) -> list[str]:
        raise UnknownPart(name="x", known=("y",))

    assert expand([SMALL], H100, refuse)[1][0] == f"sum of 4 B over 4: {str(UnknownPart(name='x', known=('y',))).splitlines()[0]}"
    grid = Grid((4,), (65536,), ("gather",), ("push",))
    assert expand([grid], H100, possible) == ([], ["gather of 65,536 B over 4: by push it is not possible"])


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        (Case("sum", 4, 512, 1), (128,)),
        (Case("sum", 4, 512, 1, dtype="f16"), (256,)),
        (Case("lse", 4, 64, 1), (1, 16)),
        (Case("lse", 4, 2048, 1), (4, 128)),
        (Case("lse", 4, 1600, 1), (25, 16)),
        (Case("lse", 4, 516, 1), (129, 1)),  # refused: no dim that is a multiple of 4
    ],
)
def test_payloads_are_bytes_of_one_rank(case: Case, shape: tuple[int, ...]) -> None:
    assert case.shape == shape
    assert inputs(case, "cpu")[0][0, 0].nbytes == case.payload


# ---- the reference -------------------------------------------------------------------------------------------------------------------


def test_who_holds_what_afterwards() -> None:
    x = torch.tensor([[[1.0, 2.0], [30.0, 40.0]]])  # one cluster of two ranks
    want = {
        "sum": [[31, 42], [31, 42]],
        "max": [[30, 40], [30, 40]],
        "min": [[1, 2], [1, 2]],
        "reduce_scatter": [[31], [42]],
        "gather": [[1, 2, 30, 40], [1, 2, 30, 40]],
        "broadcast": [[1, 2], [1, 2]],
    }
    for operator, values in want.items():
        assert expected(Case(operator, 2, 8, 1), (x,)).tolist() == [values], operator


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_lse_of_halves(dtype: str) -> None:
    """x is of the type, ml is not, and what must come out is rounded to the type at most."""
    case = Case("lse", 4, 2048, 2, dtype=dtype)
    assert case.shape == (8, 128)
    x, ml = inputs(case, "cpu")
    assert (x.dtype, ml.dtype, ml.shape) == (DTYPES[dtype], torch.float32, (2, 4, 8, 2))
    want = expected(case, (x, ml))
    error = largest_error(want.to(DTYPES[dtype]), want)
    assert 0 < error <= tolerance(case)


def test_lse_weighs_by_powers_of_two_and_normalises() -> None:
    """m = 3 and 1, l = 2 and 4: weights 1 and 1/4, o = (8 + 16/4) / (2 + 4/4) = 4."""
    x = torch.tensor([[[[8.0]], [[16.0]]]])
    ml = torch.tensor([[[[3.0, 2.0]], [[1.0, 4.0]]]])
    assert expected(Case("lse", 2, 4, 1), (x, ml)).tolist() == [[[[4.0]], [[4.0]]]]


def test_one_wrong_or_missing_element_shows() -> None:
    want = torch.full((10000,), 4.0, dtype=torch.float64)
    got = want.clone()
    assert largest_error(got, want) == 0.0
    got[7] = 5.0
    assert largest_error(got, want) == 0.25
    got[7] = float("nan")
    assert largest_error(got, want) == float("inf")


def test_values_that_only_move_are_exact() -> None:
    assert [tolerance(Case(name, 4, 512, 1)) for name in OPERATORS] == [1e-5, 0, 0, 1e-5, 1e-5, 0, 0]


# ---- times ---------------------------------------------------------------------------------------------------------------------------


def test_rows_have_the_time_inside_and_with_the_launch(fake: FakeFactory) -> None:
    """512 B over 4: 240 + 3*512/16 = 336 cycles; at 2 GHz 0.168 us. A launch: 1.5 us + (1000 + 336) cycles = 2.168 us.

    1536 bytes in 336 cycles are 4.571 B/clk/SM, 9.143 GB/s, over 30 clusters of 4 1097 GB/s. Floor: 240 + 1536/19 = 320.8 cycles.
    """
    record = bench(fake)
    assert record["clock"]["ghz"] == pytest.approx(GHZ)
    row = next(row for row in record["rows"] if row["payload"] == 512 and row["algorithm"] == "push")
    assert (row["chosen"], row["on_chip"], row["error"], row["clusters"]) == (True, True, None, 30)
    assert row["cycles"] == pytest.approx(336)
    assert row["us"] == pytest.approx(0.168)
    assert row["launch_us"] == pytest.approx(LAUNCH_US + (FIXED + 336) / GHZ / 1e3)
    assert row["b_per_clk"] == pytest.approx(1536 / 336)
    assert row["gbps_per_sm"] == pytest.approx(1536 / 336 * 2)
    assert row["gbps_total"] == pytest.approx(1536 / 336 * 2 * 120)
    assert row["floor_cycles"] == pytest.approx(240 + 1536 / 19)
    assert row["of_push"] == pytest.approx(1.0)  # the only push of its cluster size with this payload is the reference
    off = next(row for row in record["rows"] if row["payload"] == 512 and row["algorithm"] == "global")
    assert off["cycles"] == pytest.approx(1008)
    assert off["b_per_clk"] == pytest.approx(512 * 5 / 1008)
    assert (off["chosen"], off["on_chip"], off["floor_cycles"], off["of_push"]) == (False, False, None, None)
    assert record["errors"] == 0


def test_of_a_broadcast_one_rank_sends(fake: FakeFactory) -> None:
    (row,) = bench(fake, Grid((4,), (512,), ("broadcast",), ("chosen",)))["rows"]
    assert row["gbps_total"] == pytest.approx(1536 / 336 * 2 * 30)


def test_the_chosen_algorithm_is_measured_once(fake: FakeFactory) -> None:
    record = bench(fake, Grid((4,), (512,), ("gather",), ("all",)))
    assert [(row["algorithm"], row["chosen"]) for row in record["rows"]] == [("push", True), ("bulk", False), ("global", False)]
    timed = [built for built in fake.built if built[0] == "gather" and built[6] == "push" and built[-1]]
    assert [built[7] for built in timed] == [4, 68]


def test_cycles_are_those_of_the_slowest_rank_and_the_median_cluster(fake: FakeFactory) -> None:
    case = Case("sum", 4, 512, 3, "push")
    lab = timing.Bench(case, "cpu")
    few, many = (fake("reduce", **case.arguments(repeat, True, None)) for repeat in case.repeats)

    def uneven(kernel: FakeKernel, *tensors: torch.Tensor) -> None:
        kernel(*tensors)
        tensors[-1][2] += 6400 if kernel.repeat == 68 else 0  # one cluster of three is slower by 100 cycles per exchange

    def wrapped(kernel: FakeKernel) -> Any:
        return lambda *tensors: uneven(kernel, *tensors)

    found = timing.inside(lab, wrapped(few), wrapped(many))
    assert (found.median, found.low, found.high) == (pytest.approx(336), pytest.approx(336), pytest.approx(436))


# ---- wrong kernels -------------------------------------------------------------------------------------------------------------------


def spoil(kernel: FakeKernel, y: torch.Tensor) -> None:
    if kernel.case.payload == 512 and kernel.algorithm == "push":
        y[-1, -1, -1] += 0.01


def test_a_wrong_row_is_an_error_row_and_costs_no_other(fake: FakeFactory) -> None:
    fake.flaw = spoil
    record = bench(fake)
    assert record["errors"] == 1
    bad = next(row for row in record["rows"] if row["error"])
    assert (bad["payload"], bad["algorithm"], bad["chosen"], bad["of_push"]) == (512, "push", True, None)
    assert bad["error"].startswith("WrongResult: 1 exchange in a launch: error ")
    assert "cycles" not in bad
    assert [bar["met"] for bar in record["bars"] if "512 bytes" in bar["name"]] == [None]
    assert record["pays"][0]["ranges"][0]["payloads"] == [4, 4]


def test_only_the_long_launch_is_wrong(fake: FakeFactory) -> None:
    fake.flaw = lambda kernel, y: y.zero_() if kernel.repeat == 68 else None
    assert {row["error"].partition(":  ")[0][:45] for row in bench(fake)["rows"]} == {"WrongResult: 68 exchanges in a launch: error "}


def test_an_output_that_is_not_written_is_an_error(fake: FakeFactory) -> None:
    fake.flaw = lambda kernel, y: y[0, 0].fill_(float("nan")) if kernel.launches == 1 else None
    rows = bench(fake)["rows"]
    assert rows
    assert all("error inf against float64" in row["error"] for row in rows)


def test_runs_that_differ_are_an_error(fake: FakeFactory) -> None:
    def flaky(kernel: FakeKernel, y: torch.Tensor) -> None:
        if kernel.launches == 4:
            y[0, 0, 0] = torch.nextafter(y[0, 0, 0], torch.tensor(9.0))

    fake.flaw = flaky
    assert {row["error"] for row in bench(fake)["rows"]} == {"WrongResult: 1 exchange in a launch: 1 of 3 runs differ in their bits"}


def test_no_cycles_are_an_error(fake: FakeFactory) -> None:
    case = Case("sum", 4, 512, 3, "push")
    lab = timing.Bench(case, "cpu")
    with pytest.raises(timing.WrongResult, match="did not write its cycles everywhere"):
        lab.count(lambda *tensors: None)  # type: ignore[arg-type]
    fake.cycles = lambda case, algorithm: 0
    few, many = (fake("reduce", **case.arguments(repeat, True, None)) for repeat in case.repeats)
    with pytest.raises(timing.WrongResult, match="68 exchanges in a launch took no more cycles than 4"):
        timing.inside(lab, few, many)


def test_a_barrier_that_timed_out_while_timing_is_an_error(fake: FakeFactory) -> None:
    def late(kernel: FakeKernel, y: torch.Tensor) -> None:
        if kernel.algorithm == "global" and kernel.launches > 4:
            kernel.flags = ("a barrier timed out",)

    fake.flaw = late
    assert [row["error"] for row in bench(fake)["rows"]] == [None, "WrongResult: a barrier timed out"] * 2


def test_what_cannot_be_built_is_an_error_row(fake: FakeFactory) -> None:
    def broken(kind: str, **given: Any) -> FakeKernel:
        if given["algorithm"] == "global":
            raise RuntimeError("no such kernel")
        return fake(kind, **given)

    record = bench(broken)  # type: ignore[arg-type]
    assert [row["error"] for row in record["rows"]] == [None, "RuntimeError: no such kernel"] * 2


def test_after_the_budget_no_row_is_begun(fake: FakeFactory) -> None:
    record = bench(fake, budget_s=-1.0)
    assert record["rows"] == []
    assert "sum of 4 B over 4: the time was up" in record["left_out"]


# ---- the paper's rows, and compiling ahead -------------------------------------------------------------------------------------------


def test_the_papers_rows_are_counted_alike(fake: FakeFactory) -> None:
    """32 KB of 128 CTAs are 256 B each: 240 + 3*16 = 288 cycles, so 1.5 + 1.288/2 = 2.144 us, and 6.77 / 2.144 = 3.158 times faster."""
    record = bench(fake, with_paper=True)
    first = record["paper"][0]
    named = [first[name] for name in ("reading", "operator", "size", "payload", "algorithm")]
    assert named == ["total", "sum", 32768, 256, "push"]
    assert first["us"] == pytest.approx(2.144)
    assert first["speedup"] == pytest.approx(6.77 / 2.144)
    assert first["off_chip_us"] == pytest.approx(LAUNCH_US + (1000 + 1000 + 4) / GHZ / 1e3)
    assert [row["payload"] for row in record["paper"]] == [256, 2048, 256, 2048, 8192, 65536, 8192, 65536]
    beside = {built for built in fake.built if built[3] == "f16"}
    assert {(built[4], built[5], built[7], built[8]) for built in beside} == {(4, 32, 1, False)}  # launches only


def test_what_has_no_room_beside_the_paper_is_named(fake: FakeFactory) -> None:
    def smaller(kind: str, **given: Any) -> list[str]:
        return [] if given["shape"][0] > 10000 else possible(kind, **given)

    record = bench(fake, with_paper=True, possible=smaller)
    assert "beside the paper, gather of 65,536 B over 4: no algorithm can do it" in record["left_out"]
    assert [row["us"] is None for row in record["paper"]] == [False] * 5 + [True, False, True]


def test_compiling_ahead_builds_what_measuring_takes() -> None:
    log: list[str] = []
    cases = [Case("sum", 4, 512, 30), Case("gather", 4, 256, 32, None, "f16", launches_only=True)]
    assert warm(cases, H100, 2, log.append, ThreadPoolExecutor(2), f"{__name__}:no_such_factory") == 2
    assert sum("did not compile: AttributeError: " in line for line in log) == 2
    sys.modules["fake_for_warm"] = type(sys)("fake_for_warm")
    made = FakeFactory()
    sys.modules["fake_for_warm"].make = made  # type: ignore[attr-defined]
    assert warm(cases, H100, 2, log.append, ThreadPoolExecutor(2), "fake_for_warm:make") == 0
    assert sorted((built[0], built[7], built[8]) for built in made.built) == [
        ("gather", 1, False), ("reduce", 1, False), ("reduce", 4, True), ("reduce", 68, True),
    ]  # fmt: skip
    assert log[-1] == "compiled 2 of 2 cases"


def test_one_job_compiles_nothing_ahead() -> None:
    assert warm([Case("sum", 4, 512, 30)], H100, 1, print, factory="no.such:module") == 0


@pytest.mark.compile
def test_spawned_processes_fill_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes compile; what this one then asks for is on disk already."""
    import cfdsl

    monkeypatch.setenv("CFDSL_CACHE_DIR", str(tmp_path))
    cases = [Case("sum", 4, 512, 30, "push"), Case("gather", 4, 256, 32, None, "f16", launches_only=True)]
    assert warm(cases, H100, 2, print) == 0
    assert len(list((tmp_path / "kernel").iterdir())) == 4
    kernels = [cfdsl.collective(case.kind, **case.arguments(*how, H100)) for case in cases for how in case.builds]
    assert not any(kernel.cold for kernel in kernels)


@pytest.mark.gpu
def test_real_exchanges_are_right_and_take_plausible_times() -> None:
    from cfdsl.runtime.device import part_at_hand

    grid = Grid((4,), (4, 512), ("sum", "gather"), ("chosen", "push", "global"))
    record = run.bench_collectives(part_at_hand(), [grid], runs=20)
    assert [row["error"] for row in record["rows"] if row["error"]] == []
    assert [line["error"] for line in record["paper"] if line["error"]] == []
    assert 0.5 < record["clock"]["ghz"] < 3
    assert {row["algorithm"] for row in record["rows"]} >= {"push", "global"}
    for row in record["rows"]:
        assert 50 < row["cycles_low"] <= row["cycles"] <= row["cycles_high"] < 20000
        assert 0.3 < row["launch_us"] < 50
