"""Files that a command writes at its end: looked at before it works for minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cfdsl.cli.complaints import BadOption

FORMATS = (".png", ".svg", ".pdf")  # of plots


def mistakes(json: Path | None = None, plot: Path | None = None, trace: Path | None = None) -> Iterator[BadOption]:
    """What is wrong with the values of --json, --plot and --trace; `-` is stdout, for --json."""
    for option, path in (("--json", json), ("--plot", plot), ("--trace", trace)):
        if path is None or (option == "--json" and str(path) == "-"):
            continue
        if path.is_dir() or not path.parent.is_dir():
            yield BadOption(option=option, value=str(path), expected="a file in a folder that exists")
        elif option == "--plot" and path.suffix.lower() not in FORMATS:
            yield BadOption(option=option, value=str(path), expected=f"the name of a file that ends in {', '.join(FORMATS)}")
