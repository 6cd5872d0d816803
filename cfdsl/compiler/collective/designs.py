"""The algorithms: the protocol of each, where its buffers lie, and what keeps it from doing a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod

from cfdsl.compiler.collective.design import VECTOR, Design, padded, stride, word_bytes
from cfdsl.compiler.collective.protocol import (
    ARM,
    BULK,
    EACH,
    FENCE,
    MEET,
    MULTICAST,
    OTHERS,
    PARTNER,
    PUSH,
    READ,
    ROOT,
    ST_ASYNC,
    SYNC,
    WAIT,
    WRITE,
    Act,
    Place,
    Protocol,
    wait,
)  # fmt: skip
from cfdsl.compiler.collective.request import TERM_TAIL, WARPS, WIDTH, Collective

ALGORITHMS = ("push", "bulk", "scatter_gather", "doubling", "multicast", "global")
ACK_BYTES = 4
STAYS_BYTES = 1024  # of a row: from here on its own way costs more than the consumer barrier that it takes to leave it at home

_KINDS = {
    "push": ("reduce", "reduce_scatter", "gather", "broadcast"), "bulk": ("reduce", "reduce_scatter", "gather", "broadcast"),
    "scatter_gather": ("reduce",), "doubling": ("reduce", "gather"), "multicast": ("gather", "broadcast"),
    "global": ("reduce", "reduce_scatter", "gather", "broadcast"),
}  # fmt: skip


def refusals(request: Collective, algorithm: str) -> Iterator[str]:
    """Why an algorithm cannot do a request, shared memory aside."""
    if request.kind not in _KINDS[algorithm]:
        yield f"it does {' and '.join(_KINDS[algorithm])}"
        return
    nbytes = request.payload * request.width
    piece = nbytes // request.cluster if request.kind == "reduce_scatter" else nbytes
    if algorithm == "bulk" and not request.lse and piece % VECTOR:
        yield f"bulk copies move multiples of {VECTOR} bytes, and {piece} bytes go to each rank"
    if algorithm == "multicast" and nbytes % VECTOR:
        yield f"multicasts move multiples of {VECTOR} bytes, and a payload has {nbytes}"
    if algorithm == "multicast" and request.kind == "broadcast" and nbytes < VECTOR * request.cluster:
        yield f"each rank sends at least {VECTOR} bytes, and {nbytes} are fewer than {request.cluster} x {VECTOR}"
    if algorithm == "scatter_gather" and request.lse and request.heads % request.cluster:
        yield f"{request.heads} heads cannot be spread over {request.cluster} ranks"


def design(request: Collective, algorithm: str) -> Design:
    """The request by this algorithm, which has no refusal. Its shared memory may be more than there is."""
    return _DESIGNS[algorithm if algorithm in ("scatter_gather", "doubling", "multicast", "global") else request.kind](request, algorithm)


# ---- what the designs share --------------------------------------------------------------------------------------------------------

_CALLERS = Act(SYNC, caller=True)
_CALLER_WRITES = Act(WRITE, ("src",))  # anew for each call
_BEFORE = (_CALLER_WRITES,)  # once: bulk copies read a source until they have landed; who changes it has two in turn, broadcasts three


def _taken(landed: tuple[str, ...]) -> tuple[Act, ...]:
    """A result where it has landed is read at once, and until the next call: before and behind the barrier that is owed to the source."""
    return Act(READ, landed), _CALLERS, Act(READ, landed)


def _sources(request: Collective) -> tuple[int, int, int]:
    """(pieces, elements of one, their width) of what a rank sends: one to each peer in a reduce-scatter, else one in all."""
    n = request.heads * (request.dim + TERM_TAIL) if request.lse else request.payload
    pieces = request.cluster if request.kind == "reduce_scatter" else 1
    return pieces, n // pieces, WIDTH[request.held]


def _results(request: Collective) -> tuple[int, int]:
    """(pieces, elements of one) of a rank's result."""
    return (request.cluster, request.payload) if request.kind == "gather" else (1, prod(request.result_shape))


def _warps(vectors: int) -> int:
    """Consumer warps for so many vectors of work: two to a thread, but for the largest."""
    return next((warps for warps in WARPS if 64 * warps >= vectors), WARPS[-1])


def place_all(protocol: Protocol) -> tuple[Protocol, int]:
    """Offsets for all buffers, after the barriers; and where the arena ends."""
    at = padded(8 * protocol.mbars)
    places = []
    for place in protocol.places:
        places.append(replace(place, offset=at) if place.in_arena else place)
        at += padded(place.nbytes) * place.sets if place.in_arena else 0
    return replace(protocol, places=tuple(places)), max(at, VECTOR)


def _made(request: Collective, algorithm: str, protocol: Protocol, work: int, sent: int, dtype: str, pieces: int) -> Design:
    protocol, smem = place_all(protocol)
    result_pieces, result_piece = _results(request)
    return Design(request, algorithm, protocol, request.warps or _warps(work), smem, sent, dtype, pieces, result_pieces, result_piece)


# ---- one round, everybody to everybody ---------------------------------------------------------------------------------------------


def _one_round(request: Collective, algorithm: str) -> Design:
    ranks, bulk = request.cluster, algorithm == "bulk"
    pieces, n, width = _sources(request)
    if request.kind == "reduce" and request.payload == 1 and not bulk:
        return _scalar(request, algorithm)
    row, nbytes = padded(n * width), word_bytes(n, width)
    stays = _stays(ranks, nbytes)
    by, step = BULK if bulk else ST_ASYNC, row if request.kind == "reduce_scatter" else 0
    # By bulk copies a rank's own row goes by st.async: to call that a copy too asks for more, of fence, source and end, and for no less.
    push = Act(PUSH, ("src",), 0, nbytes, OTHERS if stays else EACH, "box", by, step=step, apart=row)
    result_pieces, result_n = _results(request)
    out = padded(result_pieces * stride(result_n, width) * width)
    places = [Place("src", pieces * row), Place("box", ranks * row, 2)]
    acts = [*([Act(FENCE)] if bulk else [_CALLER_WRITES]), Act(SYNC), push, *_own(stays, "own", 0)]
    landed = ("box", "own") if stays else ("box",)
    places += [Place("own", row, 2, part_of="box")] if stays else []
    if request.folds:
        places.append(Place("out", out))
        acts += [Act(READ, landed), Act(WRITE, ("out",)), _CALLERS, Act(READ, ("out",))]
    else:
        acts += _taken(landed)
    protocol = Protocol(ranks, ((ranks - stays) * nbytes,), 2, tuple(places), tuple(acts), before=_BEFORE if bulk else (), closes=bulk)
    return _made(request, algorithm, protocol, ranks * row // VECTOR, n, request.held, pieces)


def _stays(ranks: int, nbytes: int) -> bool:
    """Whether a rank's own row is stored at home."""
    return ranks > 1 and nbytes >= STAYS_BYTES


def _own(stays: bool, place: str, round: int) -> tuple[Act, ...]:
    """The end of a round: wait; and a barrier for the own row that stayed, before other threads read it."""
    return (Act(WRITE, (place,)), *wait(round), Act(SYNC)) if stays else wait(round)


def _scalar(request: Collective, algorithm: str) -> Design:
    """One f32, from a register to a register; each result is also kept in memory, or the compiler would drop all additions but the last."""
    ranks = request.cluster
    places = (Place("box", padded(4 * ranks), 2), Place("kept", VECTOR))
    push = Act(PUSH, (), 0, 4, EACH, "box", ST_ASYNC, apart=4)
    acts = (Act(SYNC), push, Act(WAIT), Act(READ, ("box",)), Act(ARM), Act(WRITE, ("kept",)))
    protocol = Protocol(ranks, (4 * ranks,), 2, places, acts)
    return _made(request, algorithm, protocol, 1, 1, request.dtype, 1)


def _broadcast(request: Collective, algorithm: str) -> Design:
    ranks, bulk = request.cluster, algorithm == "bulk"
    _, n, width = _sources(request)
    row, nbytes = padded(n * width), word_bytes(n, width)
    acts = (
        *wait(1, only=ROOT, lag=2),
        Act(FENCE) if bulk else _CALLER_WRITES,
        Act(SYNC),
        Act(PUSH, (), 1, ACK_BYTES, ROOT, "ack", ST_ASYNC, lag=1, apart=ACK_BYTES),
        Act(PUSH, ("src",), 0, nbytes, EACH, "box", BULK if bulk else ST_ASYNC, only=ROOT),
        *wait(0),
        *_taken(("box",)),
    )
    places = (Place("src", row), Place("box", row, 2), Place("ack", ranks * ACK_BYTES, 2))
    tx, before = (nbytes, ranks * ACK_BYTES), _BEFORE if bulk else ()
    protocol = Protocol(ranks, tx, 2, places, acts, before=before, ending=wait(1, only=ROOT, lag=2), closes=bulk)
    return _made(request, algorithm, protocol, ranks * row // VECTOR, n, request.held, 1)


def _multicast(request: Collective, algorithm: str) -> Design:
    ranks = request.cluster
    n = request.payload * (ranks if request.kind == "gather" else 1)
    nbytes = n * request.width
    push = Act(PUSH, (), 0, nbytes, EACH, "box", MULTICAST)
    protocol = Protocol(ranks, (nbytes,), 2, (Place("box", nbytes, 2),), (Act(SYNC), push, *wait(0), Act(READ, ("box",))))
    return _made(request, algorithm, protocol, nbytes // VECTOR, n, request.held, 0)


# ---- several rounds ----------------------------------------------------------------------------------------------------------------


def _scatter_gather(request: Collective, algorithm: str) -> Design:
    """Pieces of whole vectors (LSE: of whole heads); the last ones may be past the payload's end and mean nothing."""
    ranks, width = request.cluster, WIDTH[request.held]
    unit = request.dim + TERM_TAIL if request.lse else VECTOR // width
    n = -(-_sources(request)[1] // ranks // unit) * unit if request.lse else -(-request.payload // (ranks * unit)) * unit
    out = n // unit * request.dim if request.lse else n
    row, out_row = n * width, out * width
    stays = _stays(ranks, row)
    to = OTHERS if stays else EACH
    acts = (
        _CALLER_WRITES,
        Act(SYNC),
        Act(PUSH, ("src",), 0, row, to, "box", ST_ASYNC, step=row, apart=row),
        *_own(stays, "own", 0),
        Act(READ, ("box", "own") if stays else ("box",)),
        Act(WRITE, ("mid",)),
        Act(SYNC),
        Act(PUSH, ("mid",), 1, out_row, to, "out", ST_ASYNC, apart=out_row),
        *_own(stays, "reduced", 1),
        Act(READ, ("out", "reduced") if stays else ("out",)),
    )
    places = [Place("src", ranks * row), Place("box", ranks * row), Place("mid", out_row), Place("out", ranks * out_row)]
    places += [Place("own", row, part_of="box"), Place("reduced", out_row, part_of="out")] if stays else []
    protocol = Protocol(ranks, ((ranks - stays) * row, (ranks - stays) * out_row), 1, tuple(places), acts)
    made = _made(request, algorithm, protocol, ranks * row // VECTOR, n, request.held, ranks)
    return replace(made, result_piece=out, result_pieces=ranks)


def _doubling(request: Collective, algorithm: str) -> Design:
    return _doubling_gather(request, algorithm) if request.kind == "gather" else _doubling_reduce(request, algorithm)


def _doubling_reduce(request: Collective, algorithm: str) -> Design:
    """Each round has two rows: the one of the lower rank, and the one of the upper. Own and the partner's are told apart here."""
    ranks = request.cluster
    rounds = ranks.bit_length() - 1
    _, n, width = _sources(request)
    row = padded(4 * n)
    acts: list[Act] = [_CALLER_WRITES, Act(SYNC), Act(READ, ("src",))]
    for r in range(rounds):
        acts += [Act(WRITE, (f"own{r}",)), Act(SYNC), Act(PUSH, (f"own{r}",), r, 4 * n, PARTNER, f"peer{r}", ST_ASYNC), *wait(r)]
        acts.append(Act(READ, (f"own{r}", f"peer{r}")))
    acts += [Act(WRITE, ("out",)), _CALLERS, Act(READ, ("out",))]
    # In the arena a set is the rounds' pairs of rows; which row of a pair is a rank's own is the rank's matter.
    pairs = [Place("pairs", 2 * rounds * row, 2)] if rounds else []
    halves = [Place(f"{whose}{r}", row, 2, part_of="pairs") for r in range(rounds) for whose in ("own", "peer")]
    places = (Place("src", padded(n * width)), *pairs, Place("out", padded(_results(request)[1] * width)), *halves)
    protocol = Protocol(ranks, (4 * n,) * rounds, 2, places, tuple(acts))
    return _made(request, algorithm, protocol, row // VECTOR, n, "f32", 1)


def _doubling_gather(request: Collective, algorithm: str) -> Design:
    ranks = request.cluster
    rounds = ranks.bit_length() - 1
    _, n, width = _sources(request)
    row = padded(n * width)
    acts: list[Act] = [_CALLER_WRITES, Act(SYNC), Act(READ, ("src",)), Act(WRITE, ("own",)), Act(SYNC)]
    for r in range(rounds):
        have = ("own", *(f"rows{before}" for before in range(r)))
        acts += [Act(PUSH, have, r, row << r, PARTNER, f"rows{r}", ST_ASYNC), *wait(r)]
    acts.append(Act(READ, ("own", *(f"rows{r}" for r in range(rounds)))))
    parts = [Place("own", row, 2, part_of="box"), *(Place(f"rows{r}", row << r, 2, part_of="box") for r in range(rounds))]
    protocol = Protocol(
        ranks, tuple(row << r for r in range(rounds)), 2, (Place("src", row), Place("box", ranks * row, 2), *parts), tuple(acts)
    )
    return _made(request, algorithm, protocol, ranks * row // VECTOR, n, request.held, 1)


# ---- off chip ----------------------------------------------------------------------------------------------------------------------


def _global(request: Collective, algorithm: str) -> Design:
    ranks = request.cluster
    pieces, n, width = _sources(request)
    row = padded(n * width)
    result_pieces, result_n = _results(request)
    only = ROOT if request.kind == "broadcast" else ""
    acts = (
        _CALLER_WRITES,
        Act(SYNC),
        Act(READ, ("src",), only=only),
        Act(WRITE, ("rows",), only=only),
        Act(MEET),
        Act(READ, ("rows",)),
        Act(WRITE, ("out",)),
        _CALLERS,
        Act(READ, ("out",)),
    )
    places = (
        Place("src", pieces * row), Place("out", padded(result_pieces * stride(result_n, width) * width)),
        Place("rows", pieces * row, 2, offchip=True),
    )  # fmt: skip
    protocol = Protocol(ranks, (), 1, places, acts)
    return _made(request, algorithm, protocol, ranks * row // VECTOR, n, request.held, pieces)


_DESIGNS: dict[str, Callable[[Collective, str], Design]] = {
    "reduce": _one_round, "reduce_scatter": _one_round, "gather": _one_round, "broadcast": _broadcast,
    "scatter_gather": _scatter_gather, "doubling": _doubling, "multicast": _multicast, "global": _global,
}  # fmt: skip
