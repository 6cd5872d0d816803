from __future__ import annotations

from pathlib import Path

import pytest

from cfdsl.errors import DisassemblerMissing
from cfdsl.runtime import artifacts


def test_spills_are_read_from_the_assemblers_log() -> None:
    line = "ptxas         .     {} bytes stack frame, {} bytes spill stores, {} bytes spill loads"
    assert artifacts.spill_bytes(line.format(0, 0, 0)) == 0
    assert artifacts.spill_bytes(line.format(48, 12, 20)) == 32
    assert artifacts.spill_bytes("nothing of the kind") is None


def test_other_files_are_not_cubins() -> None:
    with pytest.raises(ValueError, match="not a 64-bit"):
        artifacts.read_cubin(b"#!/bin/sh")


def test_no_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "nvdisasm", lambda: None)
    with pytest.raises(DisassemblerMissing, match="SASS needs nvdisasm, found no nvdisasm.*\n.*pip install -U nvidia-cuda-nvdisasm"):
        artifacts.disassemble(Path("kernel.cubin"))


def test_a_disassembler_that_does_not_know_the_file(tmp_path: Path) -> None:
    tool = artifacts.nvdisasm()
    assert tool is not None, "nvidia-cuda-nvdisasm is among the dependencies"
    bad = tmp_path / "bad.cubin"
    bad.write_bytes(b"nothing")
    with pytest.raises(DisassemblerMissing, match="which says"):
        artifacts.disassemble(bad)
