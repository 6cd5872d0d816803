"""Stores to global memory: the slice of a value that a CTA has, each element by one CTA."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from cfdsl.compiler.affine import Affine
from cfdsl.compiler.builder import Builder
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.geometry import RowTiles
from cfdsl.compiler.lowering.pointwise import ELEMENTWISE, Where, expression, row_tiles
from cfdsl.compiler.lowering.values import GlobalBest, GlobalVector, Scalar
from cfdsl.dsl.graph import VIEWS, Node
from cfdsl.dsl.placement import Partial, Replicate, Shard
from cfdsl.errors import NotLowered


def share_of(b: Builder, rows: int) -> str:
    """The mesh-wide partition of `rows` rows that already exists, or one in granules of 8."""
    return b.share(rows, b.config.stage_bytes // 16, 2).name


def store(b: Builder, node: Node, dst: str) -> None:
    """A step that writes this rank's slice of `node` to the global vector `dst`."""
    value = b.values.get(node)
    if isinstance(value, GlobalBest):
        b.step("store_index", f"{dst} = index of the best in {value.workspace}, by CTA 0", src=node.src, dst=dst, pairs=value.workspace)
        return
    if node.type.dtype == "i32":
        raise NotLowered(op="outputs", why="of indices, only the result of grid_reduce(argmax(...)) can be stored", src=node.src)
    if b.spread(node):
        share = b.shares[f"rows{node.type.shape[-1]}"]
        tree = expression(b, node, Where())
        b.step("store_rows", f"{dst}[row] = {tree}", reads=tree.buffers(), src=node.src, tree=tree, dst=dst, share=share, clears=())
    else:
        _store_vector(b, node, dst)


def clear_sums(b: Builder) -> None:
    """Sums are zero again for the next launch: as the last step that reads them goes over its rows, or in a step of its own."""
    for workspace, share in b.clears:
        last = next((i for i in reversed(range(len(b.steps))) if workspace in b.steps[i].reads), None)
        step = b.steps[last] if last is not None else None
        if last is not None and step is not None and step.op == "store_rows" and step.params["share"].name == share:
            b.steps[last] = replace(step, params={**step.params, "clears": (*step.params["clears"], workspace)})
        else:
            b.step("clear", f"{workspace}[row] = 0, for the next launch", share=b.shares[share], clears=(workspace,))


def _store_vector(b: Builder, node: Node, dst: str) -> None:
    placement = b.placed.of(node)
    local = b.local(node)
    shape = [int(dim) for dim in node.type.shape]
    block, whole = local[-1], shape[-1]
    n = prod(local)
    offset = Affine()
    if isinstance(placement.grid, Shard):
        offset = b.grid_offset(shape[placement.grid.dim], prod(shape[placement.grid.dim + 1 :]))
    if isinstance(placement.cluster, Shard):
        if placement.cluster != Shard(len(shape) - 1):
            raise NotLowered(op="outputs", why=f"a value placed {placement} cannot be stored", src=node.src)
        offset = offset + Affine.of(rank=block)
    if isinstance(placement.cluster, Partial) or isinstance(placement.grid, Partial):
        raise NotLowered(op="outputs", why=f"a value placed {placement} cannot be stored", src=node.src)
    alone = isinstance(placement.cluster, Replicate)  # every rank has it: the first one stores
    fragment = _as_fragment(b, node, n, block)
    if fragment is not None:
        tree, tiles = fragment
        b.step("store_fragment", f"{dst} = {tree}", src=node.src, tree=tree, tiles=tiles, dst=dst, offset=offset, alone=alone)
        return
    tree = expression(b, node, Where())
    b.step(
        "store_vector", f"{dst}[i + {offset}] = {tree}", reads=tree.buffers(), src=node.src, tree=tree, dst=dst, n=n,
        block=block if n > block else 0, stride=whole, offset=offset, alone=alone,
        everywhere=not isinstance(placement.grid, Shard),
    )  # fmt: skip


def _as_fragment(b: Builder, node: Node, n: int, block: int) -> tuple[Expr, RowTiles] | None:
    """A row that can be computed and stored 16 bytes at a time, without passing through shared memory."""
    if n != block or n % 8 or node in b.values or node.op not in ELEMENTWISE or not _in_registers(b, node):
        return None
    tiles = row_tiles(n, b.config.warps)
    return expression(b, node, Where(), tiles), tiles


def _in_registers(b: Builder, node: Node) -> bool:
    """Whether a value can be computed without shared memory."""
    if node in b.values:
        return isinstance(b.values[node], (Scalar, GlobalVector))
    if node.op == "embedding":
        return True
    return node.op in ("input", "weight") or (node.op in (*ELEMENTWISE, *VIEWS) and all(_in_registers(b, arg) for arg in node.args))
