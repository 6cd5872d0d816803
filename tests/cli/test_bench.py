from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cfdsl.cli.bench import bench_panel
from cfdsl.cli.measuring import parse_lengths
from cfdsl.cli.plot import plot_times, series


def record() -> dict[str, Any]:
    """What `benchmark` returns for one KV length with two variants of a peer and one left out, plus what `bench` adds."""
    peers = [
        {"name": "torch eager", "variant": "SDPA", "us": 80.0, "relative_error": 2e-3, "speedup": 80 / 64},
        {"name": "torch.compile", "variant": "SDPA", "us": 76.0, "relative_error": 2e-3, "speedup": 76 / 64},
        {"name": "torch.compile", "variant": "written out", "us": 70.0, "relative_error": 2e-3, "speedup": 70 / 64},
    ]
    row = {"us": 64.0, "fastest_us": 63.0, "slowest_us": 66.0, "bytes": 192_000_000, "gbps": 3000.0, "of_ceiling": 0.96, "memory_us": 61.4}
    checks = {"relative_error": 1.7e-3, "errors": {"y": 1.7e-3}, "runs": 1000, "different_runs": 0, "flags": []}
    rows = [{"kv_len": 1024, **row, **checks, "peers": peers}, {"kv_len": 4096, **row, **checks, "different_runs": 2, "peers": []}]
    return {
        "fusion": "attention_block", "model": "llama-2-7b", "dtype": "bf16", "batch": 1,
        "command": "python -m cfdsl bench ...",
        "environment": {"gpu": "NVIDIA H100", "sms": "132", "torch": "2.13.0", "cuda": "12.8", "date": "2026-11-23 12:00 UTC"},
        "ceiling": {"gbps": 3125.0, "how": "torch.sum", "tried": {}},
        "config": {"clusters": 32, "cluster_size": 2, "smem_bytes": 107000, "pdl": True},
        "registers": 63, "host_us": 5.5, "step_us": 4.5, "bound_us": 3.5, "torch_op_us": 6.5,
        "sets": 3, "cold": True, "rows": rows,
        "peers_left_out": ["torch.compile (SDPA) at 4,096: too late"],
    }  # fmt: skip


def printed(what: Any) -> str:
    screen = Console(width=120, record=True, file=io.StringIO())
    screen.print(what)
    return screen.export_text()


def test_the_table_has_everything_a_measurement_needs() -> None:
    text = printed(bench_panel(record()))
    for wanted in (
        "NVIDIA H100, 132 SMs", "2026-11-23", "python -m cfdsl bench", "read ceiling 3,125 GB/s (torch.sum)", "L2 cold",
        "host: 5.5 us per eager call; with weights and caches bound (kernel.bind) 4.5, with all 3.5; torch's x.add_(0) 6.5",
        "64.0", "3,000", "96.0%", "1.7e-03", "1000 equal", "torch eager, SDPA", "1.25x", "2 differ", "2 of 1000 launches differ",
        "too late",
    ):  # fmt: skip
        assert wanted in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_the_fastest_variant_of_a_peer_counts() -> None:
    assert series(record()) == {"cfdsl": [64.0, 64.0], "torch eager": [80.0, None], "torch.compile": [70.0, None]}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_written(suffix: str, tmp_path: Path) -> None:
    plot_times(record(), tmp_path / f"out.{suffix}")
    assert (tmp_path / f"out.{suffix}").stat().st_size > 1000


def test_lengths() -> None:
    assert parse_lengths("1024, 4096") == [1024, 4096]
    assert parse_lengths("0") == [0]


def test_a_fusion_without_a_cache_has_no_kv_length() -> None:
    text = printed(bench_panel({**record(), "cached": False}))
    assert "1,024" not in text
    assert "1,024" in printed(bench_panel(record()))
