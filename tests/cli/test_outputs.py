"""Files that cannot be written are told before a command works for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner import run

from cfdsl.cli.outputs import mistakes


def test_what_can_be_written(tmp_path: Path) -> None:
    assert not list(mistakes())
    assert not list(mistakes(Path("-"), tmp_path / "out.PNG"))
    assert not list(mistakes(tmp_path / "out.json", Path("out.pdf")))


def test_what_cannot(tmp_path: Path) -> None:
    one, other = mistakes(tmp_path, tmp_path / "out.gif")
    assert (one.option, other.option) == ("--json", "--plot")
    assert str(other).endswith("remedy: give --plot the name of a file that ends in .png, .svg, .pdf.")
    (folder,) = mistakes(plot=tmp_path / "missing" / "out.svg")
    assert "which is not a file in a folder that exists" in str(folder)


@pytest.mark.parametrize("command", ["attention_block --model llama-2-7b", "decode --model llama-2-7b", "collectives"])
def test_every_bench_looks_first(command: str) -> None:
    """Before it looks for a GPU."""
    done = run("bench", *command.split(), "--json", "missing/out.json")
    assert done.code == 1
    assert done.err.startswith("error: BadOption: --json got 'missing/out.json'")
