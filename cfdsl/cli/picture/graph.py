"""The upper part of the picture: the placed graph. Rows are values, columns are the ranks of one cluster, bands are exchanges."""

from __future__ import annotations

from cfdsl.cli.holdings import Placed, Slice, local_shape, local_slices, names_of, reads_of, regrouped, shape_text
from cfdsl.cli.picture.canvas import CLUSTER, FAINT, GRID, INK, LINE, MUTED, PANEL, PARTIAL, REPLICATED, SHARDED, WHITE, Canvas, text_width
from cfdsl.cli.units import plural, size
from cfdsl.compiler.plan import Exchange
from cfdsl.dsl.graph import CLUSTER_COLLECTIVES, LEAVES, VIEWS, Graph, Node
from cfdsl.dsl.placement import AxisPlacement, Partial, Placement, R, Replicate, Shard

LEFT, LABEL, RIGHT = 40.0, 390.0, 250.0  # margin; column of values; column of what is read from memory
ROW, BAND, HEAD = 38, 118, 64
GAP = 14


class GraphPicture:
    """Draws one placed graph, given the plan's exchanges, into a canvas from `top` downwards."""

    def __init__(self, canvas: Canvas, placed: Placed, exchanges: tuple[Exchange, ...], top: float) -> None:
        self.canvas, self.placed, self.top = canvas, placed, top
        self.names = names_of(placed.graph)
        self.exchanges = match_exchanges(placed.graph, exchanges)
        self.ranks = placed.mesh.ranks
        self.x0 = LEFT + LABEL
        self.x1 = canvas.width - LEFT - RIGHT
        self.pitch = (self.x1 - self.x0) / self.ranks

    def draw(self) -> float:
        """Draw; returns the y below the drawing."""
        rows = [node for node in self.placed.graph.nodes if node.op not in LEAVES and node.op not in VIEWS]
        height = HEAD + sum(BAND if node.is_collective else ROW for node in rows) + GAP
        self._frame(height)
        y, phase, phase_top = self.top + HEAD, 1, self.top + HEAD
        for node in rows:
            if node.is_collective:
                phase += self._phase(phase, phase_top, y)
                self._exchange(node, y)
                y += BAND
                phase_top = y
            else:
                self._row(node, y)
                y += ROW
        self._phase(phase, phase_top, y)
        return y + GAP * 2

    def _frame(self, height: float) -> None:
        canvas, mesh = self.canvas, self.placed.mesh
        ghosts = min(mesh.clusters - 1, 3)
        for step in range(ghosts, 0, -1):
            shift = 6 * step
            canvas.rect(self.x0 - 6 + shift, self.top + 18 - shift, self.x1 - self.x0 + 12, height, WHITE, LINE, 10)
        canvas.rect(self.x0 - 6, self.top + 18, self.x1 - self.x0 + 12, height, WHITE, FAINT, 10)
        title = f"cluster 0 of {mesh.clusters}" if mesh.clusters > 1 else "the one cluster"
        canvas.text(self.x0 + 8, self.top + 36, title, 11.5, MUTED, 600)
        for rank in range(self.ranks):
            label = f"rank {rank}" if self.pitch > 60 else str(rank)
            canvas.text(self.x0 + self.pitch * (rank + 0.5), self.top + 54, label, 12.5, INK, 700, "middle")
        canvas.text(LEFT + 30, self.top + 54, "value", 11.5, MUTED, 600)
        axes = "[grid, cluster, splits]" if mesh.splits > 1 else "[grid, cluster]"
        canvas.text(self.x0 - 22, self.top + 54, axes, 11.5, MUTED, 600, "end")
        canvas.text(self.x1 + 34, self.top + 54, "read from memory by one CTA", 11.5, MUTED, 600)

    def _phase(self, number: int, top: float, bottom: float) -> bool:
        """The label beside a run of rows; whether there were any rows."""
        if bottom - top < ROW / 2:
            return False
        canvas = self.canvas
        canvas.rect(LEFT, top + 3, 18, bottom - top - 6, PANEL, LINE, 5)
        middle = (top + bottom) / 2
        text = f"phase {number}" if bottom - top > 60 else str(number)
        canvas.text(LEFT + 12.8, middle, text, 10.5, MUTED, 600, "middle", transform=f"rotate(-90 {LEFT + 12.8} {middle})")
        return True

    def _row(self, node: Node, y: float) -> None:
        canvas, placement = self.canvas, self.placed.of(node)
        canvas.line(LEFT + 26, y + ROW, self.canvas.width - LEFT, y + ROW, "#eef1f5")
        name = self.names[node]
        canvas.text(LEFT + 30, y + 17, name, 13.5, INK, 700, mono=True)
        after = LEFT + 30 + text_width(name, 15, True) + 10
        canvas.text(after, y + 17, self._formula(node), 11.5, MUTED, mono=True, width=self.x0 - 130 - after)
        canvas.text(LEFT + 30, y + 31, f"{shape_text(node.type.shape)}  {node.type.dtype}", 10.5, MUTED, mono=True, width=200)
        self._chips(placement, y + 19)
        for rank in range(self.ranks):
            self._cell(node, rank, y)
        self._reads(node, y)

    def _formula(self, node: Node) -> str:
        attrs = {key: value for key, value in node.attrs if key == "shard" and value is not None}
        shown = node.args[:1] if node.op == "rope" else node.args
        args = [self.names[regrouped(arg)] for arg in shown]
        return f"{node.op}({', '.join([*args, *(f'{key}={value}' for key, value in attrs.items())])})"

    def _chips(self, placement: Placement, y: float) -> None:
        """A value's placements as coloured labels, right-aligned before the cluster's frame; that on the splits where it is not R."""
        x = self.x0 - 20.0
        for at in (*((placement.split,) if placement.split != R else ()), placement.cluster, placement.grid):
            text = str(at)
            x -= text_width(text, 10.5, True) + 12
            self.canvas.pill(x, y, text, _color(at))
            x -= 5

    def _cell(self, node: Node, rank: int, y: float) -> None:
        """A bar that stands for the cluster's share of the value, filled where this rank holds it."""
        canvas, placement, mesh = self.canvas, self.placed.of(node), self.placed.mesh
        pad = min(14.0, self.pitch * 0.12)
        x, w = self.x0 + self.pitch * rank + pad, self.pitch - 2 * pad
        shape = local_shape(node.type.shape, placement, mesh, 0, rank)
        where = ", ".join(_range(part) for part in local_slices(node.type.shape, placement, mesh, 0, rank))
        title = f"{self.names[node]} {placement} on rank {rank} of cluster 0: [{where}]"
        canvas.rect(x, y + 8, w, 9, "#e9edf3", None, 2.5)
        if isinstance(placement.cluster, Shard):
            fill = "url(#partial)" if isinstance(placement.grid, Partial) else SHARDED
            canvas.rect(x + w * rank / mesh.ranks, y + 8, w / mesh.ranks, 9, fill, None, 2.5, title)
        elif isinstance(placement.cluster, Partial):
            canvas.rect(x, y + 8, w, 9, "url(#partial)", PARTIAL, 2.5, title, stroke_width=0.8)
        else:
            fill = "url(#partial)" if isinstance(placement.grid, Partial) else REPLICATED
            canvas.rect(x, y + 8, w, 9, fill, None, 2.5, title)
        text = shape_text(shape)
        if text_width(text, 10, True) <= self.pitch - 8:
            canvas.text(x + w / 2, y + 30, text, 10, MUTED, None, "middle", True)

    def _reads(self, node: Node, y: float) -> None:
        x = self.x1 + 34
        for read in reads_of(node, self.placed):
            text = f"{read.name} {read.share}"
            if x + text_width(text, 10.5, True) + 14 > self.canvas.width - LEFT + 10:
                break
            x += self.canvas.pill(x, y + 19, text, MUTED) + 6

    def _exchange(self, node: Node, y: float) -> None:
        rounds = self.exchanges.get(node, ())
        on_cluster = node.op in CLUSTER_COLLECTIVES
        color = CLUSTER if on_cluster else GRID
        canvas = self.canvas
        canvas.rect(LEFT, y + 5, canvas.width - 2 * LEFT, BAND - 10, color, None, 8, fill_opacity=0.07)
        for number, exchange in enumerate(rounds):
            part = (BAND - 10) / len(rounds)
            canvas.rect(LEFT, y + 5 + part * number, 4, part - 1, color, None, 2, exchange.name, data_exchange=exchange.name)
        values = ", ".join(dict.fromkeys(self.names[regrouped(arg)] for arg in node.args))
        canvas.text(LEFT + 18, y + 28, f"{node.op}({values})", 13.5, color, 700, mono=True, width=LABEL - 30)
        before = {str(self.placed.of(arg)) for arg in node.args}
        canvas.text(LEFT + 18, y + 46, f"{' '.join(sorted(before))} → {self._after(node)}", 11.5, INK, mono=True, width=LABEL - 30)
        for line, text in enumerate(_facts(rounds, self.placed.mesh.ctas)):
            canvas.text(LEFT + 18, y + 63 + 14 * line, text, 11, MUTED, width=LABEL - 30)
        if on_cluster:
            self._wires(y, rounds)
        else:
            self._bus(y, rounds)

    def _after(self, node: Node) -> str:
        results = [node, *(user for user in self.placed.graph.users(node) if user.op == "item")]
        for result in results:
            try:
                return str(self.placed.of(result))
            except (KeyError, ValueError):
                continue
        return "?"

    def _wires(self, y: float, rounds: tuple[Exchange, ...]) -> None:
        """From every rank to every rank, as the exchange pushes through distributed shared memory."""
        canvas, top, bottom = self.canvas, y + 20, y + BAND - 20
        opacity = 0.85 if self.ranks <= 4 else 0.5 if self.ranks <= 8 else 0.28
        centers = [self.x0 + self.pitch * (rank + 0.5) for rank in range(self.ranks)]
        spread = min(self.pitch * 0.5, 90.0) / max(self.ranks, 1)
        for source, start in enumerate(centers):
            for target, end in enumerate(centers):
                end = end + spread * (source - (self.ranks - 1) / 2)
                bend = (bottom - top) * 0.55
                mine = source == target
                canvas.path(
                    f"M{start:.1f},{top} C{start:.1f},{top + bend} {end:.1f},{bottom - bend} {end:.1f},{bottom - 5}",
                    CLUSTER,
                    1.1 if mine else 1.5,
                    stroke_opacity=opacity,
                    stroke_dasharray="3 3" if mine else None,
                    marker_end="url(#arrow-cluster)",
                )
        for center in centers:
            canvas.circle(center, top, 5, WHITE, CLUSTER, stroke_width=1.8)
        self._right(y, "DSMEM", CLUSTER, rounds)

    def _bus(self, y: float, rounds: tuple[Exchange, ...]) -> None:
        """Down into global memory, and up again on every CTA of every cluster."""
        canvas, top, bottom, middle = self.canvas, y + 16, y + BAND - 14, y + BAND / 2
        atomic = any(exchange.algorithm == "atomic" for exchange in rounds)
        for rank in range(self.ranks):
            x = self.x0 + self.pitch * (rank + 0.5)
            canvas.line(x, top, x, middle - 13, GRID, 1.6, marker_end="url(#arrow-grid)")
            canvas.line(x, middle + 11, x, bottom, GRID, 1.6, marker_end="url(#arrow-grid)")
        canvas.rect(self.x0 + 6, middle - 11, self.x1 - self.x0 + 22, 22, WHITE, GRID, 11, stroke_width=1.4)
        what = "atomic adds, each reads its slice" if atomic else "written once, read back"
        label = f"global memory (L2): {what}, grid barrier over {self.placed.mesh.ctas} CTAs"
        canvas.text((self.x0 + self.x1 + 28) / 2, middle + 4, label, 11.5, GRID, 600, "middle", width=self.x1 - self.x0)
        self._right(y, "L2", GRID, rounds)

    def _right(self, y: float, medium: str, color: str, rounds: tuple[Exchange, ...]) -> None:
        if not rounds:
            return
        x = self.x1 + 46
        scope = "grid" if medium == "L2" else "cluster"  # what ranks read in parts, they push to each other besides
        total = sum(exchange.total for exchange in rounds if exchange.scope == scope)
        self.canvas.text(x, y + BAND / 2 - 2, size(total), 19, color, 700)
        self.canvas.text(x, y + BAND / 2 + 15, f"through {medium}", 11, MUTED)
        self.canvas.text(x, y + BAND / 2 + 30, "per launch", 11, MUTED)


def match_exchanges(graph: Graph, exchanges: tuple[Exchange, ...]) -> dict[Node, tuple[Exchange, ...]]:
    """The plan's exchanges of each collective node: those of its line (there may be two rounds), else the next one of its op or scope."""
    found: dict[Node, tuple[Exchange, ...]] = {}
    left = [exchange for exchange in exchanges if exchange.algorithm != "multicast"]  # that one is no node's: it brings inputs
    for node in graph.nodes:
        if not node.is_collective:
            continue
        of_op = [exchange for exchange in left if exchange.name.startswith(f"{node.op}:")]
        of_op = of_op or [exchange for exchange in left if node.op.startswith(exchange.scope)]
        mine = [exchange for exchange in of_op if exchange.src == node.src] or of_op[:1]
        found[node] = tuple(mine)
        left = [exchange for exchange in left if exchange not in mine]
    return found


def _facts(rounds: tuple[Exchange, ...], ctas: int) -> list[str]:
    """Three lines about an exchange, or two lines for each of its rounds."""
    if not rounds:
        return ["not in the plan"]
    lines = []
    for number, exchange in enumerate(rounds, 1):
        scope = f"{exchange.scope} scope" if len(rounds) == 1 else f"round {number}, {exchange.op.replace('_', ' ')}"
        over = f", {exchange.monoid}" if exchange.monoid else ""
        grid = f"; {plural(ctas, 'CTA')}" if exchange.scope == "grid" else ""
        verb = "writes" if exchange.scope == "grid" else "sends"
        barrier = f"barrier {exchange.barrier}, " if exchange.barrier else ""
        lines.append(f"{scope}, {exchange.algorithm.replace('_', ' ')}{over}{grid}; {barrier}step {exchange.step}")
        lines.append(f"each rank {verb} {size(exchange.sent_bytes)}, receives {size(exchange.received_bytes)}")
    return lines


def _color(placement: AxisPlacement) -> str:
    match placement:
        case Replicate():
            return MUTED
        case Shard():
            return SHARDED
        case _:
            return "#b8620c"


def _range(part: Slice | str) -> str:
    return part if isinstance(part, str) else f"{part.begin}:{part.end}"
