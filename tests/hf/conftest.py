from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "cli")]  # the latter: `runner`


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A plain PyTorch decoder in the place of fusions.decoder.Decoder; it keeps a list of those that were made."""
    from plain_decoder import PlainDecoder

    monkeypatch.setattr("cfdsl.hf.session.decoder_class", lambda: PlainDecoder)
    monkeypatch.setattr("cfdsl.hf.generation.decoder_class", lambda: PlainDecoder)
    PlainDecoder.made.clear()
    yield PlainDecoder
    PlainDecoder.made.clear()
