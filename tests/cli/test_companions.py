"""What an author registers beside a spec, and gets wrong: the complaint names the author's line."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner import run

ON = ("--model", "smollm2-135m", "--part", "h100-sxm")
SPEC = """import torch

import cfdsl as cf


@cf.fusion
def mine(m, batch):
    x = cf.input("x", (batch, m.hidden))
    return cf.outputs(y=cf.silu(x), z=x + x)


@mine.example_inputs
def examples(m, batch=1, dtype="bf16", *, length=0, capacity=1, device="cpu", seed=0):
    return {examples}


@mine.reference
def reference({signature}):
    x = t["x"].double()
    return {reference}
"""
X = '{"x": torch.ones(batch, m.hidden, dtype=torch.bfloat16)}'
RIGHT = '{"y": torch.nn.functional.silu(x), "z": x + x}'
EXAMPLES_AT, REFERENCE_AT, EXAMPLES_RETURN, REFERENCE_RETURN = 13, 18, 14, 20


def spec(folder: Path, examples: str = X, signature: str = 'm, t, precision="f64"', reference: str = RIGHT) -> str:
    file = folder / "spec.py"
    file.write_text(SPEC.format(examples=examples, signature=signature, reference=reference))
    return f"{file}:mine"


def test_what_is_right_agrees(tmp_path: Path) -> None:
    record = run("compile", spec(tmp_path), *ON, "--json").json
    assert record["oracle"]["ok"]
    assert "oracle" not in record["left_out"]
    assert (record["gpu"] is None) == ("gpu" in record["left_out"])


@pytest.mark.parametrize(
    ("wrong", "line", "says"),
    [
        ({"reference": '{"y": x}'}, REFERENCE_AT, "BadCompanion: the reference of mine gives no 'z'."),
        (
            {"reference": '{"y": x[:, 1:], "z": x}'},
            REFERENCE_AT,
            "BadCompanion: the reference of mine gives 'y' in shape (1, 575), and the spec has (1, 576).",
        ),
        (
            {"reference": '{"y": x * float("nan"), "z": x}'},
            REFERENCE_AT,
            "BadCompanion: the reference of mine gives a 'y' with elements that are no finite numbers.",
        ),
        ({"reference": "x"}, REFERENCE_AT, "BadCompanion: the reference of mine must give a dict of tensors by name, and not this Tensor."),
        ({"signature": "m, t"}, REFERENCE_AT, "BadCompanion: the reference of mine cannot be called: too many positional arguments."),
        ({"reference": "m.hiden"}, REFERENCE_RETURN, "SpecFailed: the file of the spec raised AttributeError"),
        (
            {"examples": "[1]"},
            EXAMPLES_AT,
            "BadCompanion: the example inputs of mine must give a dict of tensors by name, and not this list.",
        ),
        ({"examples": "{}"}, EXAMPLES_AT, "ArgumentError: argument 'x' must be a tensor bf16[1,576], got nothing."),
        ({"examples": "torch.ones(m.hide)"}, EXAMPLES_RETURN, "SpecFailed: the file of the spec raised AttributeError:"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, wrong: dict[str, str], line: int, says: str) -> None:
    spot = spec(tmp_path, **wrong)
    done = run("compile", spot, *ON)
    assert done.code == 1
    assert done.err.startswith(f"error: {says}")
    assert f"\n  {spot.removesuffix(':mine')}:{line}: " in done.err
    assert "\n  remedy: " in done.err


def test_without_them_the_check_is_left_out_and_nothing_can_be_measured(tmp_path: Path) -> None:
    spot = spec(tmp_path)
    file = Path(spot.removesuffix(":mine"))
    file.write_text(file.read_text().replace("@mine.example_inputs\n", ""))
    assert "left out: this fusion has no example inputs." in run("compile", spot, *ON).out
    record = run("compile", spot, *ON, "--json").json
    assert record["oracle"] is None
    assert record["left_out"]["oracle"] == "this fusion has no example inputs"
    for command in ("bench", "tune"):
        done = run(command, spot, *ON)
        assert done.code == 1
        assert done.err.startswith("error: BadCompanion: the example inputs of mine are missing.\n")
        assert f"{file}:7: def mine(m, batch):\n  remedy: register a maker of them with @mine.example_inputs: def " in done.err
