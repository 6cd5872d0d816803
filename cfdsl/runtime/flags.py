"""What a kernel flags while it runs: the bits of its status word, and what each of them means in words."""

from __future__ import annotations

STATUS_ARG, STATUS_WORD = "ws_sync", 1  # the workspace with the word, and its place there; kernels set bits of it and never clear them
LENGTH_CLAMPED, POSITION_CLAMPED, BARRIER_TIMED_OUT, TOKEN_CLAMPED = range(4)  # the numbers of the bits that `primitives.kv` names
STATUS = {
    LENGTH_CLAMPED: "a KV length was negative or the cache was full: the length was clamped for attention, and the token was not appended",
    POSITION_CLAMPED: "a position was outside of the rotary tables: it was clamped",
    BARRIER_TIMED_OUT: "a grid barrier timed out: not all clusters were resident, and the outputs of that launch are wrong",
    TOKEN_CLAMPED: "a token was outside of the embedding table: it was clamped",
}


def in_words(word: int) -> tuple[str, ...]:
    """The texts of the bits that are set in a status word, in the order of their numbers."""
    return tuple(text for bit, text in STATUS.items() if word >> bit & 1)
