"""The user's own line: the innermost frame outside of the cfdsl package. Errors name it, and warnings are blamed on it."""

from __future__ import annotations

import linecache
import os
import sys
import warnings
from types import FrameType
from typing import Any

from cfdsl.dsl.graph import Src

_shown: dict[Any, Any] = {}  # what `warnings` keeps to show a warning once per line
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def user_line() -> Src:
    """File, line and code of the innermost caller outside of cfdsl."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return Src("<unknown>", 0)
    return source_at(frame.f_code.co_filename, frame.f_lineno)


def warn_user(text: str, category: type[Warning]) -> None:
    """A warning that is blamed on the user's line."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def warn_at(src: Src, text: str, category: type[Warning]) -> None:
    """A warning that is blamed on a line of a spec; by default it is shown once."""
    warnings.warn_explicit(text, category, src.file, src.line, registry=_shown)


def source_at(file: str, line: int) -> Src:
    """The Src of a line, with its code as far as the file can be read."""
    return Src(file, line, linecache.getline(file, line).strip())
