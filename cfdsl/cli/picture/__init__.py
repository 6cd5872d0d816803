"""`draw`: a placed graph and its kernel plan as one SVG document."""

from __future__ import annotations

from cfdsl.cli.holdings import Placed
from cfdsl.cli.picture.canvas import INK, MUTED, PARTIAL, REPLICATED, SHARDED, Canvas, text_width
from cfdsl.cli.picture.graph import LEFT, GraphPicture
from cfdsl.cli.picture.memory import MemoryPicture
from cfdsl.cli.picture.stream import StreamPicture
from cfdsl.cli.report import groups_text
from cfdsl.cli.units import held, plural
from cfdsl.compiler.plan import KernelPlan

WIDTH = 1500.0


def draw(placed: Placed, plan: KernelPlan, kv_len: int, gbps: float, part: str) -> str:
    """The picture of one kernel: phases and exchanges, the load stream for `kv_len` tokens at `gbps`, shared memory over the steps."""
    canvas = Canvas(max(WIDTH, 700 + 62.0 * placed.mesh.ranks))
    y = _title(canvas, placed, plan, kv_len, part)
    how = "a row is a value, a column is a rank; the bar is the cluster's share of the value, filled where the rank holds it"
    canvas.heading(LEFT, y, "Placed graph", how)
    _legend(canvas, y + 24)
    y = GraphPicture(canvas, placed, plan.exchanges, y + 34).draw() + 40
    streamed = f"bytes to scale for {kv_len:,} cached tokens" if any(stream.tiles is None for stream in plan.streams) else "bytes to scale"
    early = plan.ring.early if plan.ring else 0
    ahead = f"at most {plural(early, 'tile')} of what a grid barrier must come before" if early else "as far as the ring has room"
    canvas.heading(LEFT, y, "Load stream of one CTA", f"one producer warp walks it ahead of the consumers, {ahead}; {streamed}")
    y = StreamPicture(canvas, plan, kv_len, gbps, y + 22).draw() + 24
    detail = f"{held(plan.smem_bytes)} per CTA; violet: peers push into it; blocks that share columns reuse the same bytes"
    canvas.heading(LEFT, y, "Steps and shared memory", detail)
    y = MemoryPicture(canvas, plan, y + 36).draw()
    return canvas.document(y + 24)


def _title(canvas: Canvas, placed: Placed, plan: KernelPlan, kv_len: int, part: str) -> float:
    canvas.text(LEFT, 52, plan.name, 28, INK, 800)
    canvas.text(LEFT + text_width(plan.name, 28) + 34, 52, f"{plan.model}, {plan.dtype}", 17, MUTED, 500)
    mesh, config = placed.mesh, plan.config
    shared = groups_text(mesh.clusters, mesh.splits)
    facts = f"{plural(mesh.clusters, 'cluster')}{shared} of {plural(mesh.ranks, 'rank')} = {plural(mesh.ctas, 'CTA')} on {part}"
    warps = f"{config.warps} consumer warps" + (" and one producer warp" if plan.ring else "")
    canvas.text(LEFT, 78, f"{facts}; {warps}; {held(plan.smem_bytes)} of shared memory per CTA", 13, MUTED)
    return 124


def _legend(canvas: Canvas, y: float) -> None:
    x = LEFT + 0.0
    for fill, stroke, text in (
        (REPLICATED, None, "R: every rank holds all of it"),
        (SHARDED, None, "S(d): each rank holds a slice along d"),
        ("url(#partial)", PARTIAL, "P(op): each rank holds a term"),
    ):
        canvas.rect(x, y - 8, 22, 9, fill, stroke, 2.5)
        canvas.text(x + 29, y, text, 11.5, MUTED)
        x += 29 + text_width(text, 11.5) + 26
