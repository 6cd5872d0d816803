"""What the command line says when the Python of a user's own file raises: the error and the line, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfdsl.cli import build
from tests.cli.runner import run

SPEC = """import cfdsl as cf
{line}

@cf.fusion
def mine(m, batch):
    x = cf.input("x", (batch, m.hidden))
    return cf.outputs(y={value})
"""
REMEDY = "  remedy: mend that line; with --debug the whole traceback is shown.\n"


@pytest.mark.parametrize(
    ("line", "value", "raised", "number"),
    [
        ("", "cf.softmax(x)", "AttributeError: module 'cfdsl' has no attribute 'softmax'", 7),
        ("", "cf.rms_norm(x, x, m.eps)", "AttributeError: 'ModelConfig' object has no attribute 'eps'", 7),
        ("", "x + [][0]", "IndexError: list index out of range", 7),
        ("import nothing_of_this_name", "x", "ModuleNotFoundError: No module named 'nothing_of_this_name'", 2),
        ("def (", "x", "SyntaxError: invalid syntax", 2),
    ],
)
def test_the_error_and_the_users_line(tmp_path: Path, line: str, value: str, raised: str, number: int) -> None:
    file = tmp_path / "spec.py"
    file.write_text(SPEC.format(line=line, value=value))
    code = file.read_text().splitlines()[number - 1].strip()
    done = run("explain", f"{file}:mine", "--model", "smollm2-135m")
    assert done.code == 1
    assert done.err.endswith(f"error: SpecFailed: the file of the spec raised {raised}.\n  {file}:{number}: {code}\n{REMEDY}")


def test_debug_shows_the_exception_itself(tmp_path: Path) -> None:
    file = tmp_path / "spec.py"
    file.write_text(SPEC.format(line="", value="cf.softmax(x)"))
    with pytest.raises(AttributeError, match="softmax"):
        run("explain", f"{file}:mine", "--model", "smollm2-135m", "--debug")


def test_a_mistake_of_cfdsl_is_not_blamed_on_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(request: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(build, "lower_for", broken)
    with pytest.raises(KeyError, match="ours"):
        run("compile", "rms_norm", "--model", "smollm2-135m")
