"""The lower part of the picture: steps downwards, shared memory across; a buffer is a block over the steps that it lives for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from cfdsl.cli.picture.canvas import CLUSTER, FAINT, INK, LINE, MUTED, PANEL, WHITE, Canvas, text_width
from cfdsl.cli.picture.graph import LEFT
from cfdsl.cli.picture.load_stream import stream_of
from cfdsl.cli.picture.stream import exchange_colors, stream_color
from cfdsl.cli.units import held, plural
from cfdsl.compiler.plan import Barrier, Buffer, KernelPlan

ROW, HEAD = 27, 46
LABEL = 520.0


@dataclass(frozen=True)
class Scale:
    """Offsets to x: monotone, but each stretch between two edges gets room by the logarithm of its bytes, so that all names fit."""

    edges: tuple[int, ...]
    xs: tuple[float, ...]

    def x(self, offset: int) -> float:
        return self.xs[self.edges.index(offset)]


def scale_of(plan: KernelPlan, x0: float, x1: float) -> Scale:
    """A scale from `x0` to `x1` with an edge wherever a buffer, the ring or the barriers begin or end."""
    edges = {0, plan.smem_bytes}
    if plan.ring is not None:
        edges |= {plan.ring.offset, plan.ring.offset + plan.ring.bytes}
    for buffer in plan.buffers:
        edges |= {buffer.offset, buffer.offset + buffer.bytes}
    for barrier in plan.barriers:
        edges |= {barrier.offset, barrier.offset + 8 * barrier.count}
    ordered = sorted(edges)
    filled = [(buffer.offset, buffer.offset + buffer.bytes) for buffer in plan.buffers]
    weights = [_weight(end - begin, any(a <= begin and end <= b for a, b in filled)) for begin, end in pairwise(ordered)]
    total = sum(weights) or 1.0
    xs, at = [x0], x0
    for weight in weights:
        at += (x1 - x0) * weight / total
        xs.append(at)
    return Scale(tuple(ordered), tuple(xs))


def _weight(count: int, filled: bool) -> float:
    """Room for a name where a buffer lies, next to none for barriers and padding, and some more for the ring."""
    return 0.35 if count < 64 and not filled else 1.6 + math.log2(max(count, 32) / 32) * 0.6 + (6 if count > 16384 else 0)


class MemoryPicture:
    """Draws steps and shared memory of one CTA from `top` downwards."""

    def __init__(self, canvas: Canvas, plan: KernelPlan, top: float) -> None:
        self.canvas, self.plan, self.top = canvas, plan, top
        self.x0, self.x1 = LEFT + LABEL, canvas.width - LEFT - 10
        self.scale = scale_of(plan, self.x0, self.x1)
        self.body = top + HEAD
        self.bottom = self.body + ROW * max(len(plan.steps), 1)

    def draw(self) -> float:
        """Draw; returns the y below the drawing."""
        self._steps()
        self._edges()
        self._ring()
        for buffer in self.plan.buffers:
            self._buffer(buffer)
        for barrier in self.plan.barriers:
            self._block(barrier.offset, 8 * barrier.count, self.body, self.bottom, FAINT, f"mbarrier {barrier.name}")
        return self._barriers(self.bottom + 34)

    def _steps(self) -> None:
        canvas, colors = self.canvas, exchange_colors(self.plan)
        canvas.text(LEFT, self.body - 10, "step", 11.5, MUTED, 600)
        canvas.text(self.x0, self.top + 4, "offset in shared memory (edges to scale by order, not by size)", 11.5, MUTED, 600)
        for index, step in enumerate(self.plan.steps):
            y = self.body + ROW * index
            color = colors.get(index)
            if color or index % 2 == 0:
                canvas.rect(LEFT, y, canvas.width - 2 * LEFT, ROW, color or PANEL, fill_opacity=0.09 if color else 1)
            canvas.circle(LEFT + 12, y + ROW / 2, 9.5, color or WHITE, color or FAINT, stroke_width=1.2)
            canvas.text(LEFT + 12, y + ROW / 2 + 3.8, str(index), 10.5, WHITE if color else INK, 700, "middle")
            canvas.text(LEFT + 30, y + ROW / 2 + 4, step.op, 12, color or INK, 700, mono=True, width=150)
            x = LEFT + 190
            eaten = stream_of(step, self.plan)
            if eaten is not None:
                x += canvas.pill(x, y + ROW / 2, self.plan.streams[eaten].name, stream_color(eaten), 9.5) + 6
            canvas.text(x, y + ROW / 2 + 4, step.text, 11, MUTED, width=self.x0 - x - 12)

    def _edges(self) -> None:
        canvas, last = self.canvas, -1e9
        for offset, x in zip(self.scale.edges, self.scale.xs, strict=True):
            canvas.line(x, self.body - 5, x, self.bottom, LINE, 0.8)
            anchor = "end" if x > self.x1 - 20 else "start" if x < self.x0 + 20 else "middle"
            if x - last > (60 if anchor == "end" else 40):
                canvas.text(x, self.body - 10, f"{offset:,}", 9.5, MUTED, None, anchor, True)
                last = x

    def _block(self, offset: int, count: int, y0: float, y1: float, color: str, title: str, **attrs: object) -> tuple[float, float]:
        x0, x1 = self.scale.x(offset), self.scale.x(offset + count)
        self.canvas.rect(x0 + 1, y0 + 1, x1 - x0 - 2, y1 - y0 - 2, color, color, 4, title, fill_opacity=0.28, stroke_width=1, **attrs)
        return x0, x1

    def _ring(self) -> None:
        ring = self.plan.ring
        if ring is None:
            return
        title = f"ring: {ring.stages} slots of {ring.stage_bytes:,} bytes at {ring.offset}"
        x0, x1 = self._block(ring.offset, ring.bytes, self.body, self.bottom, "#5b7ba8", title, data_ring="ring")
        for slot in range(1, ring.stages):
            x = x0 + (x1 - x0) * slot / ring.stages
            self.canvas.line(x, self.body + 2, x, self.bottom - 2, WHITE, 1.2)
        middle = (self.body + self.bottom) / 2
        self.canvas.text((x0 + x1) / 2, middle - 4, "ring", 14, INK, 700, "middle")
        self.canvas.text(
            (x0 + x1) / 2, middle + 13, f"{ring.stages} × {held(ring.stage_bytes)}", 11, INK, None, "middle", width=x1 - x0 - 4
        )

    def _buffer(self, buffer: Buffer) -> None:
        y0, y1 = self.body + ROW * buffer.first, self.body + ROW * (min(buffer.last, len(self.plan.steps) - 1) + 1)
        color = CLUSTER if buffer.peer_written else "#c98b2b"
        written = ", peers write here" if buffer.peer_written else ""
        where = f"{buffer.bytes} bytes at {buffer.offset}, steps {buffer.first} to {buffer.last}"
        title = f"{buffer.name}: {buffer.dtype} {buffer.shape}, {where}{written}"
        x0, x1 = self._block(buffer.offset, buffer.bytes, y0, y1, color, title, data_buffer=buffer.name)
        middle, detail = (y0 + y1) / 2, held(buffer.bytes)
        if text_width(buffer.name, 11, True) < x1 - x0 - 6:
            two = y1 - y0 > 34
            self.canvas.text((x0 + x1) / 2, middle + (-2 if two else 4), buffer.name, 11, INK, 600, "middle", True)
            if two:
                self.canvas.text((x0 + x1) / 2, middle + 12, detail, 9.5, MUTED, None, "middle", width=x1 - x0 - 4)
        else:
            x = (x0 + x1) / 2 + 4
            self.canvas.text(
                x, middle, buffer.name, 10.5, INK, 600, "middle", True, y1 - y0 - 4, transform=f"rotate(-90 {x:.1f} {middle:.1f})"
            )

    def _barriers(self, y: float) -> float:
        canvas, x = self.canvas, LEFT + 80.0
        if not self.plan.barriers:
            return y
        canvas.text(LEFT, y + 4, "barriers", 12.5, INK, 700)
        for barrier in self.plan.barriers:
            text = barrier_text(barrier)
            if x + text_width(text, 10.5, True) + 12 > canvas.width - LEFT:
                x, y = LEFT + 80.0, y + 24
            color = {"exchange": CLUSTER, "full": "#2f6fde"}.get(barrier.kind, MUTED)
            x += canvas.pill(x, y, text, color) + 8
        return y + 20


def barrier_text(barrier: Barrier) -> str:
    """One barrier in a line: name, how many, arrivals and transaction bytes of a phase."""
    count = f"[{barrier.count}]" if barrier.count > 1 else ""
    bytes_ = f" + {barrier.tx_bytes:,} B" if barrier.tx_bytes else ""
    return f"{barrier.name}{count}: {plural(barrier.arrivals, 'arrival')}{bytes_}"
