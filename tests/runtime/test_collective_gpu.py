"""cfdsl.collective on the GPU: every size, operator, type and algorithm against float64, with equal bits over ranks and runs."""

from __future__ import annotations

import exchanged
import pytest
import torch

import cfdsl as cf
from cfdsl.compiler.collective.designs import ALGORITHMS
from cfdsl.compiler.collective.request import KINDS, WIDTH, Collective
from cfdsl.runtime.arguments import DTYPES

pytestmark = pytest.mark.gpu

CLUSTERS, RUNS = 3, 3
SIZES = (1, 2, 4, 8, 16)
PLAIN = [(op, dtype) for op in ("sum", "max", "min") for dtype in WIDTH]


def requests(kind: str, cluster: int) -> list[Collective]:
    """All operators and types with 4 ranks, some of them with other sizes; shapes with tails and without, repeats of both parities.

    Softmax terms so often that each of their barriers is waited for twice and more, and of each type in turn: halves become float32 on
    their way in, and are rounded on their way out.
    """
    pairs = PLAIN if kind.startswith("reduce") else PLAIN[:3]
    if cluster != 4:
        start = SIZES.index(cluster)
        pairs = [pairs[(start * 2 + step) % len(pairs)] for step in (0, 1)]
    found = []
    for number, (op, dtype) in enumerate(pairs):
        shape = ((16, 3), (32, 8))[number % 2] if kind == "reduce_scatter" else ((35, 2), (4, 96), (1024,))[number % 3]
        found.append(Collective(kind, op, shape, dtype, cluster, CLUSTERS, repeat=1 + number % 4))
    if kind.startswith("reduce"):
        dtypes = tuple(WIDTH) if cluster == 4 else tuple(WIDTH)[SIZES.index(cluster) % 3 :][:1]
        found += [Collective(kind, "lse", (16, 68), dtype, cluster, CLUSTERS, repeat=5) for dtype in dtypes]
    return found


def kernel_of(request: Collective, algorithm: str | None) -> cf.Kernel:
    return cf.collective(
        request.kind, op=request.op, shape=request.shape, dtype=request.dtype, cluster=request.cluster, clusters=request.clusters,
        algorithm=algorithm, repeat=request.repeat, timed=request.timed, warps=request.warps,
    )  # fmt: skip


def right(request: Collective, algorithm: str | None) -> None:
    """Fresh inputs: right, and the same bits in each run."""
    kernel = kernel_of(request, algorithm)
    given = exchanged.inputs(request)
    first = None
    for _ in range(RUNS):
        shape = (request.clusters, request.cluster, *request.result_shape)
        y = torch.full(shape, float("nan"), dtype=DTYPES[request.dtype], device="cuda")
        kernel(*given, y)
        torch.cuda.synchronize()
        label = f"{request.text} by {algorithm}, {request.repeat} exchanges"
        problem = exchanged.verdict(request, given, y)
        assert not problem, f"{label}: {problem}"
        first = y if first is None else first
        assert torch.equal(y, first), f"{label}: other bits in another run"
    assert kernel.status() == ()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cluster", SIZES)
def test_against_float64(cluster: int, kind: str, algorithm: str) -> None:
    done = 0
    for request in requests(kind, cluster):
        possible = cf.collective_algorithms(kind, op=request.op, shape=request.shape, dtype=request.dtype, cluster=cluster)
        if algorithm in possible:
            right(request, algorithm)
            done += 1
    possible_somewhere = {"scatter_gather": ("reduce",), "doubling": ("reduce", "gather"), "multicast": ("gather", "broadcast")}
    assert done or kind not in possible_somewhere.get(algorithm, KINDS), "nothing was run"


@pytest.mark.parametrize("cluster", SIZES)
def test_one_word(cluster: int) -> None:
    for op in ("sum", "max", "min"):
        right(Collective("reduce", op, (1,), "f32", cluster, CLUSTERS, repeat=3), "push")
    right(Collective("reduce", "sum", (2,), "bf16", cluster, CLUSTERS, repeat=2), None)
    right(Collective("gather", "sum", (1,), "f32", cluster, CLUSTERS, repeat=2), None)


@pytest.mark.parametrize("warps", [1, 8])
def test_any_number_of_warps(warps: int) -> None:
    """As few and as many as can be asked for, where each thread has something of its own to do: a peer of 16, a copy, a vector of many."""
    asked = (("gather", "bulk", 64, 16), ("gather", "multicast", 512, 4), ("reduce", "scatter_gather", 512, 4), ("reduce", "push", 1, 16))
    for kind, algorithm, size, cluster in asked:
        right(Collective(kind, "sum", (size,), "f32", cluster, CLUSTERS, repeat=4, warps=warps), algorithm)


@pytest.mark.parametrize(
    ("kind", "elements", "algorithm"),
    [("reduce", 17_000, "scatter_gather"), ("gather", 5_600, "push"), ("gather", 5_600, "multicast"), ("reduce_scatter", 17_000, "push")],
)
def test_what_shared_memory_holds(kind: str, elements: int, algorithm: str) -> None:
    right(Collective(kind, "sum", (elements,), "f32", 4, 30, repeat=2), algorithm)


@pytest.mark.parametrize("algorithm", ["push", "scatter_gather", "global"])
def test_many_clusters_in_waves_and_under_a_graph(algorithm: str) -> None:
    """More clusters than are resident at once, back to back with programmatic dependent launch, in a CUDA graph."""
    request = Collective("reduce", "sum", (512,), "f32", 4, 200, repeat=3)
    kernel = kernel_of(request, algorithm)
    given = exchanged.inputs(request)
    ys = [torch.empty_like(given[0]) for _ in range(8)]
    kernel(*given, ys[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for y in ys:
            kernel(*given, y)
    for _ in range(5):
        for y in ys:
            y.fill_(float("nan"))
        graph.replay()
    torch.cuda.synchronize()
    for y in ys:
        assert not exchanged.verdict(request, given, y)
        assert torch.equal(y, ys[0])


def test_the_clock_counts_exchanges() -> None:
    """Ten times as many exchanges take about ten times as long; a cluster's ranks agree within a few exchanges."""
    taken = []
    for repeat in (100, 1000):
        request = Collective("reduce", "sum", (1,), "f32", 4, 1, repeat=repeat, timed=True)
        kernel = kernel_of(request, "push")
        given = exchanged.inputs(request)
        y, cycles = torch.empty_like(given[0]), torch.zeros(1, 4, dtype=torch.int32, device="cuda")
        for _ in range(3):
            kernel(*given, y, cycles)
        torch.cuda.synchronize()
        taken.append(float(cycles.float().mean()))
        assert not exchanged.verdict(request, given, y)
    assert 6 < taken[1] / taken[0] < 14, taken
    assert 150 < taken[1] / 1000 < 2000, f"{taken[1] / 1000} cycles for one exchange"
