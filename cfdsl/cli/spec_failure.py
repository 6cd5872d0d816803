"""Exceptions of the user's own Python, in a spec or in the file that it is in: said with their line, like every other mistake."""

from __future__ import annotations

import os
import sysconfig
import traceback

from cfdsl.cli.complaints import SpecFailed
from cfdsl.dsl.source import PACKAGE, source_at

RUN_SPECS = {
    (os.path.join(PACKAGE, "dsl", "trace.py"), "trace"),
    (os.path.join(PACKAGE, "cli", "catalog.py"), "_module"),
    (os.path.join(PACKAGE, "cli", "companions.py"), "_call"),
}
NOT_THEIRS = (PACKAGE, "<frozen", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))


def spec_failure(error: Exception) -> SpecFailed | None:
    """What to say of an exception that left a spec, or the file that it is in; None of any other, which is a mistake of cfdsl."""
    frames = [(frame.f_code.co_filename, frame.f_code.co_name, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    runs = [number for number, (file, name, _) in enumerate(frames) if (file, name) in RUN_SPECS]
    if not runs:
        return None
    theirs = [(file, line) for file, _, line in frames[runs[0] + 1 :] if not file.startswith(NOT_THEIRS)]
    text = str(error)
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        theirs.append((error.filename, error.lineno))
        text = error.msg
    if not theirs:
        return None
    return SpecFailed(error=f"{type(error).__name__}: {text}".removesuffix("."), src=source_at(*theirs[-1]))
