"""What there is to look at of a compiled kernel: every stage of how it came about, and the facts of its machine code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cfdsl.compiler.config import Config
from cfdsl.compiler.parts import Part
from cfdsl.compiler.plan import KernelPlan
from cfdsl.dsl.interpret import Traffic, count_traffic
from cfdsl.runtime import artifacts
from cfdsl.runtime.cache import Entry


class Stages(Mapping[str, str]):
    """The texts of all stages by name; each is made, or read, when it is asked for."""

    def __init__(self, texts: Mapping[str, str], later: Mapping[str, Callable[[], str]]) -> None:
        self._texts, self._later = texts, later

    def __getitem__(self, name: str) -> str:
        if name not in (*self._texts, *self._later):
            raise KeyError(f"there is no stage {name!r}: the stages are {', '.join(self)}")
        return self._later[name]() if name in self._later else self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*(name for name in self._texts if name not in self._later), *self._later))

    def __len__(self) -> int:
        return len({*self._texts, *self._later})


class Compiled:
    """A kernel's plan, source and code; see `Kernel`, which runs it."""

    def __init__(self, lowered: Any, entry: Entry, source: Path, key: str, *, cold: bool) -> None:
        self.plan: KernelPlan = lowered.plan
        self.part: Part = lowered.part
        self.lowered = lowered
        self.source: str = lowered.source
        self.name = f"{self.plan.name}_{key[:8]}"
        self.key = key
        self.cold = cold
        self._entry, self._source_path = entry, source

    @property
    def config(self) -> Config:
        """The schedule that the kernel was made with."""
        return self.plan.config

    def traffic(self, sizes: Mapping[str, int] | None = None) -> Traffic:
        """The bytes of one launch, from shapes alone. sizes: named dimensions ("tokens": the cache's capacity, "positions"), and "length":
        the tokens in the cache before the launch (default: as full as it can be)."""
        return count_traffic(self.lowered.placed, sizes)

    @functools.cached_property
    def stages(self) -> Stages:
        """Every stage's text: traced, config, placed, plan, check, source, ptx, sass."""
        return Stages(self.lowered.stages, {"source": lambda: self.source, "ptx": lambda: self.ptx, "sass": lambda: self.sass})

    @functools.cached_property
    def ptx(self) -> str:
        """The kernel's PTX."""
        return self._entry.path("ptx").read_text()

    @functools.cached_property
    def sass(self) -> str:
        """The kernel's machine code, disassembled (by nvdisasm; DisassemblerMissing without it)."""
        return artifacts.disassemble(self._entry.path("cubin"))

    @functools.cached_property
    def binary(self) -> artifacts.Binary:
        """The facts in the cubin."""
        return artifacts.read_cubin(self._entry.path("cubin").read_bytes())

    @property
    def registers(self) -> int:
        """Registers per thread."""
        return int(self._entry.meta["registers"])

    @property
    def spills(self) -> int | None:
        """Bytes per thread that the assembler's code stores to the stack and loads back, both counted; None if it did not say."""
        spilled: int | None = self._entry.meta["spills"]
        return spilled

    @property
    def stack(self) -> int:
        """Bytes of stack per thread: local arrays and spills."""
        return int(self._entry.meta["stack"])

    @property
    def compile_seconds(self) -> float:
        """How long this kernel's compilation took, now or when it was put into the cache (see `cold`)."""
        return float(self._entry.meta["compile_seconds"])

    @property
    def paths(self) -> dict[str, Path]:
        """Where the generated source, the object, the PTX and the cubin lie."""
        return {"source": self._source_path, **{kind: self._entry.path(kind) for kind in ("object", "ptx", "cubin")}}

    def __repr__(self) -> str:
        return f"<Kernel {self.name}: {self.plan.model and f'{self.plan.model}, '}{self.plan.dtype}, {self.plan.mesh}, {self.part.name}>"
