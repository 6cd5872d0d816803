"""Files that a command is asked to write: looked at before the work, which may take minutes of a GPU, and not after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cfdsl.cli.complaints import BadOption
from cfdsl.errors import CfdslError, raise_all
from cfdsl.errors.base import listed

KINDS = {"--plot": (".png", ".svg", ".pdf"), "--picture": (".svg",)}  # of the options that draw


def expect_writable(files: Mapping[str, Path | None]) -> None:
    """Raise BadOption, or Errors with all of them, for files by option that could not be written. None and "-" (stdout) are no files."""
    raise_all(mistake for option, file in files.items() if file is not None and str(file) != "-" for mistake in _mistakes(option, file))


def _mistakes(option: str, file: Path) -> Iterator[CfdslError]:
    kinds = KINDS.get(option)
    if kinds is not None and file.suffix.lower() not in kinds:
        yield BadOption(option=option, value=str(file), expected=f"the name of a file that ends in {listed(list(kinds))}")
    if file.is_dir() or not file.parent.is_dir():
        yield BadOption(option=option, value=str(file), expected="a file in a folder that exists")
