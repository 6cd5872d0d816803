"""Recording launches of traced kernels: each one's marks into memory of its own, so that many launches make one timeline."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from cfdsl.compiler.emit import marks
from cfdsl.compiler.plan import TRACE_ARG
from cfdsl.errors import NotTraced, RecordingFull, raise_all
from cfdsl.runtime.timeline import Record, timelines

if TYPE_CHECKING:
    from cfdsl.runtime.kernel import Kernel


class Recording:
    """The launches of traced kernels in the order in which they were issued: (kernel, its marks on the device)."""

    def __init__(self) -> None:
        self.launches: list[tuple[Kernel, torch.Tensor]] = []

    def timeline(self) -> list[tuple[str, list[Record]]]:
        """Each launch's kernel name and records, in launch order, on one time axis; what `chrome_trace` takes. Synchronises."""
        if self.launches:
            torch.cuda.synchronize(self.launches[0][1].device)
        read = [(marks(kernel.plan), words.tolist()) for kernel, words in self.launches]
        return [(kernel.plan.name, records) for (kernel, _), records in zip(self.launches, timelines(read), strict=True)]


@contextlib.contextmanager
def recording(kernels: Iterable[Kernel], launches: int = 1) -> Iterator[Recording]:
    """While it is open, every launch of `kernels` (compiled with trace=True) on the current CUDA device is recorded.

    launches   how many of each kernel there is memory for; one more is a RecordingFull

    The memory is set to zero before the first launch, so between launches there is nothing that was not there without a recording, and
    PDL overlaps them as it would. Launches captured in a CUDA graph are recorded by every replay, over the marks of the one before. Not
    for two threads at a time. NotTraced names every kernel that was compiled without.
    """
    chosen = list({id(kernel): kernel for kernel in kernels}.values())
    raise_all([NotTraced(kernel=kernel.name) for kernel in chosen if not kernel.config.trace])
    made = Recording()
    with contextlib.ExitStack() as opened:
        for kernel in chosen:
            opened.enter_context(kernel.launching(partial(_recorded, kernel, made, launches)))
        torch.cuda.synchronize()
        yield made


def _recorded(kernel: Kernel, into: Recording, room: int, function: Callable[..., None]) -> Callable[..., None]:
    """What `function` is, with the next free memory for marks in the place of the kernel's own."""
    arg = kernel.workspace_args[-1]
    assert arg.name == TRACE_ARG
    free = iter(torch.zeros((room, *map(int, arg.shape)), dtype=torch.int32, device="cuda").unbind())

    def launch(*tensors: torch.Tensor) -> None:
        words = next(free, None)
        if words is None:
            raise RecordingFull(kernel=kernel.name, room=room)
        function(*tensors[:-1], words)
        into.launches.append((kernel, words))

    return launch
