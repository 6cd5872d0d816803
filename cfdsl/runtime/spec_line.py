"""From a line of generated source back to the line of the spec that it was generated for."""

from __future__ import annotations

import linecache
import re

from cfdsl.dsl.graph import Src

_MARK = re.compile(r"#\s*src\[(?P<file>[^\]]+):(?P<line>\d+)\]")


def spec_line(generated: str, line: int) -> Src | None:
    """The spec's line named by the nearest `# src[file:line]` comment at or above `line` (counted from 1), or None."""
    for text in reversed(generated.splitlines()[:line]):
        mark = _MARK.search(text)
        if mark:
            file, number = mark["file"], int(mark["line"])
            return Src(file, number, linecache.getline(file, number).strip())
    return None
