"""Places in a CTA's shared memory: for the ring, the barriers, and the buffers, of which two may have the same bytes in turn."""

from __future__ import annotations

from math import prod

from cfdsl.compiler.builder import BufferSpec, Builder
from cfdsl.compiler.geometry import BARRIER_BYTES
from cfdsl.compiler.plan import Barrier, Buffer, Ring, Step
from cfdsl.dsl.graph import ITEMSIZE

ALIGN = 16


def allocate(b: Builder, ring: Ring | None) -> tuple[tuple[Buffer, ...], tuple[Barrier, ...], int]:
    """The ring first, then the barriers, then the buffers: two may share bytes if a barrier separates their lives."""
    at = ring.end if ring else 0
    barriers: list[Barrier] = []
    if ring:
        tile = max(stream.tile_bytes for stream in b.streams)
        for name, kind, arrivals, tx in (("full", "full", 1, tile), ("empty", "empty", b.config.warps, 0)):
            barriers.append(Barrier(name, kind, arrivals, tx, at, count=ring.stages, phases=None))
            at += ring.stages * BARRIER_BYTES
    for barrier in b.barriers:
        barriers.append(Barrier(barrier.name, barrier.kind, barrier.arrivals, barrier.tx_bytes, at))
        at += BARRIER_BYTES
    base = _round_up(at)
    placed: list[Buffer] = []
    for spec in sorted(b.buffers.values(), key=lambda spec: (-_bytes(spec), spec.first, spec.name)):
        offset = _fit(spec, placed, b.steps, base)
        placed.append(Buffer(spec.name, spec.shape, spec.dtype, offset, spec.first, spec.last, spec.peer_written))
    total = max([base, *(buffer.offset + buffer.bytes for buffer in placed)])
    return tuple(sorted(placed, key=lambda buffer: buffer.offset)), tuple(barriers), _round_up(total)


def _fit(spec: BufferSpec, placed: list[Buffer], steps: list[Step], base: int) -> int:
    """The lowest offset where `spec` overlaps no buffer that lives at the same time."""
    rivals = sorted((other for other in placed if not separated(spec, other, steps)), key=lambda other: other.offset)
    at = base
    for other in rivals:
        if at + _bytes(spec) <= other.offset:
            break
        at = max(at, _round_up(other.offset + other.bytes))
    return at


def separated(one: BufferSpec | Buffer, other: BufferSpec | Buffer, steps: list[Step] | tuple[Step, ...]) -> bool:
    """Whether a barrier among the consumers lies between the lives of two buffers, so that they may share bytes."""
    early, late = (one, other) if one.last < other.first else (other, one)
    return early.last < late.first and any(step.op in ("sync", "grid_barrier") for step in steps[early.last + 1 : late.first])


def _bytes(spec: BufferSpec) -> int:
    return prod(spec.shape) * ITEMSIZE[spec.dtype]


def _round_up(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN
