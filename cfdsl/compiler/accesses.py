"""What steps read and write in global memory, element by element: the addresses that checks bound, and the bytes that exchanges move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import Share
from cfdsl.compiler.plan import KernelPlan, Step
from cfdsl.dsl.exchange import heads_of_part

READ, WRITE, ADD, CLEAR = "read", "write", "add", "clear"
Run = tuple[int, int]  # elements [first, last) of a vector
Who = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Access:
    """`n` elements of `name` from `offset`: blocks of `block` elements `stride` apart (0: one run), or a CTA's rows of `share`.

    `by`: coordinates of the CTAs that do it; all do, if there are none.
    """

    name: str
    kind: str
    offset: Affine
    n: int = 0
    block: int = 0
    stride: int = 0
    share: Share | None = None
    by: Who = ()

    def done_by(self, at: Mapping[str, int]) -> bool:
        """Whether the CTA at these coordinates does it."""
        return not self.by or all(at[name] == value for name, value in self.by)

    def count(self, cta: int) -> int:
        """Elements that a CTA accesses."""
        return self.n if self.share is None else rows_of(self.share, cta)

    def reach(self, cta: int) -> int:
        """How far from the offset the last of them lies."""
        n = self.count(cta)
        return (n - 1) // self.block * self.stride + (n - 1) % self.block + 1 if self.block and n else n

    def runs(self, plan: KernelPlan) -> Iterator[Run]:
        """Where they lie, over all CTAs that do it."""
        for cta, at in enumerate(plan.everywhere):
            if not self.done_by(at):
                continue
            start, n = self.offset.at(at), self.count(cta)
            if not self.block:
                yield start, start + n
            else:
                yield from ((start + i // self.block * self.stride, start + i // self.block * self.stride + min(self.block, n - i))
                            for i in range(0, n, self.block))  # fmt: skip


def rows_of(share: Share, cta: int) -> int:
    """Rows that a CTA has of a partition."""
    first, last = share.bounds(cta)
    return last - first


def accesses(plan: KernelPlan, step: Step) -> Iterator[Access]:
    """Everything that a step touches elementwise; the load stream, caches and what is multicast are no part of it."""
    p = step.params
    share: Share | None = p.get("share")
    n = p["tiles"].cols if "tiles" in p else p.get("rows", p.get("n", 0))
    by = _by(step)
    if "tree" in p:
        yield from _evaluated(p["tree"], n, share, by)
    for tree, _, size in p.get("parts", ()):
        yield from _evaluated(tree, size, None, ())
    if step.op in ("store_vector", "store_fragment"):
        yield Access(p["dst"], WRITE, p["offset"], n, p.get("block", 0), p.get("stride", 0), by=by)
    elif step.op == "store_rows":
        yield Access(p["dst"], WRITE, _first_row(p["share"]), share=share)
    elif step.op == "atomic_add":
        yield Access(p["workspace"], ADD, p["offset"], n, by=by)
    elif step.op == "fetch":
        yield Access(p["workspace"], READ, p["offset"], n)
    elif step.op == "index":
        yield Access(p["token"], READ, p["at"], 1)
    elif step.op == "publish":
        yield Access(p["workspace"], WRITE, Affine.of(cluster=2 * plan.mesh.ranks, rank=2), 2)
    elif step.op == "store_index":
        yield Access(p["dst"], WRITE, Affine(), 1, by=by)
        yield Access(p["pairs"], READ, Affine(), 2 * plan.mesh.ctas, by=by)
    elif step.op in ("store_terms", "terms_push"):
        yield from _of_terms(plan, step)
    for name in p.get("clears", ()):
        yield Access(name, CLEAR, _first_row(p["share"]), share=share)


def _by(step: Step) -> Who:
    """Who takes a step that not all CTAs take."""
    p = step.params
    if step.op == "store_index":
        return (("cluster", 0), ("rank", 0))
    return (("rank", 0),) * bool(p.get("alone")) + (("cluster", 0),) * bool(p.get("everywhere"))


def _first_row(share: Share) -> Affine:
    return Affine.of(**{share.symbol: share.granule})


def _evaluated(tree: Expr, n: int, share: Share | None, by: Who) -> Iterator[Access]:
    """What an expression over `n` elements reads."""
    for leaf in tree.walk():
        if leaf.kind == "leaf":
            yield Access(leaf.name, READ, leaf.offset, n, leaf.block, leaf.stride, share, by)
        if leaf.kind == "terms":
            splits, heads, dim = leaf.terms
            yield Access(leaf.name, READ, Affine(), splits * heads * dim, by=by)
            yield Access(leaf.args[0].name, READ, Affine(), splits * heads * 2, by=by)


def _of_terms(plan: KernelPlan, step: Step) -> Iterator[Access]:
    """Softmax terms of splits: a rank stores its dimensions of each head, rank 0 the statistics; or each rank reads its part of all."""
    p = step.params
    if step.op == "store_terms":
        heads, block, dim, row = p["heads"], p["block"], p["dim"], p["all_heads"]
        yield Access(p["outs"], WRITE, p["head0"].times(dim) + Affine.of(split=row * dim, rank=block), heads * block, block, dim)
        yield Access(p["stats"], WRITE, p["head0"].times(2) + Affine.of(split=row * 2), heads * 2, by=(("rank", 0),))
        return
    size = p["heads"] * p["dim"]
    yield Access(p["outs"], READ, Affine.of(rank=p["n"]), p["splits"] * p["n"], p["n"], size)
    for rank in range(plan.mesh.ranks):
        first, last = heads_of_part(size, p["dim"], plan.mesh.ranks, rank)
        each = 2 * (last - first)
        yield Access(p["stats"], READ, Affine.of(2 * first), p["splits"] * each, each, 2 * p["heads"], by=(("rank", rank),))
