"""The middle of the picture: what the producer warp loads, to scale, and what the consumer warps do while it does."""

from __future__ import annotations

from cfdsl.cli.picture.canvas import CLUSTER, FAINT, GRID, INK, MUTED, STREAMS, WHITE, Canvas, text_width
from cfdsl.cli.picture.graph import LEFT
from cfdsl.cli.picture.load_stream import Run, runs, stream_of
from cfdsl.cli.units import held, plural, trim
from cfdsl.compiler.plan import KernelPlan

LANE = 46
DOT = 19.0
HEIGHT = 250


def stream_color(index: int) -> str:
    """The colour of a stream by its index, the same wherever it is drawn."""
    return STREAMS[index % len(STREAMS)]


class StreamPicture:
    """Draws the load stream of the busiest CTA, to scale in bytes, from `top` downwards."""

    def __init__(self, canvas: Canvas, plan: KernelPlan, kv_len: int, gbps: float, top: float) -> None:
        self.canvas, self.plan, self.gbps, self.top = canvas, plan, gbps, top
        self.runs = runs(plan, kv_len)
        self.total = max(self.runs[-1].end if self.runs else 0, 1)
        self.x0 = LEFT + 178
        self.x1 = canvas.width - LEFT - 10

    def draw(self) -> float:
        """Draw; returns the y below the drawing."""
        if not self.runs:
            self.canvas.text(LEFT, self.top + 20, "This kernel has no load stream: its inputs are read straight into registers.", 12, MUTED)
            return self.top + 40
        self._ring(self.top + 8)
        self._producer(self.top + 34)
        self._consumer(self.top + 34 + LANE + 10)
        self._between(self.top + 34 + 2 * LANE + 22)
        self._axis(self.top + 34 + 2 * LANE + 68)
        return self.top + HEIGHT

    def x(self, count: float) -> float:
        """The x of a number of bytes loaded."""
        return self.x0 + (self.x1 - self.x0) * count / self.total

    def _ring(self, y: float) -> None:
        ring = self.plan.ring
        if ring is None:
            return
        end = self.x(min(ring.bytes, self.total))
        self.canvas.path(f"M{self.x0},{y + 18} v-7 H{end:.1f} v7", INK, 1.3)
        self.canvas.text(LEFT, y + 15, "ring, to scale", 11.5, MUTED, 600)
        text = f"{ring.stages} slots × {held(ring.stage_bytes)} = {held(ring.bytes)}"
        if 0 < ring.window < ring.stages:
            text += f", {ring.window} in flight at once"
        self.canvas.text(end + 8, y + 15, text, 11.5, INK)

    def _lane(self, y: float, title: str, detail: str) -> None:
        self.canvas.text(LEFT, y + 20, title, 12.5, INK, 700)
        self.canvas.text(LEFT, y + 35, detail, 11, MUTED)
        self.canvas.rect(self.x0, y, self.x1 - self.x0, LANE, "#f0f3f7", None, 5)

    def _producer(self, y: float) -> None:
        self._lane(y, "producer warp", "memory → ring")
        for index, run in enumerate(self.runs):
            x, w, color = self.x(run.begin), self.x(run.end) - self.x(run.begin), stream_color(index)
            tensors = " + ".join(run.stream.tensors)
            title = f"{run.stream.name}: {run.tiles} tiles of {held(run.stream.tile_bytes)} from {tensors}"
            self.canvas.rect(x + 0.5, y, w - 1, LANE, color, None, 4, title, data_stream=run.stream.name)
            self._ticks(run, x, w, y)
            text = f"{run.stream.name}  {held(run.bytes)}"
            tiles = f"{plural(run.tiles, 'tile')} × {held(run.stream.tile_bytes)}"
            self.canvas.text(
                x + w / 2, y + 20, text if text_width(text, 12.5) < w - 8 else run.stream.name, 12.5, WHITE, 700, "middle", width=w - 6
            )
            if text_width(tiles, 10.5) < w - 8:
                self.canvas.text(x + w / 2, y + 36, tiles, 10.5, WHITE, None, "middle")

    def _ticks(self, run: Run, x: float, w: float, y: float) -> None:
        """One tick per tile where there is room for it."""
        if not run.tiles or w / run.tiles < 3.5:
            return
        for tile in range(1, run.tiles):
            self.canvas.line(x + w * tile / run.tiles, y, x + w * tile / run.tiles, y + 5, WHITE, 0.8, stroke_opacity=0.7)

    def _consumer(self, y: float) -> None:
        """Steps that eat a stream, under the bytes that they eat."""
        self._lane(y, f"{self.plan.config.warps} consumer warps", "ring → registers")
        for number, step in enumerate(self.plan.steps):
            index = stream_of(step, self.plan)
            if index is None:
                continue
            run, color = self.runs[index], stream_color(index)
            x, w = self.x(run.begin), self.x(run.end) - self.x(run.begin)
            self.canvas.rect(x + 0.5, y, w - 1, LANE, color, color, 4, f"step {number}: {step.text}", fill_opacity=0.16)
            self.canvas.text(x + w / 2, y + 20, f"{number}  {step.op}", 12, INK, 600, "middle", True, w - 6)
            if text_width(step.text, 10.5) < w - 8:
                self.canvas.text(x + w / 2, y + 36, step.text, 10.5, MUTED, None, "middle")

    def _between(self, y: float) -> None:
        """Steps that eat nothing, numbered, at the point of the stream where they come; exchanges in their scope's colour."""
        self.canvas.text(LEFT, y + 13, "between streams", 12.5, INK, 700)
        self.canvas.text(LEFT, y + 28, "the ring keeps filling", 11, MUTED)
        colors, pauses = exchange_colors(self.plan), self._pauses()
        for (at, numbers), start in zip(pauses.items(), self._starts(pauses), strict=True):
            anchor = self.x(at)
            self.canvas.path(f"M{anchor:.1f},{y - 12} V{y - 6} H{start + DOT / 2:.1f} V{y + 3}", FAINT, 1)
            for place, number in enumerate(numbers):
                x, color = start + DOT * (place + 0.5), colors.get(number)
                self.canvas.circle(x, y + 13, DOT / 2 - 1, color or WHITE, color or FAINT, stroke_width=1.2)
                self.canvas.text(x, y + 16.5, str(number), 9.5, WHITE if color else INK, 700, "middle")

    def _starts(self, pauses: dict[int, list[int]]) -> list[float]:
        """Where each run of numbers begins: at its point of the stream, moved so that runs neither overlap nor leave the page."""
        widths = [DOT * len(numbers) + 6 for numbers in pauses.values()]
        starts, edge = [], self.x0
        for at, width in zip(pauses, widths, strict=True):
            starts.append(max(self.x(at) + 4, edge))
            edge = starts[-1] + width
        edge = self.x1 + 6
        for index in range(len(starts) - 1, -1, -1):
            starts[index] = min(starts[index], edge - widths[index])
            edge = starts[index]
        return starts

    def _pauses(self) -> dict[int, list[int]]:
        """Bytes eaten so far -> the steps taken then, barriers among the warps left out."""
        found: dict[int, list[int]] = {}
        at = 0
        for number, step in enumerate(self.plan.steps):
            index = stream_of(step, self.plan)
            if index is not None:
                at = self.runs[index].end
            elif step.op != "sync":
                found.setdefault(at, []).append(number)
        return found

    def _axis(self, y: float) -> None:
        canvas, ctas = self.canvas, self.plan.mesh.ctas
        canvas.line(self.x0, y, self.x1, y, FAINT, 1.2)
        for count in ticks(self.total / 1024):
            x = self.x(count * 1024)
            canvas.line(x, y, x, y + 5, FAINT)
            anchor = "start" if count == 0 else "middle"
            canvas.text(x, y + 18, f"{trim(count)} KiB", 10.5, MUTED, None, anchor)
            canvas.text(x, y + 33, f"{trim(count * 1024 * ctas / self.gbps / 1e3)} us", 10.5, INK, None, anchor)
        canvas.text(LEFT, y + 18, "loaded by the busiest CTA", 10.5, MUTED)
        canvas.text(LEFT, y + 33, f"at {trim(self.gbps)} GB/s over {ctas} CTAs", 10.5, INK, width=self.x0 - LEFT - 4)


def exchange_colors(plan: KernelPlan) -> dict[int, str]:
    """The colour of each step that is an exchange, by the step's index."""
    return {exchange.step: CLUSTER if exchange.scope == "cluster" else GRID for exchange in plan.exchanges}


def ticks(limit: float, wanted: int = 8) -> list[float]:
    """Round numbers from 0 up to `limit`, about `wanted` of them."""
    step = 1.0
    while limit / step > wanted:
        step *= 2 if str(step)[0] == "1" else 2.5 if str(step)[0] == "2" else 2
    return [index * step for index in range(int(limit / step) + 1)]
