"""A collective's place in the arena: barriers, landing places, result; and how a loop finds its way among them by the number of a call."""

from __future__ import annotations

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from primitives import cta, exchange, fold


@dataclass(frozen=True)
class Channel:
    """Offsets are in bytes from the arena's start, and multiples of 16. `declared` looks whether the numbers fit the collective.

    algorithm   "push" (st.async), "bulk" (bulk copies), "scatter_gather", "doubling" or "multicast"
    ranks       CTAs of the cluster, a power of two; `warps`, consumer warps of a CTA
    n, dtype    elements of what one rank sends to one peer in the first round ("multicast": of all that arrives), and their type there
    tx          bytes that arrive at each rank, round by round; a broadcast has a last one for the acknowledgements
    sets        barriers of a round, and landing places, that are used in turn: 2, or 1 with "scatter_gather"
    mbar        barriers: `sets` for each round, 8 bytes each
    box         landing places: `sets` of `set_bytes`
    out         where the result is folded to: `out_n` elements (of one rank's piece, with "scatter_gather") of `out_dtype`
    mid         with "scatter_gather", where the own piece is folded to before it goes to everybody
    op, dim     the operator; the dimension of a head for LSE
    stays       whether a rank's own row stays where it is instead of being sent: `tx` has one row less
    ack         landing places of acknowledgements in a broadcast, 4 bytes each
    """

    algorithm: str
    ranks: int
    warps: int
    n: int
    dtype: type
    tx: tuple[int, ...]
    sets: int
    mbar: int
    box: int
    set_bytes: int
    out: int = 0
    out_n: int = 0
    out_dtype: type | None = None
    op: str = fold.SUM
    dim: int = 0
    ack: int = 0
    mid: int = 0
    stays: bool = False

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def nbytes(self) -> int:
        """Bytes of a row on its way: whole words."""
        return -(-self.n * self.dtype.width // 8 // 4) * 4

    @property
    def stride(self) -> int:
        """Elements from one row to the next where they lie one under another: whole vectors of 16 bytes."""
        return -(-self.n * self.dtype.width // 128) * 128 // self.dtype.width

    @property
    def words(self) -> int:
        """f32 words from one row to the next."""
        return self.stride * self.dtype.width // 32

    @property
    def folds(self) -> bool:
        """Whether the result is written by this CTA; else it is where peers' rows have landed."""
        return self.out_dtype is not None and self.algorithm != "scatter_gather"


@cute.jit
def init(smem: cute.Pointer, channel: cutlass.Constexpr):
    """One thread, before the cluster meets: makes and arms the channel's barriers, for the first call of each set."""
    for r in cutlass.range_constexpr(len(channel.tx)):
        for s in cutlass.range_constexpr(channel.sets):
            exchange.init(barrier(smem, channel, r, s), channel.tx[r])
    cute.arch.mbarrier_init_fence()
    for r in cutlass.range_constexpr(len(channel.tx)):
        for s in cutlass.range_constexpr(channel.sets):
            exchange.arm(barrier(smem, channel, r, s), channel.tx[r])


def barrier(smem: cute.Pointer, channel: Channel, r: int, i: Int32) -> cute.Pointer:
    """The barrier of round `r` in call `i`."""
    return cta.barriers(smem, channel.mbar) + (r * channel.sets + (i & (channel.sets - 1)))


def phase(channel: Channel, i: Int32) -> Int32:
    """The parity of the phase in which call `i` finds its barriers."""
    return i >> (channel.sets - 1) & 1


def landing(smem: cute.Pointer, channel: Channel, i: Int32) -> cute.Pointer:
    """Where rows land in call `i`."""
    place = (smem + (channel.box + (i & (channel.sets - 1)) * channel.set_bytes)).align(16)
    return cute.recast_ptr(place, dtype=channel.dtype)


def result(smem: cute.Pointer, channel: Channel, i: Int32) -> cute.Pointer:
    """Where the result of call `i` lies: folded, or one row of each rank, `channel.stride` elements apart."""
    if channel.out_dtype is None:
        return landing(smem, channel, i)
    return cute.recast_ptr((smem + channel.out).align(16), dtype=channel.out_dtype)


@cute.jit
def finish_round(smem: cute.Pointer, channel: cutlass.Constexpr, r: cutlass.Constexpr, i: Int32):
    """All consumer threads: until round `r` of call `i` has landed here. Then thread 0 arms its barrier for the next call that uses it."""
    mbar = barrier(smem, channel, r, i)
    exchange.wait(mbar, phase(channel, i))
    if cta.thread() == 0:
        exchange.arm(mbar, channel.tx[r])
