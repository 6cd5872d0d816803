"""Collectives on a cluster: pushes to the peers' shared memory, a wait for all of their bytes, sums in rank order."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.compiler.builder import Builder
from cfdsl.compiler.lowering.values import Scalar, Softmax, Vector, made_with
from cfdsl.compiler.lowering.vectors import materialise
from cfdsl.compiler.plan import Exchange
from cfdsl.dsl.exchange import PUSH, in_two_rounds
from cfdsl.dsl.graph import Node
from cfdsl.dsl.placement import Partial, Shard
from cfdsl.errors import NotLowered


@dataclass(frozen=True)
class Slices:
    """A rank's slice of a vector: `blocks` blocks of `block` adjacent elements, `ranks` slices to a whole block."""

    blocks: int
    block: int

    @property
    def size(self) -> int:
        return self.blocks * self.block


def slices(b: Builder, node: Node, index: int = 0) -> Slices:
    """The slice that a rank has of the result `index` of `node`, along its last dimension; of one that is placed R, its share of that."""
    shape = b.local(node, index)
    cut = isinstance(b.placed.placements[node][index].cluster, Shard)
    return Slices(shape[1] if len(shape) == 3 else 1, shape[-1] if cut else shape[-1] // b.ranks)


def lower_cluster_gather(b: Builder, node: Node) -> None:
    """One round: each rank pushes its slices to all ranks; one barrier counts the bytes of all values."""
    moved = []
    for i, arg in enumerate(node.args):
        cut = slices(b, arg)
        moved.append((materialise(b, arg), cut, b.buffer(_name(arg), (cut.size * b.ranks,), peer_written=True), i))
    nbytes = sum(b.ranks * cut.size * 4 for _, cut, _, _ in moved)
    mbar = b.barrier("gather", nbytes)
    b.rendezvous()
    for source, cut, dst, _ in moved:
        _push(b, "gather_push", node, source.buffer, dst, mbar, n=cut.size, block=cut.block)
    payload = sum(cut.size * 4 for _, cut, _, _ in moved)
    wait_for(b, node, mbar, "gather", None, tuple(dst for _, _, dst, _ in moved), payload, payload * (b.ranks - 1), nbytes)
    for _, cut, dst, i in moved:
        b.values[(node, i)] = Vector(dst, cut.size * b.ranks)


def lower_cluster_reduce(b: Builder, node: Node) -> None:
    """Scalars and sums: everybody's term to everybody, or scatter and gather if that is too much. Softmax: scatter, combine, gather."""
    kinds = {_monoid(b, arg) for arg in node.args}
    if "argmax" in kinds:
        raise NotLowered(op="cluster_reduce", why="pairs of argmax travel over the grid", advice="use grid_reduce alone", src=node.src)
    if kinds == {"lse"}:
        for i, arg in enumerate(node.args):
            combined = _scatter_lse(b, node, arg, slices(b, node, i))
            if isinstance(combined, Softmax):
                why = "clusters that split tokens scatter their terms"
                raise NotLowered(op="cluster_reduce", why=why, advice="use cluster_reduce_scatter", src=node.src)
            (b.values[(node, i)],) = _gather_again(b, node, [combined], [slices(b, node, i)])
    elif all(isinstance(b.values.get(arg), Scalar) for arg in node.args):
        for i, arg in enumerate(node.args):
            b.values[(node, i)] = _reduce_scalar(b, node, b.values[arg])
    else:
        _reduce_vectors(b, node)


def _reduce_scalar(b: Builder, node: Node, value: Scalar) -> Scalar:
    box = b.buffer("box", (b.ranks,), peer_written=True)
    mbar = b.barrier("reduce", 4 * b.ranks)
    b.rendezvous()
    b.step("scalar_push", f"{value.variable} -> {box}[rank] on every rank", touches=(box,), src=node.src,
           value=value.variable, box=box, mbar=mbar)  # fmt: skip
    wait_for(b, node, mbar, "reduce", "sum", (box,), 4, 4 * (b.ranks - 1), 4 * b.ranks)
    out = b.variable("total")
    b.step("scalar_sum", f"{out} = sum of {box}, in rank order", reads=(box,), src=node.src, out=out, box=box)
    return Scalar(out)


def _reduce_vectors(b: Builder, node: Node) -> None:
    """All values in one exchange: everybody's terms to everybody, or in two rounds, each of which waits once for all of them."""
    terms = [materialise(b, arg) for arg in node.args]
    if in_two_rounds([term.size for term in terms], b.ranks):
        cuts = [Slices(1, term.size // b.ranks) for term in terms]
        sums = _scatter_sums(b, node, terms, cuts)
        for i, whole in enumerate(_gather_again(b, node, sums, cuts)):
            b.values[(node, i)] = whole
        return
    total = sum(term.size for term in terms)
    boxes = [b.buffer("box", (b.ranks, term.size), peer_written=True) for term in terms]
    mbar = b.barrier("reduce", b.ranks * total * 4)
    b.rendezvous()
    for term, box in zip(terms, boxes, strict=True):
        _push(b, "reduce_push", node, term.buffer, box, mbar, n=term.size, block=term.size)
    wait_for(b, node, mbar, "reduce", "sum", tuple(boxes), total * 4, total * 4 * (b.ranks - 1), b.ranks * total * 4)
    for i, (arg, term, box) in enumerate(zip(node.args, terms, boxes, strict=True)):
        b.values[(node, i)] = _sum(b, node, box, b.buffer(_name(arg), (term.size,)), term.size)


def lower_cluster_reduce_scatter(b: Builder, node: Node) -> None:
    """One round: each rank pushes every peer its slice, and combines the terms of its own."""
    for i, arg in enumerate(node.args):
        dim = node.attr("dim")
        if dim != len(arg.types[0].shape) - 1:
            raise NotLowered(op="cluster_reduce_scatter", why=f"dimension {dim} is not the last one", src=node.src)
        cut = slices(b, node, i)
        if _monoid(b, arg) == "lse":
            b.values[(node, i)] = _scatter_lse(b, node, arg, cut)
        else:
            (b.values[(node, i)],) = _scatter_sums(b, node, [materialise(b, arg)], [cut])


def _scatter_sums(b: Builder, node: Node, terms: list[Vector], cuts: list[Slices]) -> list[Vector]:
    """A rank's slice of each sum, in one exchange."""
    boxes = [b.buffer("box", (b.ranks, cut.size), peer_written=True) for cut in cuts]
    size = sum(cut.size for cut in cuts)
    mbar = b.barrier("scatter", b.ranks * size * 4)
    b.rendezvous()
    for term, cut, box in zip(terms, cuts, boxes, strict=True):
        _push(b, "scatter_push", node, term.buffer, box, mbar, n=cut.size, block=cut.block)
    payload = sum(term.size for term in terms) * 4
    wait_for(b, node, mbar, "reduce_scatter", "sum", tuple(boxes), payload, size * 4 * (b.ranks - 1), b.ranks * size * 4)
    return [_sum(b, node, box, b.buffer("slice_sum", (cut.size,)), cut.size) for cut, box in zip(cuts, boxes, strict=True)]


def _sum(b: Builder, node: Node, box: str, out: str, n: int) -> Vector:
    b.step("reduce_sum", f"{out} = sum of {box}, in rank order", reads=(box,), writes=(out,), src=node.src, box=box, out=out, n=n)
    return Vector(out, n)


def _scatter_lse(b: Builder, node: Node, arg: Node, cut: Slices) -> Vector | Softmax:
    """Each rank's slice of the outputs: normalised, or still a term where other clusters have more of the tokens."""
    value = b.values[arg]
    assert isinstance(value, Softmax)
    box = b.buffer("box_o", (b.ranks, cut.size), peer_written=True)
    box_ml = b.buffer("box_ml", (b.ranks, value.heads, 2), peer_written=True)
    nbytes = b.ranks * (cut.size * 4 + value.heads * 8)
    mbar = b.barrier("softmax", nbytes)
    b.rendezvous()
    _push(b, "scatter_push", node, value.out, box, mbar, n=cut.size, block=cut.block)
    b.step(
        "lse_push", f"{value.stats} -> {box_ml}[rank] on every rank", reads=(value.stats,), touches=(box_ml,), src=node.src,
        stats=value.stats, box=box_ml, mbar=mbar, heads=value.heads,
    )  # fmt: skip
    payload = value.heads * (value.dim + 2) * 4
    sent = (b.ranks - 1) * (cut.size * 4 + value.heads * 8)
    wait_for(b, node, mbar, "reduce_scatter", "lse", (box, box_ml), payload, sent, nbytes)
    out = b.buffer("attended", (cut.size,))
    if b.splits > 1 and isinstance(b.placed.placements[node][0].split, Partial):
        stats = b.buffer("attended_ml", (value.heads, 2))
        b.step(
            "lse_merge", f"{out}, {stats} = softmax terms of {box} merged into one term, in rank order", reads=(box, box_ml),
            writes=(out, stats), src=node.src, box=box, stats=box_ml, out=out, out_stats=stats, heads=value.heads, block=cut.block,
        )  # fmt: skip
        return Softmax(out, stats, value.heads, cut.block)
    b.step(
        "lse_combine", f"{out} = softmax terms of {box} combined, in rank order", reads=(box, box_ml), writes=(out,), src=node.src,
        box=box, stats=box_ml, out=out, heads=value.heads, block=cut.block, ranks=b.ranks,
    )  # fmt: skip
    return Vector(out, cut.size)


def _gather_again(b: Builder, node: Node, mine: list[Vector], cuts: list[Slices]) -> list[Vector]:
    """The second round of an all-reduce: every rank's finished slices to every rank."""
    whole = [b.buffer("whole", (cut.size * b.ranks,), peer_written=True) for cut in cuts]
    size = sum(cut.size for cut in cuts)
    mbar = b.barrier("gather", b.ranks * size * 4)
    for source, cut, dst in zip(mine, cuts, whole, strict=True):
        _push(b, "gather_push", node, source.buffer, dst, mbar, n=cut.size, block=cut.block)
    wait_for(b, node, mbar, "gather", None, tuple(whole), size * 4, size * 4 * (b.ranks - 1), b.ranks * size * 4)
    return [Vector(dst, cut.size * b.ranks) for cut, dst in zip(cuts, whole, strict=True)]


def _push(b: Builder, op: str, node: Node, source: str, dst: str, mbar: str, *, n: int, block: int) -> None:
    if block % PUSH:
        why = f"a rank's slice of {block} elements is not a multiple of {PUSH}"
        raise NotLowered(op=node.word, why=why, advice="use a smaller cluster", src=node.src)
    b.step(
        op, f"{source} -> {dst}, pushed to every rank", reads=(source,), touches=(dst,), src=node.src,
        source=source, dst=dst, mbar=mbar, n=n, block=block,
    )  # fmt: skip


def wait_for(
    b: Builder, node: Node, mbar: str, op: str, monoid: str | None, buffers: tuple[str, ...], payload: int, sent: int, received: int
) -> None:
    """Wait for all bytes of an exchange by pushes, and record it: `payload` of a rank, `sent` to others, `received` on its barrier."""
    step = b.step("wait", f"{received} bytes have landed: {', '.join(buffers)}", touches=buffers, src=node.src, mbar=mbar, fills=buffers)
    name = f"{node.op}:{','.join(buffers)}"
    b.exchanges.append(Exchange(name, "cluster", op, monoid, "push", buffers, payload, sent, received, mbar, step, node.src))


def _monoid(b: Builder, arg: Node) -> str:
    cluster = b.placed.of(arg).cluster
    return str(cluster.op) if isinstance(cluster, Partial) else "none"


def _name(node: Node) -> str:
    """A short name for the buffer that will hold the whole of `node`: that of the weight it was made with."""
    return made_with(node) if node.op == "linear" else node.op
