"""Indices of greatest values: each CTA's best pair of a value and its index."""

from __future__ import annotations

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.lowering.pointwise import Where, expression
from cfdsl.compiler.lowering.values import Best
from cfdsl.dsl.graph import Node
from cfdsl.dsl.placement import Shard
from cfdsl.errors import NotLowered


def lower_argmax(b: Builder, node: Node) -> None:
    """The best pair of this CTA's slice, in every consumer thread: a pass over the slice, then over lanes, then over warps."""
    x = node.args[0]
    placement, shape = b.placed.of(x), [int(dim) for dim in x.type.shape]
    last = Shard(len(shape) - 1)
    tree = expression(b, x, Where())
    share = b.shares[f"rows{shape[-1]}"] if b.spread(x) else None
    n, first = b.local(x)[-1], Affine()
    if share is not None:
        n, first = share.most, Affine.of(**{share.symbol: share.granule})
    elif placement.grid == last:
        raise NotLowered(op="argmax", why=f"a value placed {placement} is not lowered", advice="gather it on the grid first", src=node.src)
    elif placement.cluster == last:
        first = Affine.of(rank=n)
    key, index, scratch = b.variable("best"), b.variable("best_at"), b.buffer("best_pairs", (b.config.warps, 2), "i32")
    b.step(
        "argmax", f"{key}, {index} = greatest of {tree}, and its index", reads=tree.buffers(), writes=(scratch,), src=node.src,
        out=(key, index), tree=tree, n=n, share=share, first=first, scratch=scratch,
    )  # fmt: skip
    b.synced()
    b.seen.add(scratch)  # which it reads behind its barrier
    b.values[node] = Best(key, index)
