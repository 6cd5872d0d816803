"""Files that a command writes: looked at before it begins, since what is measured takes minutes, and a complaint if they cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfdsl.cli.complaints import BadOption
from cfdsl.errors import listed

PLOTS = (".png", ".svg", ".pdf")


def file_errors(option: str, path: Path | None, suffixes: tuple[str, ...] = ()) -> list[BadOption]:
    """What is wrong with the file that `option` names, before there is anything to write: nothing for None.

    suffixes   what the name may end with; none: with anything
    """
    if path is None:
        return []
    if suffixes and path.suffix.lower() not in suffixes:
        article = "an" if suffixes[0] == ".svg" else "a"
        return [BadOption(option=option, value=str(path), expected=f"the name of {article} {listed(suffixes)} file")]
    if str(path) == "-":
        return [BadOption(option=option, value="-", expected="the name of a file (only --json takes - for standard output)")]
    if not path.parent.is_dir():
        return [BadOption(option=option, value=str(path), expected="a file in a folder that exists")]
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        return [BadOption(option=option, value=str(path), expected="a file that can be written")]
    return []


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """BadOption for what the file system refuses of `path`."""
    try:
        yield
    except OSError as error:
        expected = "a file that can be written"
        raise BadOption(option=option, value=str(path), expected=expected, because=error.strerror or str(error)) from error


def write(option: str, path: Path, text: str) -> None:
    """Write the file that `option` names, in UTF-8. Raises BadOption."""
    with writing(option, path):
        path.write_text(text, encoding="utf-8")
