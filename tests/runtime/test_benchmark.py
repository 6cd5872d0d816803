"""The benchmark's bookkeeping, on a CPU: clocks and the GPU's answers are stand-ins, tensors and arithmetic are real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cfdsl as cf
from cfdsl.compiler.plan import Arg
from cfdsl.dsl.interpret import count_traffic
from cfdsl.dsl.place import place
from cfdsl.dsl.placement import Mesh
from cfdsl.models import PRESETS, ModelConfig
from cfdsl.runtime import benchmark, measure
from cfdsl.runtime.peers import peer_error
from fusions.attention_block import attention_block
from fusions.embedding import embedding
from fusions.ffn_block import ffn_block
from fusions.lm_head import lm_head
from fusions.rms_norm import rms_norm

MODEL = PRESETS["smollm2-135m"]
NAMES = ("x", "residual", "pos", "length", "cos", "sin", "wq", "wk", "wv", "wo", "norm", "cache_k", "cache_v", "y")


class FakeKernel:
    """Computes what the reference computes, in the order of the real kernel's arguments."""

    def __init__(self, wrong: float = 1.0) -> None:
        placed = place(attention_block.trace(MODEL), Mesh(3, 2))
        self.lowered = SimpleNamespace(placed=placed)
        self.plan = SimpleNamespace(dtype="bf16")
        roles = {"y": "output", "cache_k": "cache", "cache_v": "cache"}
        self.args = tuple(Arg(name, (1, 1), "bf16", roles.get(name, "input")) for name in NAMES)
        self.wrong, self.launches = wrong, 0

    def __call__(self, *args: torch.Tensor) -> None:
        given = dict(zip(NAMES, args, strict=True))
        want = attention_block.reference(MODEL, given, "f32")
        given["y"].copy_(want["y"] * self.wrong)
        given["cache_k"].copy_(want["cache_k"])
        given["cache_v"].copy_(want["cache_v"])
        self.launches += 1

    def bind(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Callable[..., None]:
        left = [name for name in NAMES if name not in kwargs][len(args) :]

        def launch(*rest: torch.Tensor) -> None:
            given = {**dict(zip(NAMES, args)), **kwargs, **dict(zip(left, rest, strict=True))}
            self(*(given[name] for name in NAMES))

        return launch

    def status(self, clear: bool = False) -> tuple[str, ...]:
        return ()


def each_called_once(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    for call in calls.values():
        call()
    return dict.fromkeys(calls, 5.0)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stand-ins for what only a GPU can answer; returns the numbers of calls that were timed."""
    timed: list[int] = []

    def time_graph(calls: Sequence[Callable[[], Any]], *rest: int) -> measure.Timing:
        for call in calls:
            call()
        timed.append(len(calls))
        return measure.Timing(10.0, 9.0, 11.0, len(calls), 1)

    monkeypatch.setattr(measure, "time_graph", time_graph)
    monkeypatch.setattr(measure, "l2_bytes", lambda: 1 << 20)
    monkeypatch.setattr(measure, "read_ceiling", lambda: measure.Ceiling(1000.0, "a stand-in", {}))
    monkeypatch.setattr(measure, "host_us", each_called_once)
    monkeypatch.setattr(measure, "environment", lambda: {"gpu": "none", "date": "2026-11-23"})
    init = benchmark.Bench.__init__
    monkeypatch.setattr(benchmark.Bench, "__init__", lambda self, *args, **kwargs: init(self, *args, **{"device": "cpu", **kwargs}))
    return timed


def run(kernel: FakeKernel, **rest: Any) -> dict[str, Any]:
    return benchmark.benchmark(attention_block, MODEL, kernel, [20, 50], {}, runs=3, **rest)  # type: ignore[arg-type]


def test_rows_have_time_bandwidth_error_and_repeatability(on_cpu: list[int]) -> None:
    record = run(FakeKernel(), peers=False)
    assert [row["kv_len"] for row in record["rows"]] == [20, 50]
    for row in record["rows"]:
        sizes = {"tokens": 51, "positions": 51, "length": row["kv_len"]}
        assert row["bytes"] == count_traffic(place(attention_block.trace(MODEL), Mesh(3, 2)), sizes).hbm_bytes
        assert row["gbps"] == pytest.approx(row["bytes"] / 10.0 / 1e3)
        assert row["of_ceiling"] == pytest.approx(row["gbps"] / 1000.0)
        assert row["relative_error"] < 4e-3
        assert set(row["errors"]) == {"y", "cache_k", "cache_v"}
        assert (row["runs"], row["different_runs"], row["flags"]) == (3, 0, [])
    assert record["sets"] == 3
    assert record["capacity"] == 128
    assert record["peers_left_out"] == ["all, as asked"]


def test_a_wrong_kernel_has_an_error(on_cpu: list[int]) -> None:
    assert run(FakeKernel(wrong=1.5), peers=False)["rows"][0]["relative_error"] == pytest.approx(0.5, rel=0.01)


def test_outputs_that_example_inputs_leave_out_are_made(on_cpu: list[int]) -> None:
    bare = cf.Fusion(attention_block.fn)
    bare.reference(attention_block.reference)

    @bare.example_inputs
    def inputs(*args: Any, **how: Any) -> dict[str, torch.Tensor]:
        made = attention_block.example_inputs(*args, **how)
        return {name: tensor for name, tensor in made.items() if name != "y"}

    kernel = FakeKernel()
    kernel.args = tuple(Arg("y", (1, MODEL.hidden), "bf16", "output") if arg.name == "y" else arg for arg in kernel.args)
    found = benchmark.check_and_time(bare, MODEL, kernel, 20, {})  # type: ignore[arg-type]
    assert found["relative_error"] < 4e-3


def test_peers_are_timed_at_every_length_and_are_right(on_cpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda block, **how: block)
    record = run(FakeKernel())
    for row in record["rows"]:
        assert [(peer["name"], peer["variant"]) for peer in row["peers"]] == [(peer.name, peer.variant) for peer in attention_block.peers]
        assert all(peer["relative_error"] < 1e-2 and peer["speedup"] == 1.0 for peer in row["peers"])
    assert record["peers_left_out"] == []


def test_a_peer_that_fails_costs_only_itself(on_cpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(block: object, **how: object) -> object:
        raise RuntimeError("no triton here\nmore lines")

    monkeypatch.setattr(torch, "compile", broken)
    record = run(FakeKernel())
    assert [peer["name"] for peer in record["rows"][0]["peers"]] == ["torch eager"]
    assert "torch.compile (max-autotune, SDPA) at 20: RuntimeError: no triton here" in record["peers_left_out"]


def test_no_peer_begins_after_the_budget(on_cpu: list[int]) -> None:
    record = run(FakeKernel(), budget_s=-1.0)
    assert all(row["peers"] == [] for row in record["rows"])
    assert "torch eager (SDPA) at 20: more than -1 s were spent on peers" in record["peers_left_out"]


def test_check_and_time_says_how_it_measured(on_cpu: list[int]) -> None:
    found = benchmark.check_and_time(attention_block, MODEL, FakeKernel(), 20, {})  # type: ignore[arg-type]
    assert found["us"] == 10.0
    sizes = {"tokens": 21, "positions": 21, "length": 20}
    assert found["gbps"] == pytest.approx(count_traffic(place(attention_block.trace(MODEL), Mesh(3, 2)), sizes).hbm_bytes / 10.0 / 1e3)
    assert found["relative_error"] < 4e-3
    assert found["note"] == "3 launches in a CUDA graph, 3 sets of tensors, L2 cold; median of 1 replays; 2026-11-23"


@pytest.mark.parametrize(
    ("count", "l2", "want"), [(1 << 30, 50 << 20, (3, True)), (40 << 20, 50 << 20, (4, True)), (1024, 50 << 20, (64, False))]
)
def test_how_many_sets_leave_l2_cold(count: int, l2: int, want: tuple[int, bool]) -> None:
    assert measure.cold_sets(count, l2) == want


def test_relative_error_sees_what_is_missing() -> None:
    want = torch.tensor([1.0, float("nan"), 2.0])
    assert measure.relative_error(torch.tensor([1.0, 5.0, 2.0]), want) == 0.0
    assert measure.relative_error(torch.tensor([float("nan"), 5.0, 2.0]), want) == float("inf")
    assert measure.relative_error(torch.tensor([1.0, 5.0, 2.5]), want) == pytest.approx(0.5 / 5**0.5)
    nothing = torch.full((3,), float("nan"))
    assert measure.relative_error(want, nothing) == measure.relative_error(nothing, nothing) == float("inf")
    assert measure.relative_error(nothing[:0], nothing[:0]) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_runs_that_differ_in_one_bit_are_counted(dtype: torch.dtype) -> None:
    out, calls = torch.zeros(8, dtype=dtype), [0]

    def flaky() -> None:
        calls[0] += 1
        out.fill_(float("nan"))
        if calls[0] % 4 == 0:
            out[3] = 1.0

    assert measure.count_different(flaky, [out], 11) == 3


def variants() -> list[tuple[ModelConfig, str]]:
    base = PRESETS["llama-3.2-1b"].with_(hidden=256, heads=8, kv_heads=2)
    return [
        (base, "bhtd"),
        (base, "bthd"),
        (base.with_(qkv_bias=True), "bhtd"),
        (base.with_(rope_style="interleaved", rotary_dim=32), "bthd"),
    ]


@pytest.mark.parametrize(("model", "layout"), variants())
@pytest.mark.parametrize("peer", attention_block.peers, ids=lambda peer: f"{peer.name}, {peer.variant}")
def test_peers_compute_the_same_block(model: ModelConfig, layout: str, peer: Any) -> None:
    given = attention_block.example_inputs(model, 1, "bf16", length=60, capacity=64, layout=layout)
    for name in ("pos", "length"):
        given[name].fill_(45)
    want = attention_block.reference(model, given, "f64", layout=layout)
    forward, arguments = peer.make(model, given, 45, layout=layout)
    got = forward(*arguments)
    assert measure.relative_error(got, want["y"]) < 1e-2
    assert measure.relative_error(given["cache_k"], want["cache_k"]) < 4e-3


OTHERS: list[tuple[cf.Fusion, dict[str, Any]]] = [
    (rms_norm, {}), (ffn_block, {}), (embedding, {}), (lm_head, {}), (lm_head, {"out": "logits"}), (lm_head, {"out": "both"}),
]  # fmt: skip


@pytest.mark.parametrize(("fusion", "options"), OTHERS, ids=str)
def test_the_peers_of_other_fusions(fusion: cf.Fusion, options: dict[str, Any]) -> None:
    """Each computes what its fusion does, in 16 bits; of a function for several sets of tensors there is one."""
    model = MODEL.with_(vocab=1000)
    given = fusion.example_inputs(model, 1, "bf16", **options)
    want = fusion.reference(model, given, **options)
    assert fusion.peers
    for peer in fusion.peers:
        forward, arguments = peer.make(model, given, 0, **options)
        assert peer_error(forward(*arguments), want) < 1e-2
        assert peer.make(model, given, 0, **options)[0] is forward


def test_sets_are_few_where_they_are_large(on_cpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding reads a row of a large table: 64 tables would be made for a launch of a kilobyte."""
    kernel = SimpleNamespace(
        lowered=SimpleNamespace(placed=place(embedding.trace(MODEL), Mesh(1, 1))), plan=SimpleNamespace(dtype="bf16"),
        args=(Arg("y", (1, 576), "bf16", "output"),),
    )  # fmt: skip
    monkeypatch.setattr(benchmark, "MOST_BYTES", 130 << 20)
    made = benchmark.Bench(embedding, MODEL, kernel, {}, 0)  # type: ignore[arg-type]
    assert len(made.sets) == 3, "of 54 MB each"
    assert not made.cold


def test_poison_is_no_result() -> None:
    floats, indices = torch.zeros(2), torch.zeros(2, dtype=torch.int32)
    for tensor in (floats, indices):
        measure.poison(tensor)
    assert floats.isnan().all()
    assert indices.tolist() == [-1, -1]


def test_a_wrong_index_is_wrong_however_near() -> None:
    want = torch.tensor([128255], dtype=torch.int32)
    assert measure.relative_error(want.clone(), want) == 0.0
    assert measure.relative_error(want - 1, want) == float("inf")


@pytest.mark.gpu
def test_graph_times_are_of_one_call() -> None:
    data = torch.ones(1 << 26, device="cuda")
    timing = measure.time_graph([lambda: data.sum()], replays=5)
    assert timing.calls == 12
    assert 10 < timing.us < 10000
    assert timing.fastest_us <= timing.us <= timing.slowest_us


@pytest.mark.gpu
def test_the_read_ceiling_is_a_plausible_number() -> None:
    ceiling = measure.read_ceiling(1 << 29)
    assert 500 < ceiling.gbps < 10000
    assert ceiling.gbps == max(ceiling.tried.values())
