"""What a `channel.Channel` must say for a collective to work with it, looked at while a kernel is traced: nothing of it is in the kernel.

With other bytes a wait would never end or end too early, with another algorithm rows would take another way than was asked for, and with
one set of barriers or too little room a push would meet what is still in use. A compiler derives all of that; by hand one may slip.
"""

from __future__ import annotations

from primitives.channel import Channel

ALGORITHMS = {
    "cluster_reduce": ("push", "bulk", "scatter_gather", "doubling"),
    "cluster_reduce_scalar": ("push",),
    "cluster_reduce_scatter": ("push", "bulk"),
    "cluster_gather": ("push", "bulk", "doubling"),
    "cluster_broadcast": ("push", "bulk"),
    "multicast_gather": ("multicast",),
}
RANKS = (1, 2, 4, 8, 16)
VECTOR = 16  # bytes: where everything but barriers and acknowledgements starts


def tx(channel: Channel, call: str) -> tuple[int, ...]:
    """Bytes that arrive at each rank in one call, round by round."""
    rows = channel.ranks - channel.stays
    if call == "cluster_reduce_scalar":
        return (4 * channel.ranks,)
    if call == "cluster_broadcast":
        return channel.nbytes, 4 * channel.ranks
    if channel.algorithm == "multicast":
        return (channel.n * channel.dtype.width // 8,)
    if channel.algorithm == "scatter_gather":
        return rows * channel.nbytes, rows * channel.out_n * channel.out_dtype.width // 8
    if channel.algorithm == "doubling":
        each = range(channel.ranks.bit_length() - 1)
        return tuple(4 * channel.words << r if call == "cluster_gather" else channel.nbytes for r in each)
    return (rows * channel.nbytes,)


def room(channel: Channel, call: str) -> int:
    """Bytes of one landing place."""
    row = 4 * channel.words
    if call == "cluster_reduce_scalar":
        return -(-4 * channel.ranks // VECTOR) * VECTOR
    if call in ("cluster_broadcast", "multicast_gather"):
        return row
    if call == "cluster_reduce" and channel.algorithm == "doubling":
        return 2 * row * (channel.ranks.bit_length() - 1)
    return channel.ranks * row


def check(channel: Channel, call: str) -> None:
    """ValueError with everything that is wrong with `channel` for the collective named `call`."""
    wrong = []
    if channel.algorithm not in ALGORITHMS[call]:
        wrong.append(f"algorithm={channel.algorithm!r}, which must be one of {', '.join(ALGORITHMS[call])}")
    if channel.ranks not in RANKS:
        wrong.append(f"ranks={channel.ranks}, which must be one of {', '.join(map(str, RANKS))}")
    if not wrong:  # else the rest would be about another way
        wrong += _numbers(channel, call)
    if wrong:
        raise ValueError(f"the Channel of {call} has {'; and '.join(wrong)}")


def _numbers(channel: Channel, call: str) -> list[str]:
    wrong = []
    if (wanted := tx(channel, call)) != tuple(channel.tx):
        wrong.append(f"tx={tuple(channel.tx)}, but {wanted} bytes arrive")
    if channel.sets != 2 and not (channel.sets == 1 and channel.algorithm == "scatter_gather"):
        wrong.append(f"sets={channel.sets}, but a loop needs 2 in turn")
    if channel.sets > 1 and channel.set_bytes < room(channel, call):
        wrong.append(f"set_bytes={channel.set_bytes}, but {room(channel, call)} bytes land there")
    if channel.algorithm == "bulk" and channel.nbytes % VECTOR:
        wrong.append(f"rows of {channel.nbytes} bytes, but bulk copies move multiples of {VECTOR}: use \"push\"")
    for name in ("box", "set_bytes", "out", "mid"):
        if getattr(channel, name) % VECTOR:
            wrong.append(f"{name}={getattr(channel, name)}, which must be a multiple of {VECTOR}")
    return wrong
