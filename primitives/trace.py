"""When a thread passed a place in the program: the SM's clock, written to global memory."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64

from primitives import cta

WORDS = 4  # i32 words of a mark: the clock; and in anchors the global timer's low and high half, and the SM


@cute.jit
def mark(words: cute.Tensor, marks: cutlass.Constexpr, k: cutlass.Constexpr, who: cutlass.Constexpr):
    """Thread `who` of every CTA writes %clock to word 0 of its CTA's mark `k` of `marks`; the others go on.

    `words` is i32 global memory of (ctas, marks, WORDS). The clock counts cycles of the SM, wraps after 2^32 of them (two seconds), and
    has nothing to do with another SM's: `anchor` says when in the world a count was. No barrier and no fence: reading it takes tens of
    cycles, the store nobody waits for. Loads that were begun before may land after.
    """
    if cta.thread() == who:
        words[_place(marks, k)] = cute.arch.clock()


@cute.jit
def anchor(words: cute.Tensor, marks: cutlass.Constexpr, k: cutlass.Constexpr, who: cutlass.Constexpr):
    """As `mark`, and the global timer (ns, the same on all SMs, but of a coarse tick) in words 1 and 2, the SM's number in word 3."""
    if cta.thread() == who:
        place = _place(marks, k)
        now = Int64(cute.arch.globaltimer())
        words[place] = cute.arch.clock()
        words[place + 1] = Int32(now)
        words[place + 2] = Int32(now >> 32)
        words[place + 3] = cute.arch.smid()


def _place(marks: int, k: int) -> Int32:
    """The first word of mark `k` of this CTA."""
    bidx, _, _ = cute.arch.block_idx()
    return (bidx * marks + k) * WORDS
