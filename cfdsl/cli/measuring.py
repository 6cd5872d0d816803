"""What the commands that measure share: lengths and files given to them, the command as typed, and where progress and records go."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cfdsl.cli.complaints import BadOption
from cfdsl.cli.console import console, json_text
from cfdsl.cli.files import file_errors, write

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the record here; - for stdout, without tables.", show_default=False)]
PlotFile = Annotated[Path | None, typer.Option("--plot", help="Draw the times into this file (.png, .svg, .pdf).", show_default=False)]


def parse_lengths(text: str, option: str = "--kv-len") -> list[int]:
    """`1024,4096` as numbers; every one of them at least 0."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise BadOption(option=option, value=text, expected="numbers of tokens separated by commas, such as 1024,4096")
    return found


def command_line() -> str:
    """The command as it was typed, for a record."""
    return " ".join(["python -m cfdsl", *sys.argv[1:]])


def progress() -> Callable[[str], None]:
    """A function that says what is under way: on stderr, so that stdout stays tables or a JSON object."""
    screen = console(stderr=True)
    return lambda text: screen.print(text, style="dim", markup=False)


def is_stdout(json: Path | None) -> bool:
    """Whether the record is to go to stdout as JSON, and nothing else."""
    return json is not None and str(json) == "-"


def json_errors(json: Path | None) -> list[BadOption]:
    """What is wrong with the file of --json, before there is a record."""
    return [] if is_stdout(json) else file_errors("--json", json)


def deliver(record: dict[str, Any], json: Path | None, show: Callable[[Console], None]) -> None:
    """The record as tables on stdout (`show` prints them), and in the file of --json if one is named; for `-` as JSON on stdout alone."""
    text = json_text(record)
    if is_stdout(json):
        sys.stdout.write(text)
        return
    show(console())
    if json is not None:
        write("--json", json, text)
