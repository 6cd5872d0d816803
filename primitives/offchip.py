"""The collectives by way of device memory (L2): what one does without distributed shared memory, or among CTAs of different clusters.

Each member writes its row to a workspace, all members meet (`grid.meet`), each reads what it needs. The members are the ranks of a
cluster, or all CTAs of a grid that is resident. For loops: calls i = 0, 1, 2, ... use two workspaces in turn. A member writes for call i+2
after it met the others in call i+1, at which each arrived after a consumer barrier behind its reads of call i.
"""

from __future__ import annotations

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from primitives import cta, fold, grid, transfer

LINE = 32  # words: each group's counter has a line of the L2 to itself
FLIP = -(2**31)


@dataclass(frozen=True)
class Route:
    """`groups` groups of `members` CTAs (`warps` consumer warps each), whose rows are `pieces` pieces of `n` elements of `dtype`.

    The workspace is f32 (2, groups, members, words), the counters i32 (LINE * (1 + groups)), zero before their first use: word 1 is the
    status, group g counts in word LINE * (g + 1).
    """

    groups: int
    members: int
    warps: int
    n: int
    dtype: type
    pieces: int = 1

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def stride(self) -> int:
        """Elements from one piece to the next: whole vectors of 16 bytes."""
        return -(-self.n * self.dtype.width // 128) * 128 // self.dtype.width

    @property
    def words(self) -> int:
        """f32 words of a row: all its pieces."""
        return self.pieces * self.stride * self.dtype.width // 32


@cute.jit
def start(sync: cute.Tensor, group: Int32) -> Int32:
    """The counter that the first call of this launch starts from. Any thread, after the predecessor has finished; see `grid.phase`."""
    return cute.arch.load(sync.iterator + LINE * (group + 1), Int32, sem="relaxed", scope="gpu")


def rows(ws: cute.Tensor, route: Route, i: Int32, group: Int32) -> cute.Pointer:
    """The rows of a group's members in call `i`."""
    return ws.iterator + ((i & 1) * route.groups + group) * (route.members * route.words)


@cute.jit
def publish(
    ws: cute.Tensor, sync: cute.Tensor, route: cutlass.Constexpr, i: Int32, src: cute.Pointer, started: Int32, group: Int32, member: Int32,
    senders: cutlass.Constexpr,
):
    """All consumer threads: this member's row, if it is one of the first `senders`, to the workspace; then all members meet.

    Three consumer barriers inside, one of them first: what the consumers wrote to `src` before is what is sent. No bytes are counted on
    any barrier: the members' arrivals are. Each sender writes a row of `4 * words` bytes: every piece of `src` with what lies behind it
    up to the next multiple of 16 bytes, which must be there and means nothing. `src` may be written again when it returns.
    """
    cta.consumer_sync(route.warps)
    if member < senders:
        transfer.copy(transfer.words(src), rows(ws, route, i, group) + member * route.words, 4 * route.words, route.threads)
    word = sync.iterator + LINE * (group + 1)
    grid.meet(word, sync.iterator + 1, started ^ ((i & 1) * Int32(FLIP)), route.members, member == 0, route.warps)


@cute.jit
def grid_reduce(
    ws: cute.Tensor, sync: cute.Tensor, route: cutlass.Constexpr, i: Int32, src: cute.Pointer, out: cute.Pointer, op: cutlass.Constexpr,
    dim: cutlass.Constexpr, started: Int32, group: Int32, member: Int32,
):
    """All-reduce, P(op) -> R. Before: `src` is this member's term. After: `out` is op over the members' terms on every member, in float32
    and in the members' order, so all get the same bits.

    With `members` pieces to a row it is a reduce-scatter, P(op) -> S: `out` is piece `member`. `n` elements; for LSE of heads of `dim`,
    see `fold`. Buffers: `src`, `out`, and the workspace `ws` with two rows of each member. Barriers: the group's counter in `sync`, and
    three of the consumers. Bytes: every member writes `4 * words` (see `publish`) and reads every row or piece of `n` elements back, in
    whole vectors of 16 bytes; no barrier counts them. Synchronise before others read `out`.
    Again: at once, with i + 1, which overwrites `out`; `src` may be written when the call returns.
    """
    publish(ws, sync, route, i, src, started, group, member, route.members)
    row = cutlass.const_expr(route.pieces * route.stride)
    first = cute.recast_ptr(rows(ws, route, i, group), dtype=route.dtype)
    if cutlass.const_expr(route.pieces > 1):
        first = first + member * route.stride
    fold.terms(first, row, route.members, out, route.n, op, dim, True, route.threads)


@cute.jit
def grid_gather(
    ws: cute.Tensor, sync: cute.Tensor, route: cutlass.Constexpr, i: Int32, src: cute.Pointer, out: cute.Pointer, started: Int32,
    group: Int32, member: Int32,
):
    """All-gather, S -> R. Before: `src` is this member's row of `n` elements. After: `out` is every member's row, `route.stride` apart.

    Buffers: `src`; `out`, with room for all rows rounded up to 16 bytes; the workspace `ws` with two rows of each member. Barriers: as
    `grid_reduce`. Bytes: every member writes `4 * words`, `src` rounded up to 16 (see `publish`), and reads `members` times as many back
    into `out`; no barrier counts them. Synchronise before others read `out`. Again: as `grid_reduce`.
    """
    publish(ws, sync, route, i, src, started, group, member, route.members)
    nbytes = cutlass.const_expr(4 * route.words * route.members)
    transfer.copy(rows(ws, route, i, group), transfer.words(out), nbytes, route.threads)


@cute.jit
def grid_broadcast(
    ws: cute.Tensor, sync: cute.Tensor, route: cutlass.Constexpr, i: Int32, src: cute.Pointer, out: cute.Pointer, started: Int32,
    group: Int32, member: Int32,
):
    """Broadcast, one -> R. Before: `src` of member 0 is a row of `n` elements. After: `out` is that on every member, 0 included.

    Buffers: as `grid_gather`, `out` with room for one row. Barriers: as `grid_reduce`. Bytes: member 0 writes `4 * words`, `src` rounded up
    to 16 (see `publish`), and every member reads them back into `out`; no barrier counts them. Synchronise before others read `out`.
    Again: as `grid_reduce`.
    """
    publish(ws, sync, route, i, src, started, group, member, 1)
    transfer.copy(rows(ws, route, i, group), transfer.words(out), 4 * route.words, route.threads)
