"""A million exchanges, in loops of random lengths, of all cluster sizes, every element looked at: under a CUDA graph with PDL.

    python tests/primitives/soak.py [EXCHANGES] [SEED]

Kernels of all sizes and algorithms follow each other in random order, each with its own length; with programmatic dependent launch the
next one starts while the last one still runs. Results are whole numbers, so that one wrong bit is one wrong element.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import cases  # noqa: E402
import torch  # noqa: E402
from harness import Program  # noqa: E402
from stress import NONE  # noqa: E402

LONGEST = 2000  # calls in one launch
OFFCHIP_LONGEST = 60  # one of these takes a few times as long
LAUNCHES = 60  # in one graph
MEASURES = ("reduce", "push"), ("reduce", "scatter_gather"), ("reduce", "doubling"), ("gather", "bulk"), ("broadcast", "push")
# What takes another way through the device code: kind, algorithm, ranks, shape, operator.
OTHERS = (
    ("gather", "multicast", 4, (204,), "sum"), ("broadcast", "multicast", 16, (404,), "sum"),
    ("reduce", "push", 2, (1,), "sum"), ("reduce", "push", 8, (1,), "max"),  # registers
    ("reduce", "push", 4, (8, 64), "lse"), ("reduce", "scatter_gather", 16, (16, 12), "lse"), ("reduce", "doubling", 8, (5, 12), "lse"),
    ("reduce_scatter", "bulk", 2, (4, 64), "lse"),
)  # fmt: skip


@dataclass
class Soaked:
    """One kernel on its way: its program, tensors of its own (`given`: inputs but for the length), and how many calls were made."""

    case: cases.Case
    program: Program
    given: list[Any]
    outs: dict[str, Any]
    calls: int = 0
    lengths: list[int] = field(default_factory=list)


def soaked() -> list[Soaked]:
    """Every size with five algorithms, and one or two of what goes another way, by way of device memory too."""
    made = [cases.looped(kind, algorithm, ranks, (204,)) for ranks in (1, 2, 4, 8, 16) for kind, algorithm in MEASURES]
    made += [cases.looped("reduce", "global", 4), cases.looped("reduce_scatter", "bulk", 8, (416,))]
    made += [cases.looped(kind, algorithm, ranks, shape, op) for kind, algorithm, ranks, shape, op in OTHERS]
    outs = [{name: _zeros(*spec) for name, spec in case.outs.items()} for case in made]
    return [Soaked(case, case.build(pdl=True), case.inputs(1)[1:], each) for case, each in zip(made, outs, strict=True)]


def _zeros(dtype: str, shape: tuple[int, ...]) -> Any:
    return torch.zeros(shape, dtype={"f32": torch.float32, "i32": torch.int32}[dtype], device="cuda")


def record(kernels: list[Soaked], draw: random.Random) -> tuple[torch.cuda.CUDAGraph, list[tuple[Soaked, int]], list[Any]]:
    """A graph of LAUNCHES launches, which they are, and the tensors that it reads."""
    nobody = torch.tensor((NONE, NONE), dtype=torch.int32, device="cuda")
    plan = []
    for _ in range(LAUNCHES):
        one = draw.choice(kernels)
        plan.append((one, draw.randint(1, OFFCHIP_LONGEST if "sync" in one.outs else LONGEST)))
    lengths = [torch.tensor([length], dtype=torch.int32, device="cuda") for _, length in plan]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for (one, _), length in zip(plan, lengths, strict=True):
            one.program.start(nobody, length, *one.given, *one.outs.values())
    return graph, plan, [nobody, *lengths]


def soak(exchanges: int, seed: int) -> str:
    """Run at least so many; AssertionError if an element was wrong or was not looked at. What was done, in words."""
    draw = random.Random(seed)
    kernels = soaked()
    once = torch.tensor([1], dtype=torch.int32, device="cuda")
    nobody = torch.tensor((NONE, NONE), dtype=torch.int32, device="cuda")
    for one in kernels:  # loads it, which a capture must not
        one.program.start(nobody, once, *one.given, *one.outs.values())
        one.calls += 1
    torch.cuda.synchronize()
    done, began, kept = 0, time.perf_counter(), []
    while done < exchanges:
        graph, plan, tensors = record(kernels, draw)
        kept.append((graph, tensors))
        for _ in range(2):
            graph.replay()
            for one, length in plan:
                one.calls += length
                done += length
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    for one in kernels:
        one.case.check(one.outs, one.calls, [], f"{one.case.name}, seed {seed}")
    return f"{done:,} exchanges of {len(kernels)} kernels on each of 2 clusters in {took:.1f} s, every element right (seed {seed})"


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    print(soak(given[0] if given else 1_000_000, given[1] if len(given) > 1 else random.randrange(2**32)))
