"""What a compiled kernel says about itself: the facts in its cubin and in the assembler's log, and its disassembly."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cfdsl.errors import DisassemblerMissing

# Attributes of the `.nv.info` section of a cubin: (symbol, value) pairs of one kernel each.
_ATTR_FRAME_SIZE = 0x11
_ATTR_REGCOUNT = 0x2F
_FORMAT_SIZED = 4  # a 16-bit size and that many bytes follow; every other format has its 16-bit value in place


@dataclass(frozen=True)
class Binary:
    """A cubin's kernel: its symbol, registers per thread, and bytes of stack per thread (local arrays and spilled registers)."""

    kernel: str
    registers: int
    stack: int


def read_cubin(cubin: bytes) -> Binary:
    """The facts of the one kernel in a cubin (a 64-bit little-endian ELF file). ValueError if it is not that."""
    if cubin[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    sections = _sections(cubin)
    names = [name.removeprefix(".text.") for name in sections if name.startswith(".text.")]
    if len(names) != 1:
        raise ValueError(f"a cubin of cfdsl has one kernel, this one has {names}")
    facts = _info(sections.get(".nv.info", b""))
    return Binary(kernel=names[0], registers=facts.get(_ATTR_REGCOUNT, 0), stack=facts.get(_ATTR_FRAME_SIZE, 0))


def _sections(elf: bytes) -> dict[str, bytes]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    rows = [struct.unpack_from("<IIQQQQIIQQ", elf, table + size * index) for index in range(count)]
    names_at = rows[names_index][4]
    found = {}
    for name, kind, _flags, _address, offset, length, *_ in rows:
        end = elf.index(b"\0", names_at + name)
        nobits = kind == 8
        found[elf[names_at + name : end].decode()] = b"" if nobits else elf[offset : offset + length]
    return found


def _info(section: bytes) -> dict[int, int]:
    facts: dict[int, int] = {}
    at = 0
    while at + 4 <= len(section):
        form, attribute, size = struct.unpack_from("<BBH", section, at)
        if form == _FORMAT_SIZED:
            if size == 8:
                facts[attribute] = max(facts.get(attribute, 0), struct.unpack_from("<II", section, at + 4)[1])
            at += 4 + size
        else:
            at += 4
    return facts


def spill_bytes(log: str) -> int | None:
    """Bytes of spill stores and of spill loads, together, per thread, by the assembler's log; None if the log does not say."""
    found = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return sum(int(stores) + int(loads) for stores, loads in found) if found else None


def nvdisasm() -> Path | None:
    """The disassembler: of the package nvidia-cuda-nvdisasm, else the one on the PATH."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvdisasm":
            return Path(str(file.locate()))
    found = shutil.which("nvdisasm")
    return Path(found) if found else None


def disassemble(cubin: Path) -> str:
    """The SASS of a cubin file. DisassemblerMissing if there is no nvdisasm, or if it does not know this cubin."""
    tool = nvdisasm()
    if tool is None:
        raise DisassemblerMissing(found="no nvdisasm in this environment nor on the PATH")
    done = subprocess.run([str(tool), "-c", str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DisassemblerMissing(found=f"{tool}, which says: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
