"""The cost model's best candidates, measured: each one's time beside its estimate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from cfdsl.compiler.cost import Candidate
from cfdsl.dsl.fusion import Fusion
from cfdsl.models import ModelConfig
from cfdsl.runtime import measure
from cfdsl.runtime.benchmark import Bench
from cfdsl.runtime.kernel import Kernel

SHAPE = ("clusters", "cluster_size", "splits", "ctas_per_sm")  # the fields of a Config in which candidates differ
Row = dict[str, Any]


def shape_of(candidate: Candidate) -> dict[str, int]:
    """What to fix so that the cost model has only this candidate left."""
    return {name: getattr(candidate.config, name) for name in SHAPE}


def tune(
    fusion: Fusion, model: ModelConfig, candidates: Iterable[Candidate], make: Callable[[Mapping[str, int]], Kernel], kv_len: int,
    options: Mapping[str, Any], log: Callable[[str], None] = lambda text: None,
) -> list[Row]:  # fmt: skip
    """A row per candidate, fastest first, those that failed last.

    make   the kernel with these fields of Config fixed. All of them run on the same sets of tensors, L2-cold and in a CUDA graph, after
           a comparison with float64. What goes wrong with one is its row's `problem`.
    """
    rows, bench = [], None
    for candidate in candidates:
        row: Row = {"shape": shape_of(candidate), "estimate_us": candidate.time_us, "chosen": candidate.chosen, "problem": None}
        try:
            kernel = make(row["shape"])
            bench = Bench(fusion, model, kernel, options, kv_len, kv_len) if bench is None else replaced(bench, kernel)
            row |= measured(bench, kv_len)
        except Exception as error:  # one that this device cannot run must not cost the others
            row["problem"] = measure.in_one_line(error)
        log(one_line(row))
        rows.append(row)
    return sorted(rows, key=lambda row: (row["problem"] is not None, row.get("us", 0.0)))


def one_line(row: Row) -> str:
    """Progress."""
    found = row["problem"] or f"{row['us']:.1f} us, estimated {row['estimate_us']:.1f}"
    return f"{', '.join(f'{name} {value}' for name, value in row['shape'].items())}: {found}"


def replaced(bench: Bench, kernel: Kernel) -> Bench:
    """The same tensors for another kernel of the same fusion: it takes the same arguments."""
    other = copy.copy(bench)  # no `dataclasses.replace`: that would make the tensors anew
    other.kernel = kernel
    return other


def measured(bench: Bench, kv_len: int) -> Row:
    """Time, error and the config of a kernel that runs."""
    bench.at(kv_len)
    errors = bench.errors(bench.want())
    timing = measure.time_graph(bench.calls())
    torch.cuda.synchronize()
    config = bench.kernel.config
    return {
        "us": timing.us, "fastest_us": timing.fastest_us, "slowest_us": timing.slowest_us, "gbps": bench.bytes(kv_len) / timing.us / 1e3,
        "relative_error": max(errors[name] for name in bench.outputs), "stages": config.stages, "window": config.window,
        "early": config.early, "flags": list(bench.kernel.status(clear=True)),
    }  # fmt: skip
