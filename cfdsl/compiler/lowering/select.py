"""Rows of tables by index, and indices of greatest values."""

from __future__ import annotations

from math import prod

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.lowering.values import Best
from cfdsl.dsl.graph import Node
from cfdsl.dsl.placement import Shard
from cfdsl.errors import NotLowered

INDEX_LIMIT = 2**31  # offsets into a table are 32-bit


def looked_up(b: Builder, node: Node) -> Expr:
    """The row of an embedding as elements of its table, from an offset that an index variable gives."""
    token, table = node.args
    if table.op != "weight" or prod(int(dim) for dim in table.type.shape) > INDEX_LIMIT:
        why = "its table is a view" if table.op != "weight" else f"its table has more than {INDEX_LIMIT} elements"
        raise NotLowered(op="embedding", why=why, src=node.src)
    if (rows := b.local(node)[0]) != 1:
        raise NotLowered(op="embedding", why=f"a cluster has {rows} rows of it; only one is lowered", src=node.src)
    columns = int(table.type.shape[1])
    return Expr("leaf", table.attr("name"), Affine.of(**{_index(b, node): columns}))


def _index(b: Builder, node: Node) -> str:
    """The variable with an index, brought into the table; what was out of range is flagged at the end."""
    token, table = node.args
    key = (token, table, "index")
    if key not in b.values:
        source, at = token, Affine()
        while source.op == "slice_grid":
            source, at = source.args[0], at + b.grid_offset(int(source.args[0].type.shape[0]), 1)
        if source.op != "input":
            raise NotLowered(op="embedding", why="its index is not an input", src=node.src)
        name, rows = b.variable("row"), int(table.type.shape[0])
        given = source.attr("name")
        b.step("index", f"{name} = {given}[{at}], within 0 and {rows - 1}", src=node.src, out=name, token=given, at=at, rows=rows)
        b.values[key] = name
        b.flags.append(("TOKEN_CLAMPED", name, None))
    return str(b.values[key])


def lower_argmax(b: Builder, node: Node) -> None:
    """The best pair of this CTA's slice, in every consumer thread: a pass over the slice, then over lanes, then over warps."""
    from cfdsl.compiler.lowering.pointwise import Where, expression

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
