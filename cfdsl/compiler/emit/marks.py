"""Marks of a traced kernel: where a CTA notes the time, and what it did since the mark before."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cfdsl.dsl.graph import Src

CONSUMER, PRODUCER = "consumer", "producer"
START, END = "start", "end"  # labels of a lane's first and last mark, which are its anchors
TRACE_WORDS = 4  # i32 words of a mark; as in primitives.trace


@dataclass(frozen=True)
class Mark:
    """One place where a lane notes the time. `label` and `text` say what the lane did since its mark before, `sources` for which lines."""

    lane: str
    label: str
    text: str = ""
    sources: tuple[Src, ...] = ()

    @property
    def line(self) -> str:
        """The spec's lines, `file:line: text`."""
        return "; ".join(f"{os.path.basename(src.file)}:{src.line}: {src.code}" for src in self.sources)

    @property
    def is_anchor(self) -> bool:
        """Whether the global timer and the SM are noted too."""
        return self.label in (START, END)
