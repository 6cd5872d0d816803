"""A whole decode step on a timeline: a decoder whose kernels note when each CTA did each of their steps."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from cfdsl.runtime.recording import recording

if TYPE_CHECKING:
    from cfdsl.runtime.timeline import Record

REPLAYS = 2  # the first one finds the clocks and caches cold; the second one's marks are kept


def traced(layers: str) -> dict[str, dict[str, Any]]:
    """Decoder settings with which every kernel of a step is compiled to note its times. layers: as the decoder's."""
    names = importlib.import_module("fusions.decoder.step").options(layers)
    return {name: {"trace": True} for name in names}


def trace_step(decoder: Any, length: int) -> list[tuple[str, list[Record]]]:
    """When each kernel of one step did what, with `length` tokens in the caches: (kernel, records) in launch order, on one time axis.

    decoder   made with `traced()` settings. The step is captured and replayed as in generation, REPLAYS times: so many tokens are
              appended to its caches, which must have room for them, and its token and length are others afterwards.
    """
    times = Counter(name for name, _ in decoder.kernels)
    decoder.reset(length)
    with recording([kernel for _, kernel in decoder.kernels], max(times.values())) as made:
        replay = decoder.capture()
        for _ in range(REPLAYS):
            replay()
    return made.timeline()
