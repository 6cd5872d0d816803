"""How long an exchange takes: inside a kernel by the SM's clock, and with the launch in a CUDA graph; and how fast the SM's clock runs.

Inside a kernel: two kernels do `few` and `many` exchanges back to back in one launch, and count SM cycles from before the first to after
the last. (cycles of many - cycles of few) / (many - few) is the time of one in a row of them; what is fixed drops out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from cfdsl.runtime import measure
from cfdsl.runtime.exchange_bench.cases import Case
from cfdsl.runtime.exchange_bench.reference import Tensors, expected, inputs, largest_error, tolerance

TIMED_LAUNCHES = 24  # of each timed kernel, after some to warm up
WARMUP_LAUNCHES = 4
GRAPH_LAUNCHES = 200  # in the CUDA graph that times are taken of with the launch
CLOCK_REPEATS = (64, 8256)


class Exchange(Protocol):
    """What `cfdsl.collective` returns."""

    @property
    def algorithm(self) -> str:
        """Which one it is."""

    @property
    def smem_bytes(self) -> int:
        """Shared memory per CTA."""

    @property
    def bytes_pushed(self) -> int:
        """DSMEM bytes that one rank sends per exchange."""

    @property
    def bytes_global(self) -> int:
        """Device-memory bytes that one rank moves per exchange."""

    def __call__(self, *tensors: torch.Tensor) -> None:
        """One launch."""

    def status(self, clear: bool = False) -> tuple[str, ...]:
        """What launches flagged, in words."""


Build = Callable[[Case, int, bool], Exchange]


class WrongResult(Exception):
    """What a kernel wrote is not what float64 gives, not the same in every run, or no time. It becomes the row's error."""


@dataclass(frozen=True)
class Cycles:
    """SM cycles per exchange: the median over launches and clusters (of a cluster the slowest rank), and the middle 80 %."""

    median: float
    low: float
    high: float


class Bench:
    """The tensors of one case and what they must give."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        self.given: Tensors = inputs(case, device)
        self.want = expected(case, self.given)
        self.y = torch.empty(self.want.shape, dtype=self.given[0].dtype, device=device)

    def cycles(self) -> torch.Tensor:
        """A tensor for a timed kernel's cycles, poisoned."""
        return torch.full((self.case.clusters, self.case.cluster), -1, dtype=torch.int32, device=self.device)

    def call(self, kernel: Exchange, timed: bool) -> Callable[[], None]:
        """One launch; a timed kernel's cycles go to a tensor that is kept."""
        tensors = (*self.given, self.y, *((self.cycles(),) if timed else ()))
        return lambda: kernel(*tensors)

    def check(self, kernel: Exchange, repeat: int, timed: bool, runs: int) -> float:
        """Launch into poisoned outputs, compare with float64, then `runs` times bit by bit; the error. Raises WrongResult."""
        what = f"{repeat} exchange{'s' if repeat > 1 else ''} in a launch"
        self.y.fill_(float("nan"))
        call = self.call(kernel, timed)
        call()
        error = largest_error(self.y, self.want)
        if not error <= tolerance(self.case):
            raise WrongResult(f"{what}: error {error:.1e} against float64, at most {tolerance(self.case):.0e} is right")
        different = measure.count_different(call, [self.y], runs)
        if different:
            raise WrongResult(f"{what}: {different} of {runs} runs differ in their bits")
        return error

    def count(self, kernel: Exchange) -> torch.Tensor:
        """Cycles of each cluster's slowest rank, (launches, clusters), in float64."""
        taken = [self.cycles() for _ in range(WARMUP_LAUNCHES + TIMED_LAUNCHES)]
        for cycles in taken:
            kernel(*self.given, self.y, cycles)
        found = torch.stack(taken[WARMUP_LAUNCHES:])
        if bool((found <= 0).any()):
            raise WrongResult("a timed kernel did not write its cycles everywhere")
        return found.double().amax(-1)


def inside(bench: Bench, few: Exchange, many: Exchange) -> Cycles:
    """Cycles per exchange, launch excluded, from the kernels of `case.repeats`. Raises WrongResult if more exchanges take no longer."""
    less, more = bench.case.repeats
    base, spread = bench.count(few).median(), bench.count(many).flatten()
    at = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=spread.device)
    low, median, high = ((torch.quantile(spread, at) - base) / (more - less)).tolist()
    if median <= 0:
        raise WrongResult(f"{more} exchanges in a launch took no more cycles than {less}")
    return Cycles(median, low, high)


def sm_clock(case: Case, build: Build, device: str) -> float:
    """The SM's clock in GHz: the cycles that 8192 more exchanges take, over the time that they add to a launch."""
    bench, cycles, times = Bench(case, device), [], []
    for repeat in CLOCK_REPEATS:
        kernel = build(case, repeat, True)
        cycles.append(float(bench.count(kernel).amax(-1).median()))  # a launch lasts as long as its slowest cluster
        times.append(measure.time_graph([bench.call(kernel, True)], 7, 3, 12).us)
    return (cycles[1] - cycles[0]) / (times[1] - times[0]) / 1e3
