"""Measure every case: right first, then how long; one record with everything that `bench collectives` prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from cfdsl.compiler.parts import Part
from cfdsl.runtime import measure
from cfdsl.runtime.exchange_bench import paper, verdicts
from cfdsl.runtime.exchange_bench.cases import FROM_MEMORY, OFF_CHIP, Case, Grid, PossibleAlgorithms, algorithms_of, expand, resident
from cfdsl.runtime.exchange_bench.timing import GRAPH_LAUNCHES, Bench, Exchange, WrongResult, inside, sm_clock
from cfdsl.runtime.exchange_bench.warm import Log, warm

Factory = Callable[..., Exchange]
Row = dict[str, Any]


@dataclass
class Lab:
    """What measuring needs: where kernels come from, the part, the clock, how many runs are compared bit by bit, and a deadline."""

    part: Part
    factory: Factory
    device: str = "cuda"
    runs: int = 100
    deadline: float = float("inf")
    clock_ghz: float = 0.0
    log: Log = lambda text: None
    late: list[str] = field(default_factory=list)

    def build(self, case: Case, repeat: int, timed: bool) -> Exchange:
        """A kernel, from the cache where it is there."""
        return self.factory(case.kind, **case.arguments(repeat, timed, self.part))

    def measure(self, case: Case, once: Exchange) -> Row:
        """The row of one case; `once` is its kernel with one exchange. Raises whatever goes wrong."""
        bench = Bench(case, self.device)
        error = bench.check(once, 1, False, self.runs)
        row, used = {**facts(case, once), "relative_error": error, "runs": self.runs}, [once]
        if not case.launches_only:
            few, many = (self.build(case, repeat, True) for repeat in case.repeats)
            for kernel, repeat in ((few, case.repeats[0]), (many, case.repeats[1])):
                row["relative_error"] = max(row["relative_error"], bench.check(kernel, repeat, True, max(1, self.runs // 10)))
            used += [few, many]
            cycles = inside(bench, few, many)
            row.update(cycles=cycles.median, cycles_low=cycles.low, cycles_high=cycles.high)
            row.update(rates(row, self.clock_ghz, self.part))
        launched = measure.time_graph([bench.call(once, False)], 15, 3, GRAPH_LAUNCHES)
        flags = dict.fromkeys(flag for kernel in used for flag in kernel.status(clear=True))
        if flags:
            raise WrongResult("; ".join(flags))
        return {**row, "launch_us": launched.us, "launch_fastest_us": launched.fastest_us, "launch_slowest_us": launched.slowest_us}

    def rows(self, cases: Iterable[Case]) -> list[Row]:
        """A row per case and algorithm: the chosen one is measured once, under its name. What goes wrong is the row's `error`."""
        found: dict[Case, Row] = {}
        for case in cases:
            if time.monotonic() > self.deadline:
                self.late.append(f"{case.operator} of {case.payload:,} B over {case.cluster}: the time was up")
                continue
            named = case
            try:
                if case in found:
                    continue
                once = self.build(case, 1, False)
                named = case.with_algorithm(once.algorithm)
                if named not in found:
                    found[named] = self.measure(named, once)
            except Exception as error:  # one row must not cost the others; its error is shown and makes the exit status non-zero
                found[named] = {**outline(named), "error": f"{type(error).__name__}: {error}"}
            found[named]["chosen"] |= case.algorithm is None
            self.log(one_line(found[named]))
        return list(found.values())


def outline(case: Case) -> Row:
    """What a row says whatever happens."""
    return {
        "operator": case.operator, "kind": case.kind, "cluster": case.cluster, "clusters": case.clusters, "payload": case.payload,
        "shape": list(case.shape), "dtype": case.dtype, "algorithm": case.algorithm or "chosen", "chosen": False,
        "on_chip": case.algorithm != OFF_CHIP, "error": None,
    }  # fmt: skip


def facts(case: Case, kernel: Exchange) -> Row:
    """The outline, and what the kernel says of itself."""
    return {
        **outline(case), "senders": case.senders, "smem_bytes": kernel.smem_bytes, "bytes_pushed": kernel.bytes_pushed,
        "bytes_global": kernel.bytes_global,
    }  # fmt: skip


def rates(row: Row, clock_ghz: float, part: Part) -> Row:
    """Time in us, bandwidth per sending SM and of all of them, and the least that the part allows, from a row with cycles.

    Bandwidth counts the bytes that a rank pushes to others, or of a row that pushes none those that it moves to and from device memory.
    The floor is one way of a push plus the pushed bytes at the fastest rate that was ever measured; None where nothing is pushed by SMs.
    """
    moved = row["bytes_pushed"] or row["bytes_global"]
    per_clock = moved / row["cycles"]
    pushes = row["bytes_pushed"] and row["algorithm"] not in FROM_MEMORY
    floor = part.timing.st_async_cycles + row["bytes_pushed"] / verdicts.FASTEST_PUSH if pushes else None
    return {
        "us": row["cycles"] / clock_ghz / 1e3,
        "b_per_clk": per_clock,
        "gbps_per_sm": per_clock * clock_ghz,
        "gbps_total": per_clock * clock_ghz * row["clusters"] * row["senders"],
        "floor_cycles": floor,
    }


def one_line(row: Row) -> str:
    """Progress."""
    what = f"{row['operator']} of {row['payload']:,} B over {row['cluster']}, {row['algorithm']}"
    if row["error"]:
        return f"{what}: {row['error']}"
    cycles = f"{row['cycles']:.0f} cycles, " if "cycles" in row else ""
    return f"{what}: {cycles}{row['launch_us']:.2f} us with the launch"


def bench_collectives(
    part: Part, grids: Sequence[Grid], *, with_paper: bool = True, jobs: int = 0, runs: int = 100, budget_s: float = 480.0,
    factory: Factory | None = None, possible: PossibleAlgorithms | None = None, device: str = "cuda", log: Log = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Check and time all cases of the grids on the GPU at hand.

    jobs: processes that compile ahead (0: none). runs: launches compared bit by bit. budget_s: no row is begun after so many seconds, and
    what was left out is named. factory, possible: in place of `cfdsl.collective` and `cfdsl.collective_algorithms`.
    """
    started = time.monotonic()
    factory = factory or face("collective")
    possible = possible or partial(face("collective_algorithms"), part=part)
    lab = Lab(part, factory, device, runs, started + budget_s, log=log)
    cases, left_out = expand(grids, part, possible)
    compared, impossible = paper_cases(possible) if with_paper else ({}, [])
    ahead = dict.fromkeys((*cases, *(case for pair in compared.values() for case in pair)))
    warm(list(ahead), part, jobs, log)
    compiled_s = time.monotonic() - started
    clock_case = Case("sum", 2, 4, resident(part, 2))
    lab.clock_ghz = sm_clock(clock_case, lab.build, device)
    log(f"SM clock {lab.clock_ghz:.3f} GHz")
    rows = lab.rows(cases)
    beside = {key: lab.rows(pair) for key, pair in compared.items()}
    push = verdicts.push_bandwidth(rows)
    table = verdicts.paper_table(beside)
    return {
        "environment": measure.environment(),
        "part": part.name,
        "clock": {"ghz": lab.clock_ghz, "ghz_after": sm_clock(clock_case, lab.build, device)},
        "references": verdicts.references(part),
        "rows": verdicts.with_share_of_push(rows, push),
        "push": push,
        "paper": table,
        "bars": verdicts.bars(rows, table, push),
        "pays": verdicts.when_it_pays(rows),
        "left_out": [*left_out, *impossible, *lab.late],
        "errors": sum(bool(row["error"]) for found in (rows, *beside.values()) for row in found),
        "runs": runs,
        "compiled_s": compiled_s,
        "seconds": time.monotonic() - started,
    }


def face(name: str) -> Any:
    """A name of `import cfdsl`, which is above this floor: looked up when it is needed."""
    return getattr(import_module("cfdsl"), name)


def paper_cases(possible: PossibleAlgorithms) -> tuple[dict[tuple[str, paper.PaperRow], list[Case]], list[str]]:
    """Our cases for each reading and row of the paper's table, and what there is no case for."""
    found, left_out = {}, []
    for reading in paper.READINGS:
        for line in paper.TABLE:
            ours = paper.cases(line, reading)
            names, why = algorithms_of(ours[0], ("chosen", OFF_CHIP), possible)
            found[reading, line] = [ours[0].with_algorithm(name) for name in names]
            if why:
                left_out.append(f"beside the paper, {line.operator} of {ours[0].payload:,} B over {ours[0].cluster}: {why}")
    return found, left_out
