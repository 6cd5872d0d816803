"""How exchanges are done: the few rules that the oracle counts by, the cost model prices by, and the compiler emits by."""

from __future__ import annotations

from collections.abc import Sequence

WORD = 4  # bytes of an element: everything computed is float32
PUSH = 4  # elements that one push moves
ONE_ROUND_BYTES = 24 * 1024  # terms of an all-reduce that may land in a rank


def in_two_rounds(elements: Sequence[int], ranks: int) -> bool:
    """Whether an all-reduce of sums is scattered, added up and gathered: a rank then gets two vectors, and not one from every rank.

    elements: of each value, a rank's term. One round waits once, so it is the way of what is small; slices are pushed 16 bytes at a time.
    """
    whole = all(size % (PUSH * ranks) == 0 for size in elements)
    return ranks > 1 and whole and ranks * sum(elements) * WORD > ONE_ROUND_BYTES


def pushed(op: str, elements: Sequence[int], ranks: int, stats: int = 0) -> tuple[int, ...]:
    """Elements that the ranks of one cluster push to peers, all together, in each round of a collective on the cluster.

    elements: of each value, what a rank has, a term or a slice. stats: the numbers beside a softmax term that every rank needs.
    """
    size, peers = sum(elements), ranks - 1
    if op == "cluster_gather":
        return (size * peers * ranks,)
    if op == "cluster_reduce_scatter":
        return (size * peers + stats * peers * ranks,)
    if stats:
        return size * peers + stats * peers * ranks, size * peers
    return (size * peers,) * 2 if in_two_rounds(elements, ranks) else (size * peers * ranks,)


def in_parts(elements: int, splits: int, ranks: int) -> bool:
    """Whether each rank reads and combines a part of the splits' terms and pushes it to its peers, rather than every CTA all of them.

    elements: of all heads' outputs. With many splits the terms are many times what they make, and all CTAs read them at once.
    """
    return splits > 2 and ranks > 1 and elements % (PUSH * ranks) == 0


def heads_of_part(elements: int, dim: int, ranks: int, rank: int) -> tuple[int, int]:
    """The half-open range of heads, of `dim` each, that part `rank` of `ranks` of all heads' outputs lies in."""
    part = elements // ranks
    return rank * part // dim, ((rank + 1) * part - 1) // dim + 1
