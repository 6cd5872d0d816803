"""Break a harness kernel: hold up a warp or a CTA, and leave a barrier out.

Kernels that are traced under `stress` wait with a bound, so that the broken ones end too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from primitives import cta, exchange, grid
from primitives import ring as rings

ALL, NONE = -1, -2  # of CTAs or warps, in `late`
DELAY = 40_000  # cycles that who is late loses, 20 us: an age to the others, who need one or two
OVERWRITE = 10_000  # cycles in which a copy that was not held back surely lands
POLLS = 1 << 15  # of a barrier, before it goes on regardless: longer than several delays


@cute.jit
def pause(cycles: cutlass.Constexpr):
    """Spend time."""
    start = cute.arch.clock64()
    now = start
    while now - start < cycles:
        now = cute.arch.clock64()


@cute.jit
def _delay_if_late(late: cute.Tensor):
    block, _, _ = cute.arch.block_idx()
    mine = (late[0] == ALL) | (late[0] == block)
    if mine & ((late[1] == ALL) | (late[1] == cta.warp())):
        pause(DELAY)


@cute.jit
def bounded_wait(mbar: cute.Pointer, phase: Int32):
    """`mbarrier_wait` that gives up: for kernels that are broken on purpose."""
    polls = Int32(0)
    done = cute.arch.mbarrier_test_wait(mbar, phase)
    while (not done) & (polls < POLLS):
        done = cute.arch.mbarrier_test_wait(mbar, phase)
        polls += 1


@dataclass
class _Stress:
    target: str = ""
    call: int | None = None
    seen: int = 0
    late: Any = None

    def drops(self, name: str) -> bool:
        if name != self.target:
            return False
        self.seen += 1
        return self.call is None or self.seen - 1 == self.call


_stress: _Stress | None = None


def hold(late: cute.Tensor) -> None:
    """Remember who is late, and hold them up if the kernel is being traced under `stress`."""
    if _stress is not None:
        _stress.late = late
        _delay_if_late(late)


def settle() -> None:
    """Under `stress`, before a kernel ends: let copies land that nobody waited for."""
    if _stress is not None:
        pause(OVERWRITE)


@contextlib.contextmanager
def stress(target: str = "", call: int | None = None) -> Iterator[None]:
    """While a kernel is traced: delays for who is late, bounded waits, and the barrier `target` left out.

    `call` counts the calls of `target` in program order from 0; None leaves all of them out. `target` is one of cta.consumer_sync,
    exchange.wait, ring.wait, ring.acquire, grid.barrier, grid.meet; or empty, to delay and leave nothing out. ValueError if no call was
    dropped.
    """
    global _stress
    state = _stress = _Stress(target, call)
    dropped = 0

    def dropping(name: str, original: Any, instead: Any, then: Any) -> Any:
        def patched(*args: Any) -> Any:
            nonlocal dropped
            if state.drops(name):
                dropped += 1
                return instead()
            result = original(*args)
            then()
            return result

        return patched

    def nothing() -> None:
        pass

    patches = [mock.patch.object(cute.arch, "mbarrier_wait", bounded_wait)]
    for module, name, attribute, instead, then in (
        (cta, "cta.consumer_sync", "consumer_sync", nothing, lambda: _delay_if_late(state.late)),
        (exchange, "exchange.wait", "wait", nothing, lambda: _delay_if_late(state.late)),
        (rings, "ring.wait", "wait", nothing, nothing),
        (rings, "ring.acquire", "acquire", lambda: pause(OVERWRITE), nothing),
        (grid, "grid.barrier", "barrier", nothing, nothing),
        (grid, "grid.meet", "meet", nothing, nothing),
    ):
        patches.append(mock.patch.object(module, attribute, dropping(name, getattr(module, attribute), instead, then)))
    try:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield
        if target and not dropped:
            raise ValueError(f"the kernel has no call {call} of {target}: nothing was left out")
    finally:
        _stress = None
