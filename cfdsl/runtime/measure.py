"""Measuring on a GPU: time under CUDA graphs with a cold L2, the memory's read ceiling, error, repeatability, host time.

Every time is of work captured in a CUDA graph, taken with events around whole replays, and is the median over the replays divided by
the calls in the graph. A graph rotates over several sets of tensors, so that no call finds its weights in L2.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

import torch

Call = Callable[[], object]

L2_COVER = 3.0  # the rotation's bytes over those of L2
MAX_SETS = 64


@dataclass(frozen=True)
class Timing:
    """Microseconds per call: the median, fastest and slowest replay; `calls` per replay, `replays` of them."""

    us: float
    fastest_us: float
    slowest_us: float
    calls: int
    replays: int


@dataclass(frozen=True)
class Ceiling:
    """The fastest read of memory found on this device in this run, in GB/s (1e9 bytes), how it was read, and all that was tried."""

    gbps: float
    how: str
    tried: Mapping[str, float] = field(default_factory=dict)


def environment() -> dict[str, str]:
    """Where and when a measurement was taken: GPU, its driver's CUDA, torch, python, UTC date."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "sms": str(properties.multi_processor_count),
        "capability": f"{properties.major}.{properties.minor}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def l2_bytes() -> int:
    """Size of the current device's L2 cache, in bytes."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def cold_sets(bytes_per_set: int, l2: int) -> tuple[int, bool]:
    """How many sets of tensors to rotate over, and whether that many leave L2 cold.

    At least 3, enough to cover L2 `L2_COVER` times, at most `MAX_SETS`: a kernel that touches a few KB stays in L2 whatever one does.
    """
    wanted = max(3, math.ceil(L2_COVER * l2 / max(bytes_per_set, 1)))
    return min(wanted, MAX_SETS), wanted <= MAX_SETS


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """One CUDA graph of all `calls` in order, each run once before, outside the capture, on the capturing stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    return graph


def time_graph(calls: Sequence[Call], replays: int = 25, warmup: int = 3, least_calls: int = 12) -> Timing:
    """Time of one call, with `calls` (one per set of tensors) captured round and round until there are at least `least_calls`."""
    rounds = max(1, math.ceil(least_calls / len(calls)))
    sequence = [call for _ in range(rounds) for call in calls]
    graph = capture(sequence)
    taken = []
    for replay in range(replays + warmup):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        if replay >= warmup:
            taken.append(start.elapsed_time(stop) * 1e3 / len(sequence))
    return Timing(median(taken), min(taken), max(taken), len(sequence), replays)


READ_KERNEL = r"""
extern "C" __global__ void read_all(const int4* data, int* out, int count) {  // count: of 16 bytes
    int seen = 0;
    long long stride = (long long)gridDim.x * blockDim.x;
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; at + 7 * stride < count; at += 8 * stride) {
        int4 v[8];
        #pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = __ldg(data + at + i * stride);
        #pragma unroll
        for (int i = 0; i < 8; ++i) seen ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    for (; at < count; at += stride) {
        int4 v = __ldg(data + at);
        seen ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (seen == 0x13579bdf) out[0] = seen;
}
"""


def read_ceiling(bytes_read: int = 2 << 30, replays: int = 7) -> Ceiling:
    """Reads `bytes_read` bytes (far more than L2) in several ways and keeps the fastest; takes well under a second.

    Ways: torch's float32 sum and max, a matrix-vector product in bf16, and a kernel that only loads 16 bytes per lane (left out
    where this torch cannot compile it).
    """
    data = torch.ones(bytes_read // 4, dtype=torch.float32, device="cuda")
    matrix = data.view(torch.bfloat16).view(-1, 8192)
    vector = torch.zeros(8192, dtype=torch.bfloat16, device="cuda")
    ways: dict[str, Call] = {
        "torch.sum of float32": lambda: torch.sum(data),
        "torch.amax of float32": lambda: torch.amax(data),
        "torch.mv of bf16": lambda: torch.mv(matrix, vector),
    }
    ways.update(_read_kernel(data))
    tried = {}
    for name, call in ways.items():
        try:
            tried[name] = bytes_read / time_graph([call], replays, 2, 3).us / 1e3
        except RuntimeError:
            continue
    how = max(tried, key=lambda name: tried[name])
    return Ceiling(tried[how], f"{how}, {bytes_read >> 20} MiB", tried)


def _read_kernel(data: torch.Tensor) -> dict[str, Call]:
    out = torch.zeros(1, dtype=torch.int32, device="cuda")
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    count = data.numel() // 4
    try:
        kernel = torch.cuda._compile_kernel(READ_KERNEL, "read_all")
        ways: dict[str, Call] = {}
        for per_sm in (4, 8, 16):

            def read(blocks: int = sms * per_sm) -> None:
                kernel(grid=(blocks, 1, 1), block=(256, 1, 1), args=[data, out, count])

            read()
            ways[f"a kernel of loads only, {per_sm} x 256 threads per SM"] = read
        torch.cuda.synchronize()
    except Exception:  # an optional extra: a private door of torch that a build may lack, and torch's own reductions remain
        return {}
    return ways


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want| in the Euclidean norm, in float64, over the elements that are numbers in `want`.

    Infinite where `got` is not a number and `want` is, and where nothing in `want` is one: that tells nothing. Indices are right, 0, or
    wrong, infinite: there is no nearly.
    """
    if not want.is_floating_point():
        return 0.0 if torch.equal(got.cpu().long(), want.cpu().long()) else math.inf
    a, b = got.detach().double().flatten(), want.detach().double().flatten()
    known = b.isfinite()
    if bool((known & ~a.isfinite()).any()) or (b.numel() and not bool(known.any())):
        return math.inf
    zero = torch.zeros_like(b)
    difference = torch.where(known, a - b, zero).norm()
    return float(difference / torch.where(known, b, zero).norm().clamp_min(1e-300))


def in_one_line(error: Exception) -> str:
    """What went wrong, for a record that goes on without it: the exception's class and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def poison(tensor: torch.Tensor) -> None:
    """Fill with what no right result has: NaN, or -1 where it holds indices."""
    tensor.fill_(math.nan if tensor.is_floating_point() else -1)


def count_different(call: Call, outputs: Sequence[torch.Tensor], runs: int = 1000) -> int:
    """How many of `runs` further calls leave other bits in `outputs` than a first call did."""
    call()
    first = [out.clone() for out in outputs]
    different = torch.zeros((), dtype=torch.int64, device=outputs[0].device)
    for _ in range(runs):
        call()
        changed = torch.stack([(_bits(out) != _bits(kept)).any() for out, kept in zip(outputs, first, strict=True)]).any()
        different += changed
    return int(different.item())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same storage as integers, so that NaN equals itself and -0 differs from 0."""
    as_int = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.view(as_int)


def host_us(calls: Mapping[str, Call], each: int = 200, least_s: float = 0.5) -> dict[str, float]:
    """Host time of one eager call, of each of several, in microseconds: of rounds of `each`, few enough that the launch queue never
    fills, the fastest.

    Rounds take turns, for `least_s` seconds per kind of call and five at least: the first ones find caches and clocks cold, and a
    processor that others share has slow moments, which should meet all kinds alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began, rounds = time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - began < least_s * len(calls):
        rounds += 1
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(each):
                call()
            taken[name].append((time.perf_counter() - start) * 1e6 / each)
    torch.cuda.synchronize()
    return {name: min(times) for name, times in taken.items()}
