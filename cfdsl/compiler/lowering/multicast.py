"""Launch arguments that every rank of a cluster reads whole come once per cluster, by TMA multicast, through shared memory.

A pass over finished steps: it finds vectors that a fragment reads whole, requests them ahead of everything else (weights even before the
kernel ahead in the stream has finished), and lets fragments and early slices read what has landed. The arithmetic stays as it was, so
the result has the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import COPY_BYTES
from cfdsl.compiler.plan import Exchange, Step
from cfdsl.dsl.graph import ITEMSIZE, Node

FRAGMENTS = ("fragment", "store_fragment")
READERS = (*FRAGMENTS, "slice")  # what reads the landed vector; later steps would keep its shared memory from others


@dataclass(frozen=True)
class Landing:
    """A launch argument of `size` elements and the buffer that it lands in."""

    leaf: Node
    size: int
    buffer: str

    @property
    def bytes(self) -> int:
        return self.size * ITEMSIZE[self.leaf.type.dtype]

    @property
    def early(self) -> bool:
        """Weights are nobody's output: they may be read before the kernel ahead in the stream has finished."""
        return self.leaf.op == "weight"


def pieces(nbytes: int, ranks: int) -> tuple[int, ...]:
    """Bytes that each rank asks for: multiples of COPY_BYTES, as `primitives.multicast.gather` deals them."""
    chunks = nbytes // COPY_BYTES
    return tuple((chunks * (rank + 1) // ranks - chunks * rank // ranks) * COPY_BYTES for rank in range(ranks))


def gather_shared(b: Builder) -> None:
    """Rewrite the builder's steps. Without a vector that every rank reads whole they stay as they are."""
    landings = {
        leaf.attr("name"): Landing(leaf, size, b.buffer(f"{leaf.attr('name')}_whole", (size,), leaf.type.dtype, peer_written=True))
        for leaf, size in read_whole(b)
    }
    if not landings:
        return
    total = sum(one.bytes for one in landings.values())
    mbar = b.barrier("shared", total)
    steps = [step if step.op not in READERS else _from_landed(step, landings) for step in b.steps]
    first = next(i for i, step in enumerate(steps) if set(step.ins) & {one.buffer for one in landings.values()})
    requests = [_request(one, mbar) for one in sorted(landings.values(), key=lambda one: not one.early)]
    names = tuple(str(request.params["dst"]) for request in requests)
    src = steps[first].src
    wait = Step("wait", f"{total} bytes have landed: {', '.join(names)}", params={"mbar": mbar, "fills": names}, src=src)
    meet = Step("rendezvous", "every rank of the cluster has initialised its barriers", params={"early": True})
    _renumber(b, [meet, *requests], first, wait, steps)
    at = b.steps.index(wait)
    _live(b, landings, at)
    payload = max(map(sum, zip(*(pieces(one.bytes, b.ranks) for one in landings.values()))))
    name = f"multicast:{','.join(names)}"
    sent = payload * (b.ranks - 1)
    b.exchanges.insert(0, Exchange(name, "cluster", "gather", None, "multicast", names, payload, sent, total, mbar, at, src))


def read_whole(b: Builder) -> Iterator[tuple[Node, int]]:
    """Inputs and vector weights that some fragment reads from the first element to the last, in the order of the spec."""
    whole = {
        (leaf.name, step.params["tiles"].cols)
        for step in b.steps
        if step.op in FRAGMENTS
        for leaf in step.params["tree"].walk()
        if leaf.kind == "leaf" and leaf.offset == Affine() and not leaf.block
    }
    for node in b.placed.graph.nodes:
        if node.op == "input" or (node.op == "weight" and len(node.type.shape) == 1):
            size = prod(dim if isinstance(dim, int) else 0 for dim in node.type.shape)
            if (node.attr("name"), size) in whole and size * ITEMSIZE[node.type.dtype] % COPY_BYTES == 0:
                yield node, size


def _request(one: Landing, mbar: str) -> Step:
    name = one.leaf.attr("name")
    params = {"arg": name, "dst": one.buffer, "n": one.size, "itemsize": ITEMSIZE[one.leaf.type.dtype], "mbar": mbar}
    if one.early:
        params["early"] = True
    return Step("multicast", f"{name} -> {one.buffer} of every rank, each asks for its part", params=params, src=one.leaf.src)


def _from_landed(step: Step, landings: dict[str, Landing]) -> Step:
    """The same step, reading shared memory where it read a launch argument that lands there."""
    tree = _landed(step.params["tree"], landings)
    if tree == step.params["tree"]:
        return step
    text = step.text.replace(str(step.params["tree"]), str(tree))
    return replace(step, text=text, ins=tuple(dict.fromkeys((*step.ins, *tree.buffers()))), params={**step.params, "tree": tree})


def _landed(expr: Expr, landings: dict[str, Landing]) -> Expr:
    if expr.kind == "leaf" and expr.name in landings:
        one = landings[expr.name]
        return replace(expr, kind="smem", name=one.buffer, dtype=one.leaf.type.dtype)
    return replace(expr, args=tuple(_landed(arg, landings) for arg in expr.args))


def _renumber(b: Builder, front: list[Step], first: int, wait: Step, steps: list[Step]) -> None:
    """Put `front` before everything and `wait` before step `first`; a later rendezvous falls away, and recorded indices move along."""
    moved: list[int] = []
    b.steps = list(front)
    for i, step in enumerate(steps):
        if i == first:
            b.steps.append(wait)
        moved.append(len(b.steps))
        if step.op != "rendezvous":
            b.steps.append(step)
    for spec in b.buffers.values():
        if spec.last >= 0:
            spec.first = moved[spec.first] if spec.first else 0
            spec.last = moved[spec.last]
    b.exchanges = [replace(exchange, step=moved[exchange.step]) for exchange in b.exchanges]
    b.rendezvous_done = True


def _live(b: Builder, landings: dict[str, Landing], wait: int) -> None:
    """Landing places are taken from the start, and free again after their last reader."""
    for one in landings.values():
        readers = (i for i, step in enumerate(b.steps) if one.buffer in step.ins)
        spec = b.buffers[one.buffer]
        spec.first, spec.last = 0, max(wait, *readers)
