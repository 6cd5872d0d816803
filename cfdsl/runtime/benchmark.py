"""A kernel on the GPU at hand: is it right, is it repeatable, how long does it take, and how long do its peers take."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cfdsl.dsl.fusion import Fusion, Peer
from cfdsl.dsl.interpret import count_traffic
from cfdsl.models import ModelConfig
from cfdsl.runtime import measure
from cfdsl.runtime.arguments import DTYPES
from cfdsl.runtime.kernel import Kernel
from cfdsl.runtime.peers import peer_error, ready

MOST_BYTES = 8 << 30  # of all sets of tensors
Log = Callable[[str], None]
Tensors = dict[str, torch.Tensor]


@dataclass
class Bench:
    """One kernel and the sets of tensors that its measurements rotate over, with room for the longest cache."""

    fusion: Fusion
    model: ModelConfig
    kernel: Kernel
    options: Mapping[str, Any]
    longest: int
    shortest: int = 0
    sets: list[Tensors] = field(default_factory=list)
    cold: bool = True
    device: str = "cuda"

    def __post_init__(self) -> None:
        count, self.cold = measure.cold_sets(self.bytes(self.shortest), measure.l2_bytes())
        capacity = -(-(self.longest + 1) // 128) * 128
        self.capacity = capacity
        for seed in range(count):
            how = {"length": self.longest, "capacity": capacity, "seed": seed, "device": self.device}
            made = self.fusion.example_inputs(self.model, self.batch, self.kernel.plan.dtype, **how, **self.options)
            self._add_outputs(made)
            self.sets.append(made)
            if len(self.sets) * sum(tensor.nbytes for tensor in made.values()) > MOST_BYTES:
                break  # what a launch reads of a set may be a small part of it

    def _add_outputs(self, tensors: Tensors) -> None:
        """Places for the outputs that the example inputs left out."""
        for arg in self.kernel.args:
            if arg.role == "output" and arg.name not in tensors:
                shape = [int(dim) for dim in arg.shape]
                tensors[arg.name] = torch.empty(shape, dtype=DTYPES[arg.dtype], device=self.device)

    @property
    def batch(self) -> int:
        return next(int(arg.shape[0]) for arg in self.kernel.args if arg.role == "output")

    @property
    def outputs(self) -> list[str]:
        return [arg.name for arg in self.kernel.args if arg.role == "output"]

    def bytes(self, kv_len: int) -> int:
        """Bytes of device memory that a launch with `kv_len` cached tokens cannot avoid: each weight, KV row and in- or output once."""
        sizes = {"tokens": self.longest + 1, "positions": self.longest + 1, "length": kv_len}
        return count_traffic(self.kernel.lowered.placed, sizes).hbm_bytes

    def at(self, kv_len: int) -> None:
        """Make every set a cache of `kv_len` tokens."""
        for tensors in self.sets:
            for name in ("pos", "length"):
                if name in tensors:
                    tensors[name].fill_(kv_len)

    def calls(self) -> list[measure.Call]:
        """A launch per set."""
        return [self._call(tensors) for tensors in self.sets]

    def _call(self, tensors: Tensors) -> measure.Call:
        args = tuple(tensors[arg.name] for arg in self.kernel.args)
        return lambda: self.kernel(*args)

    def host_calls(self) -> dict[str, measure.Call]:
        """Launches on the first set whose host time is asked for: with its tensors given, with weights and caches bound, with all bound;
        and a yardstick of that host."""
        tensors, args = self.sets[0], self.kernel.args
        kept = {arg.name: tensors[arg.name] for arg in args if arg.role in ("weight", "cache")}
        step, given = self.kernel.bind(**kept), tuple(tensors[arg.name] for arg in args if arg.name not in kept)
        whole = self.kernel.bind(*(tensors[arg.name] for arg in args))
        out = tensors[self.outputs[0]]
        return {"host_us": self._call(tensors), "step_us": lambda: step(*given), "bound_us": whole, "torch_op_us": lambda: out.add_(0)}

    def want(self) -> Tensors:
        """The float64 reference of the first set."""
        found: Tensors = self.fusion.reference(self.model, self.sets[0], "f64", **self.options)
        return found

    def errors(self, want: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Launch once on the first set; the relative error of every output and cache."""
        for name in self.outputs:
            measure.poison(self.sets[0][name])
        self._call(self.sets[0])()
        return {name: measure.relative_error(self.sets[0][name], value) for name, value in want.items() if name in self.sets[0]}


def check_and_time(fusion: Fusion, model: ModelConfig, kernel: Kernel, kv_len: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Error against float64, and time with a cold L2, for one KV length; takes a second or two."""
    bench = Bench(fusion, model, kernel, options, kv_len, kv_len)
    bench.at(kv_len)
    errors = bench.errors(bench.want())
    timing = measure.time_graph(bench.calls())
    place = measure.environment()
    l2 = "cold" if bench.cold else "not cold (too few bytes to evict it)"
    return {
        **place,
        "us": timing.us,
        "fastest_us": timing.fastest_us,
        "slowest_us": timing.slowest_us,
        "gbps": bench.bytes(kv_len) / timing.us / 1e3,
        "relative_error": max(errors[name] for name in bench.outputs),
        "errors": errors,
        "flags": list(kernel.status()),
        "kv_len": kv_len,
        "note": f"{timing.calls} launches in a CUDA graph, {len(bench.sets)} sets of tensors, L2 {l2}; "
        f"median of {timing.replays} replays; {place['date']}",
    }


def benchmark(
    fusion: Fusion, model: ModelConfig, kernel: Kernel, kv_lens: Sequence[int], options: Mapping[str, Any], *,
    peers: bool = True, runs: int = 1000, budget_s: float = 300.0, log: Log = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that `bench` prints, as one record: where, the read ceiling, and a row per KV length with the peers' times.

    runs: launches compared bit by bit with the first. budget_s: no further peer is begun after so many seconds of peers (compiling
    them takes most of it); what was left out is named in the record.
    """
    ceiling = measure.read_ceiling()
    log(f"read ceiling {ceiling.gbps:,.0f} GB/s ({ceiling.how})")
    bench = Bench(fusion, model, kernel, options, max(kv_lens), min(kv_lens))
    rows, wants = [], {}
    for kv_len in kv_lens:
        row, wants[kv_len] = measure_kernel(bench, kv_len, ceiling, runs)
        rows.append(row)
        log(f"{kv_len:,} tokens: {row['us']:.1f} us, error {row['relative_error']:.1e}")
    host = measure.host_us(bench.host_calls())
    left_out = measure_peers(bench, rows, wants, budget_s, log) if peers else ["all, as asked"]
    return {
        "environment": measure.environment(),
        "ceiling": {"gbps": ceiling.gbps, "how": ceiling.how, "tried": dict(ceiling.tried)},
        **host,
        "sets": len(bench.sets),
        "cold": bench.cold,
        "capacity": bench.capacity,
        "rows": rows,
        "peers_left_out": left_out,
    }


def measure_kernel(bench: Bench, kv_len: int, ceiling: measure.Ceiling, runs: int) -> tuple[dict[str, Any], Tensors]:
    """One row, and the float64 reference that it was held against."""
    bench.at(kv_len)
    want = bench.want()
    errors = bench.errors(want)
    timing = measure.time_graph(bench.calls())
    first = bench.sets[0]
    different = measure.count_different(bench.calls()[0], [first[name] for name in bench.outputs], runs)
    moved = bench.bytes(kv_len)
    gbps = moved / timing.us / 1e3
    row = {
        "kv_len": kv_len,
        "us": timing.us,
        "fastest_us": timing.fastest_us,
        "slowest_us": timing.slowest_us,
        "bytes": moved,
        "gbps": gbps,
        "of_ceiling": gbps / ceiling.gbps,
        "memory_us": moved / ceiling.gbps / 1e3,
        "relative_error": max(errors[name] for name in bench.outputs),
        "errors": errors,
        "runs": runs,
        "different_runs": different,
        "flags": list(bench.kernel.status(clear=True)),
        "peers": [],
    }
    return row, {name: want[name] for name in bench.outputs}


def measure_peers(bench: Bench, rows: list[dict[str, Any]], wants: Mapping[int, Tensors], budget_s: float, log: Log) -> list[str]:
    """Time every peer at every KV length and add it to the rows; returns what was left out, and why."""
    left_out, start = [], time.monotonic()
    for peer in bench.fusion.peers:
        for row in rows:
            what = f"{peer.name} ({peer.variant}) at {row['kv_len']:,}"
            if time.monotonic() - start > budget_s:
                left_out.append(f"{what}: more than {budget_s:.0f} s were spent on peers")
                continue
            try:
                found = measure_peer(bench, peer, row["kv_len"], wants[row["kv_len"]])
            except Exception as error:  # a peer that this machine cannot run must not cost the measurement of the kernel
                left_out.append(f"{what}: {measure.in_one_line(error)}")
                continue
            row["peers"].append({**found, "speedup": found["us"] / row["us"]})
            log(f"{what} tokens: {found['us']:.1f} us")
    if not bench.fusion.peers:
        left_out.append(f"there are no peers for {bench.fusion.name}")
    return left_out


def measure_peer(bench: Bench, peer: Peer, kv_len: int, want: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """One peer's time over the same rotation, and its error against float64."""
    bench.at(kv_len)
    made = [peer.make(bench.model, tensors, kv_len, **bench.options) for tensors in bench.sets]
    forward = ready(peer, made[0][0])
    with torch.no_grad():
        started = time.monotonic()
        error = peer_error(forward(*made[0][1]), want)
        compile_s = time.monotonic() - started
        timing = measure.time_graph([functools.partial(forward, *given) for _, given in made])
    return {"name": peer.name, "variant": peer.variant, "us": timing.us, "relative_error": error, "first_call_s": compile_s}
