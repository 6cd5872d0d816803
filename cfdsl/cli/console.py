"""Where the command line prints: 120 columns wherever the width is not a terminal's own; colour only on a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.syntax import Syntax

from cfdsl.errors import CfdslError, Errors

WIDTH = 120


def console(stderr: bool = False) -> Console:
    """A console for stdout (or stderr), made anew so that redirected streams are honoured."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDTH, highlight=False, soft_wrap=False)


def json_text(record: dict[str, Any]) -> str:
    """One JSON object, indented, with a newline at its end. JSON has no infinity and no NaN: an error that is one is null there."""
    return json.dumps(_finite(record), indent=2, default=str, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(record: dict[str, Any]) -> None:
    """The record as JSON on stdout."""
    sys.stdout.write(json_text(record))


def print_code(text: str, language: str) -> None:
    """Source: highlighted on a terminal, as it is when piped."""
    if sys.stdout.isatty():
        console().print(Syntax(text, language, theme="ansi_dark", background_color="default", word_wrap=False))
    else:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")


def print_error(error: CfdslError) -> None:
    """What is wrong, the user's line, the remedy; on stderr."""
    screen = console(stderr=True)
    kind = "" if isinstance(error, Errors) else f"{type(error).__name__}: "
    screen.print(f"error: {kind}{error}", style="red" if screen.is_terminal else None, markup=False, soft_wrap=True)
