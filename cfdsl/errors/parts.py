"""What a GPU part does not have: its name, clusters of a size, shared memory, room for all clusters at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cfdsl.errors.base import CfdslError, listed


@dataclass(eq=False, kw_only=True)
class ClusterSizeUnsupported(CfdslError):
    """A cluster size that the hardware, or the part at hand, does not have."""

    size: int
    supported: Sequence[int] = (1, 2, 4, 8, 16)
    _says = "a cluster of {size!r} CTAs is not supported."

    @property
    def remedy(self) -> str:
        return f"use a cluster size of {listed(self.supported)}."


@dataclass(eq=False, kw_only=True)
class UnknownPart(CfdslError):
    """No GPU part has this name."""

    name: str
    known: Sequence[str]
    _says = "there is no part {name!r}."

    @property
    def remedy(self) -> str:
        return f"use one of {', '.join(self.known)}."


@dataclass(eq=False, kw_only=True)
class NoTarget(CfdslError):
    """There is no GPU here that cfdsl can run on, and the call needs one."""

    needs: str = "a GPU of compute capability 9.0"
    found: str = "no GPU"
    without: str = "compiling and inspecting work without one when a part is named (part='h100-sxm')"
    _says = "this needs {needs}, found {found}."
    _remedy = "run it on such a machine; {without}."


@dataclass(eq=False, kw_only=True)
class SharedMemoryExceeded(CfdslError):
    """A CTA's buffers do not fit. `breakdown` is (name, bytes) of each piece; the sum is spelled out."""

    needed: int
    limit: int
    breakdown: Sequence[tuple[str, int]] = ()
    _remedy = "make the largest of them smaller, or use fewer or smaller ring stages, a larger cluster, or fewer CTAs per SM."

    @property
    def message(self) -> str:
        text = f"a CTA needs {self.needed:,} bytes of shared memory, the limit is {self.limit:,}"
        pieces = " + ".join(f"{name} {size:,}" for name, size in self.breakdown)
        return f"{text}: {pieces} = {self.needed:,}." if pieces else f"{text}."


@dataclass(eq=False, kw_only=True)
class NotResident(CfdslError):
    """The clusters of a launch with a grid barrier would not all run at once: it would never end."""

    clusters: int
    resident: int
    size: int
    part: str
    ctas_per_sm: int = 1
    _says = "the launch has {clusters} clusters of {size}, but {part} holds {resident} at once (CTAs per SM: {ctas_per_sm})."
    _remedy = "use at most {resident} clusters, a smaller cluster, or less shared memory per CTA: a grid barrier waits for all of them."
