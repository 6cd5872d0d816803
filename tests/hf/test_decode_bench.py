"""`bench decode` on a CPU: clocks and the GPU's answers are stand-ins; decoders, Hugging Face's model and arithmetic are real."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_decoder import PlainDecoder
from rich.console import Console
from runner import run

from cfdsl.cli.bench_decode import decode_panel, sum_line
from cfdsl.errors import PeerUnsupported
from cfdsl.hf import decode_bench, peer
from cfdsl.hf.weights import random_weights
from cfdsl.models import PRESETS, RopeScaling
from cfdsl.runtime import decode_benchmark, measure

SIZES = PRESETS["smollm2-135m"].with_(layers=2, vocab=300, intermediate=64, name="small")
STEP_US, KERNEL_US = 10.0, 2.0


@dataclass(frozen=True)
class FakeLaunch:
    name: str
    kernel: Any
    args: tuple[torch.Tensor, ...]
    calls: list[int]

    def __call__(self) -> None:
        self.calls.append(int(self.args[0][0]))


class Benched(PlainDecoder):
    """With the launches of a step (two kernels: `block` per layer, one `head`) and the bytes that they move."""

    def __init__(self, *given: Any, **how: Any) -> None:
        super().__init__(*given, **how)
        self.calls: list[int] = []
        roles = [SimpleNamespace(role=role) for role in ("input", "weight", "cache", "output")]

        def launch(name: str, moved: int) -> FakeLaunch:
            kernel = SimpleNamespace(args=roles, traffic=lambda sizes: SimpleNamespace(hbm_bytes=moved + sizes["length"]))
            weight = self.weights["model.norm.weight"]
            return FakeLaunch(name, kernel, (self.length, weight, self.caches[0][0], self.logits), self.calls)

        self.launches = [launch("block", 8_000), launch("block", 8_000), launch("head", 2_000)]

    def reset(self, length: int = 0) -> None:
        self.length.fill_(length)

    def capture(self, advance: bool = True) -> Callable[[], None]:
        def replay() -> None:
            self.step()
            if advance:
                self.advance()

        return replay

    def kernel_bytes(self, length: int | None = None) -> int:
        return 18_000 + (int(self.length) if length is None else length)

    def status(self, clear: bool = False) -> tuple[str, ...]:
        return ()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stand-ins for what only a GPU can answer; returns the numbers of calls that were in a timed graph."""
    clock, timed = itertools.count(), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0

        def record(self) -> None:
            self.at = next(clock)

        def elapsed_time(self, other: Event) -> float:
            return (other.at - self.at) * STEP_US / 1e3

    def time_graph(calls: Sequence[Callable[[], Any]]) -> measure.Timing:
        for call in calls:
            call()
        timed.append(len(calls))
        return measure.Timing(KERNEL_US, 1.0, 3.0, len(calls), 1)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda step, **how: step)
    monkeypatch.setattr(measure, "time_graph", time_graph)
    monkeypatch.setattr(measure, "l2_bytes", lambda: 10_000)
    monkeypatch.setattr(measure, "read_ceiling", lambda: measure.Ceiling(2.0, "a stand-in", {}))
    monkeypatch.setattr(measure, "environment", lambda: PLACE)
    monkeypatch.setattr(decode_bench, "decoder_class", lambda: Benched)
    monkeypatch.setattr(decode_bench, "WAYS", (peer.Way("eager", True, False),))
    Benched.made.clear()
    return timed


PLACE = {"gpu": "NVIDIA H100", "sms": "132", "torch": "2.13.0", "cuda": "13.0", "date": "2026-11-23 12:00 UTC"}


def benched(**how: Any) -> dict[str, Any]:
    return decode_bench.benchmark_decode(SIZES, [20, 50], steps=4, device="cpu", **how)


def test_a_row_per_context(on_cpu: list[int]) -> None:
    record = benched(peers=False)
    assert [row["context"] for row in record["rows"]] == [20, 50]
    for row, decoder in zip(record["rows"], Benched.made, strict=True):
        assert (row["us"], row["fastest_us"], row["slowest_us"], row["mean_us"]) == pytest.approx((STEP_US,) * 4)
        assert row["tokens_per_s"] == pytest.approx(1e5)
        assert row["bytes"] == 18_000 + row["context"] + 2  # the middle of four steps
        assert row["gbps"] == pytest.approx(row["bytes"] / STEP_US / 1e3)
        assert row["of_ceiling"] == pytest.approx(row["gbps"] / 2.0)
        assert row["memory_us"] == pytest.approx(row["of_ceiling"] * STEP_US)
        assert (row["steps"], row["advanced"]) == (4, 4)  # the length moved with every replay and was not set back
        assert decoder.capacity % 64 == 0
        assert decoder.capacity > row["context"] + 4
        assert all(float(cache.float().std()) == pytest.approx(1.0, abs=0.02) for pair in decoder.caches for cache in pair)
    assert record["peers_left_out"] == ["all, as asked"]
    assert record["weight_bytes"] == sum(weight.numel() * 2 for weight in random_weights(SIZES).values())


def test_kernels_are_timed_one_by_one_over_cold_tensors(on_cpu: list[int]) -> None:
    row = benched(peers=False)["rows"][0]
    block, head = row["kernels"]
    assert (block["name"], block["launches"], block["us"], block["step_us"]) == ("block", 2, KERNEL_US, 2 * KERNEL_US)
    assert (head["name"], head["launches"], head["step_us"]) == ("head", 1, KERNEL_US)
    assert (block["bytes"], head["bytes"]) == (8_022, 2_022)
    assert block["of_ceiling"] == pytest.approx(8_022 / KERNEL_US / 1e3 / 2.0)
    assert row["kernels_us"] == 3 * KERNEL_US
    assert on_cpu[:2] == [4, 15]  # 30,000 bytes cover L2 three times: two blocks twice, the head fifteen times
    assert set(Benched.made[0].calls) == {22}  # all at one length
    assert block["cold"]
    assert head["cold"]
    assert row["l2"].startswith("a step moves 0 MB")
    assert sum_line(row) == "sum 6.0 us; a whole step takes 10.0 us, 4.0 us more"


def test_copies_are_of_weights_and_caches_alone() -> None:
    weights = random_weights(SIZES)
    launch = Benched(SIZES, weights, capacity=64).launches[0]
    calls, cold = decode_benchmark.rotation([launch], 10_000, 10_000)
    assert len(calls) == 3
    assert cold
    for other in calls[1:]:
        same = [a.data_ptr() == b.data_ptr() for a, b in zip(launch.args, other.args, strict=True)]
        assert same == [True, False, False, True]
    assert decode_benchmark.rotation([launch], 10, 10_000) == ([launch], False)
    assert decode_benchmark.in_l2(30_000, 10_000) is None


def test_hugging_face_on_the_same_weights_and_caches(on_cpu: list[int]) -> None:
    record = benched()
    assert record["peers_left_out"] == []
    for row in record["rows"]:
        [found] = row["peers"]
        assert (found["us"], found["speedup"]) == pytest.approx((STEP_US, 1.0))
        assert 0 < found["logits_error"] < 3e-2  # bfloat16 between its ops, float32 between ours


@pytest.mark.parametrize("scaling", [None, RopeScaling("llama3", 8.0, 1.0, 4.0, 64), RopeScaling("linear", 4.0)])
@pytest.mark.parametrize("tied", [False, True])
def test_the_peer_is_the_same_model(tied: bool, scaling: RopeScaling | None) -> None:
    sizes = SIZES.with_(tied_embeddings=tied, rope_scaling=scaling, rope_theta=5e5)
    weights = random_weights(sizes)
    model = peer.hf_model(sizes, weights)
    own = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    assert own == {name: weight.data_ptr() for name, weight in weights.items()}
    hf, ours = peer.HfDecode(model, 128), Benched(sizes, weights, capacity=128)
    decode_benchmark.fill_caches(ours)
    hf.fill(ours.caches)
    hf.reset(100)
    ours.reset(100)
    for step in range(3):
        hf.step()
        ours.step()
        assert decode_benchmark.logits_error(ours.logits, hf.logits.float()) < 3e-2, step
        ours.token.copy_(hf.token[0])
    assert int(hf.position) == 103


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"qkv_bias": True}, "its query, key and value projections have biases and the output projection has none"),
        ({"rotary_dim": 32}, "it rotates 32 of the 64 dimensions of a head"),
        ({"rope_style": "interleaved"}, "its rotary pairs are interleaved"),
    ],
)
def test_what_hugging_faces_llama_is_not_is_left_out_with_the_reason(on_cpu: list[int], fields: dict[str, Any], reason: str) -> None:
    sizes = SIZES.with_(**fields)
    with pytest.raises(PeerUnsupported, match=f"LlamaForCausalLM cannot be small: {reason}."):
        peer.hf_model(sizes, random_weights(sizes))


def test_a_peer_that_cannot_be_made_is_named_once(on_cpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "unlike", lambda sizes: ["it is another", "it is not this one"])
    note = "Hugging Face: PeerUnsupported: LlamaForCausalLM cannot be small: it is another; it is not this one."
    assert benched()["peers_left_out"] == [note]


def test_weights_that_the_peer_has_no_place_for() -> None:
    weights = {**random_weights(SIZES), "model.layers.0.self_attn.q_proj.bias": torch.zeros(576, dtype=torch.bfloat16)}
    with pytest.raises(PeerUnsupported, match="cannot be small: it has no model.layers.0.self_attn.q_proj.bias"):
        peer.hf_model(SIZES, weights)


def test_a_peer_that_fails_costs_only_itself(on_cpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(step: object, **how: object) -> object:
        raise RuntimeError("no triton here\nmore lines")

    monkeypatch.setattr(torch, "compile", broken)
    record = benched()
    assert [row["peers"] for row in record["rows"]] == [[], []]
    assert record["peers_left_out"][0] == "Hugging Face (eager) at 20: RuntimeError: no triton here"
    assert benched(budget_s=-1.0)["peers_left_out"][0] == "Hugging Face at 20: more than -1 s were spent on peers"


def printed(record: dict[str, Any]) -> str:
    screen = Console(width=120, record=True, file=io.StringIO())
    screen.print(decode_panel({**record, "command": "python -m cfdsl bench decode ..."}))
    return screen.export_text()


def test_the_tables_have_everything_a_measurement_needs(on_cpu: list[int]) -> None:
    record = benched()
    record["rows"][1] |= {"advanced": 3, "flags": ["attention_block: a KV length was negative"]}
    record["rows"][1]["kernels"][1]["cold"] = False
    text = printed(record)
    flat = " ".join(text.replace("│", " ").split())
    for wanted in (
        "NVIDIA H100, 132 SMs", "2026-11-23", "python -m cfdsl bench decode", "read ceiling 2 GB/s (a stand-in)", "random weights, seed 0",
        "median of 4", "0.010", "100,000.0", "90.1%", "1.00x", "Hugging Face", "kernels of a step at 20 tokens",
        "sum 6.0 us; a whole step takes 10.0 us, 4.0 us more", "part of the weights may stay in it", "L2 is not cold for head",
        "4 steps advanced the length by 3", "a KV length was negative",
    ):  # fmt: skip
        assert wanted in flat, wanted
    assert max(len(line) for line in text.splitlines()) <= 120


def test_the_command(on_cpu: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cfdsl.cli.gpu.gpu_present", lambda: False)
    done = run("bench", "decode", "--model", "smollm2-135m", "--context", "20")
    assert done.code == 1
    assert "NeedsGpu: `python -m cfdsl bench decode` measures on a GPU" in done.err
    assert "--context" in run("bench", "decode", "--model", "smollm2-135m", "--context", "x").err
    assert "bench decode" in run("bench", "--help").out
    monkeypatch.setattr("cfdsl.cli.gpu.gpu_part", lambda: object())
    real = decode_bench.benchmark_decode
    monkeypatch.setattr(decode_bench, "benchmark_decode", lambda sizes, contexts, **how: real(SIZES, contexts, **how, device="cpu"))
    arguments = ("bench", "decode", "--model", "smollm2-135m", "--context", "20", "--steps", "2", "--no-peers", "--json")
    done = run(*arguments, "-")
    assert done.json["rows"][0]["context"] == 20
    done = run(*arguments, str(tmp_path / "out.json"))
    assert "decode, small, bf16, batch 1" in done.out
    assert json.loads((tmp_path / "out.json").read_text())["rows"][0]["steps"] == 2
