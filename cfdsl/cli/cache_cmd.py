"""`cache`: where compiled kernels are kept, how much they take, and how to be rid of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from cfdsl.cli.console import console, print_json
from cfdsl.cli.units import plural, size


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete everything in it.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Show the folder of compiled kernels and its size; --clear empties it."""
    from cfdsl.runtime.cache import root

    folder = root()
    found = contents(folder)
    if clear:
        for name in ("source", "kernel", "choice", "lock"):
            shutil.rmtree(folder / name, ignore_errors=True)
    if json:
        print_json({"path": str(folder), **found, "cleared": clear})
        return
    text = f"{plural(found['kernels'], 'kernel')}, {plural(found['sources'], 'source')}, {size(found['bytes'])}"
    console().print(f"{folder}\n{'cleared: ' if clear else ''}{text}", markup=False)


def contents(folder: Path) -> dict[str, int]:
    """How many kernels and generated sources a cache folder holds, and the bytes of all its files."""
    files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
    kernels = sum(1 for file in files if file.name == "meta.json" and file.parent.parent.name == "kernel")
    sources = sum(1 for file in files if file.parent.name == "source" and file.suffix == ".py")
    return {"kernels": kernels, "sources": sources, "bytes": sum(file.stat().st_size for file in files)}
