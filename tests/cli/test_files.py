"""Files that cannot be written: said before anything is measured, with the option, and without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner import run

from cfdsl.cli.complaints import BadOption
from cfdsl.cli.files import PLOTS, file_errors, write
from cfdsl.cli.measuring import json_errors


@pytest.mark.parametrize(
    ("command", "option", "name", "expected"),
    [
        (("bench", "rms_norm", "--model", "llama-2-7b"), "--json", "no/folder.json", "a file in a folder that exists"),
        (("bench", "rms_norm", "--model", "llama-2-7b"), "--plot", "times.txt", "the name of a .png, .svg or .pdf file"),
        (("bench", "rms_norm", "--model", "llama-2-7b"), "--trace", ".", "a file that can be written"),
        (("bench", "collectives"), "--plot", "times", "the name of a .png, .svg or .pdf file"),
        (("bench", "decode", "--model", "llama-2-7b"), "--json", "no/folder.json", "a file in a folder that exists"),
        (("tune", "rms_norm", "--model", "llama-2-7b"), "--json", "no/folder.json", "a file in a folder that exists"),
        (("generate", "--model", "llama-2-7b", "--prompt", "a"), "--trace", "no/folder.json", "a file in a folder that exists"),
        (("show", "rms_norm", "--model", "llama-2-7b"), "--picture", "out.png", "the name of an .svg file"),
    ],
)
def test_a_file_is_looked_at_first(tmp_path: Path, command: tuple[str, ...], option: str, name: str, expected: str) -> None:
    path = tmp_path / name
    done = run(*command, option, str(path))
    assert done.code == 1
    assert done.err == f"error: BadOption: {option} got '{path}', which is not {expected}.\n  remedy: give {option} {expected}.\n"


def test_all_files_are_looked_at() -> None:
    done = run("bench", "rms_norm", "--model", "llama-2-7b", "--json", "no/a", "--plot", "b", "--trace", "no/c")
    assert done.err.startswith("error: 3 mistakes:\n")


def test_what_the_file_system_refuses_is_a_complaint_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(BadOption) as caught:
        write("--json", tmp_path / "no" / "file", "text")
    assert caught.value.message.endswith("which is not a file that can be written (No such file or directory).")


def test_what_can_be_written_is_fine(tmp_path: Path) -> None:
    assert file_errors("--json", None) == file_errors("--plot", tmp_path / "a.PNG", PLOTS) == []
    write("--json", tmp_path / "a.json", "text")
    assert file_errors("--json", tmp_path / "a.json") == []
    assert (tmp_path / "a.json").read_text() == "text"


def test_stdout_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written in the folder, the record may still go to stdout; nothing else may."""
    monkeypatch.setattr("os.access", lambda *asked: False)
    assert json_errors(Path("-")) == json_errors(None) == []
    assert [error.expected for error in json_errors(Path("a.json"))] == ["a file that can be written"]
    done = run("bench", "rms_norm", "--model", "llama-2-7b", "--trace", "-")
    expected = "the name of a file (only --json takes - for standard output)"
    assert done.err == f"error: BadOption: --trace got '-', which is not {expected}.\n  remedy: give --trace {expected}.\n"
