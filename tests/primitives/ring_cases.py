"""Cases with a ring: stream with gemv, stream with attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ring_kernels
import tensors
import torch
from case import Case, Outs
from tensors import assert_close, random
from torch import Tensor

from primitives import attention, stream


@dataclass(frozen=True)
class Matrix:
    """A harness matrix-vector product: the tile shape, where in the matrix it starts, runs of rows of two streams, the ring's depth.

    A run is `shape.rows` rows: a tile, or `shape.pieces` of them.
    """

    shape: stream.Rows
    first: int = 5
    second: int = 3
    stages: int = 3
    col0: int = 0
    dtype: str = "bf16"
    arrivals: int | None = None  # of the empty barriers, if the kernel is to be broken
    early: int = 0  # tiles of the second stream in flight while the consumers are at the first


def product(name: str, m: Matrix) -> Case:
    """The case of one matrix-vector product."""
    s, tiles = m.shape, m.first + m.second
    starts = (2, 9)
    rows = max(starts) + max(s.rows, s.block_stride) * tiles
    ring = ring_kernels.ring_of(m.stages, -(-s.rows * s.tile_cols * 2 // 128) * 128, m.early)
    made = ring if m.arrivals is None else type(ring)(**{**vars(ring), "warps": m.arrivals})

    def make(variant: Any) -> list[Tensor]:
        return [random("f32", s.cols), random(m.dtype, rows, s.ld), tensors.ints(*starts, m.col0)]

    def row_of(start: int, tile: int) -> int:
        """The first row of a run of whole rows: tile / pieces of them are before it."""
        if not s.block_rows:
            return start + tile * s.rows
        per_block = s.block_rows // s.rows
        return start + tile // per_block * s.block_stride + tile % per_block * s.rows

    def check(outs: Outs, variant: Any, ins: list[Tensor], label: str) -> None:
        where = [(starts[0], t) for t in range(m.first)] + [(starts[1], t) for t in range(m.second)]
        index = torch.cat([torch.arange(row_of(*at), row_of(*at) + s.rows) for at in where]).to(tensors.DEVICE)
        x, weight = ins[0].double(), ins[1].double()[index, m.col0 : m.col0 + s.cols]
        assert_close(outs["out"], weight @ x, 2e-6 * (weight.abs() @ x.abs()), f"{label}: rows of {m.first} + {m.second} tiles")

    return Case(
        f"gemv {name}", ring_kernels.product, (("f32", (s.cols,)), (m.dtype, (rows, s.ld)), ("i32", (3,))),
        {"out": ("f32", (s.rows * tiles,))}, check, (ring, made, s, m.first, m.second), make, block=ring_kernels.BLOCK,
    )  # fmt: skip


DEEP = Matrix(stream.Rows(cols=576, ld=576, rows=2, warps_per_row=8), stages=8)  # a stage for every tile
SHALLOW = Matrix(stream.Rows(cols=576, ld=576, rows=2, warps_per_row=8), stages=2)
PRODUCT_CASES = (
    product("ragged, deep ring", DEEP),
    product("ragged, shallow ring", SHALLOW),
    product("ragged, early tiles", Matrix(stream.Rows(cols=576, ld=576, rows=2, warps_per_row=8), stages=4, early=1)),
    product("1 warp a row, ragged", Matrix(stream.Rows(cols=576, ld=576, rows=16, warps_per_row=1))),
    product("contiguous", Matrix(stream.Rows(cols=4096, ld=4096, rows=1, warps_per_row=8), dtype="f16")),
    product("blocks", Matrix(stream.Rows(cols=512, ld=512, rows=2, warps_per_row=4, block_rows=4, block_stride=11))),
    product("column slice, many rows", Matrix(stream.Rows(cols=64, ld=576, rows=40, warps_per_row=1), col0=128)),
    product("column slice, ragged", Matrix(stream.Rows(cols=288, ld=576, rows=12, warps_per_row=2), col0=288, dtype="f16")),
    product("2 pieces, ragged", Matrix(stream.Rows(cols=11008, ld=11008, rows=1, warps_per_row=8, pieces=2), stages=5)),
    product("3 pieces, column slice", Matrix(stream.Rows(cols=6144, ld=8192, rows=1, warps_per_row=8, pieces=3), 11, 1, 2, 1024, "f16")),
    product("7 pieces, fewer chunks than lanes", Matrix(stream.Rows(cols=896, ld=896, rows=1, warps_per_row=8, pieces=7), stages=4)),
    product("column slice, blocks", Matrix(stream.Rows(cols=256, ld=512, rows=8, warps_per_row=1, block_rows=16, block_stride=20), col0=8)),
)


def attend(
    heads: int, dim: int, layout: str, ranks: int, dtype: str = "bf16", stages: int = 2, pieces: int = 1, batches: int = 2,
    ahead: bool = True,
) -> Case:
    """The case of one KV head's attention: `heads` query heads, `ranks` CTAs, token tiles of `pieces` for each warp."""
    kv_heads, capacity, mine = 2, 301, 1
    token = dim if layout == "bhtd" else kv_heads * dim
    base = mine * capacity * dim if layout == "bhtd" else mine * dim
    per_tile = pieces * attention.Attend(heads, dim, 0).token_groups * attention.Attend(heads, dim, 0).tokens_per_piece
    shape = attention.Attend(heads=heads, dim=dim, tokens=per_tile, ahead=ahead, batches=batches)
    ring = ring_kernels.ring_of(stages, per_tile * dim * 4)
    scale = math.log2(math.e) / math.sqrt(dim)

    def heads_of(cache: Tensor) -> Tensor:
        return cache.view(kv_heads, capacity, dim) if layout == "bhtd" else cache.view(capacity, kv_heads, dim).transpose(0, 1)

    def make(length: int) -> list[Tensor]:
        caches = [tensors.poisoned(dtype, kv_heads * capacity * dim) for _ in "kv"]
        for cache in caches:
            heads_of(cache)[mine, :length] = random(dtype, length, dim)
        return [random("f32", heads * dim, scale=2.0), random("f32", dim), random("f32", dim), *caches, tensors.ints(length, base)]

    def check(outs: Outs, length: int, ins: list[Tensor], label: str) -> None:
        label = f"{label}: {length} tokens"
        q = ins[0].double().view(heads, dim)
        k_new, v_new = (t.to(tensors.torch_dtype(dtype)).double()[None] for t in ins[1:3])
        keys, values = (heads_of(cache)[mine, :length].double() for cache in ins[3:5])
        for rank in range(ranks):
            mine_too = (torch.arange(length, device=tensors.DEVICE) // per_tile) % ranks == rank
            last = rank == ranks - 1
            k, v = torch.cat([keys[mine_too], k_new[:last]]), torch.cat([values[mine_too], v_new[:last]])
            if len(k):
                want = ((q @ k.T) / math.sqrt(dim)).softmax(-1) @ v
                assert_close(outs["final"][rank].view(heads, dim), want, 2e-5, f"{label}: rank {rank}'s share, (head, dimension)")
        o, top, total = outs["out"].double().view(ranks, heads, dim), *outs["stats"].double().unbind(-1)
        weight = torch.exp2(top - top.max(0).values)
        combined = (weight[..., None] * o).sum(0) / (weight * total).sum(0)[:, None]
        k, v = torch.cat([keys, k_new]), torch.cat([values, v_new])
        assert_close(combined, ((q @ k.T) / math.sqrt(dim)).softmax(-1) @ v, 2e-5, f"{label}: all ranks combined, (head, dimension)")

    size = heads * dim
    cache = (dtype, (kv_heads * capacity * dim,))
    return Case(
        f"attention {heads} heads of {dim}, {layout}, {dtype}, {ranks} ranks, {stages} stages, {batches} batches", ring_kernels.attend,
        (("f32", (size,)), ("f32", (dim,)), ("f32", (dim,)), cache, cache, ("i32", (2,))),
        {"out": ("f32", (ranks, size)), "stats": ("f32", (ranks, heads, 2)), "final": ("f32", (ranks, size))}, check,
        (ring, stream.Tokens(tokens=per_tile, dim=dim, stride=token), shape, scale, ranks), make,
        variants=(0, 1, 33, per_tile, per_tile + 1, 200, capacity), grid=ranks, block=ring_kernels.BLOCK,
    )  # fmt: skip


ATTEND_DEEP = attend(1, 64, "bhtd", 1, stages=4)  # with a stage for every tile of up to 256 tokens
ATTEND_SHALLOW = attend(1, 128, "bthd", 1)
ATTEND_CASES = (
    ATTEND_DEEP,
    ATTEND_SHALLOW,
    attend(1, 128, "bhtd", 2, "f16", pieces=2, stages=3),
    attend(1, 128, "bhtd", 2, batches=4),
    attend(1, 64, "bthd", 1, "f16", pieces=3, batches=4),
    attend(3, 64, "bhtd", 4),
    attend(3, 128, "bthd", 1),
    attend(4, 64, "bthd", 1, "f16"),
    attend(4, 128, "bhtd", 2, ahead=False),
    attend(4, 128, "bthd", 2, "f16", stages=3, batches=4),
    attend(4, 128, "bhtd", 1, batches=4, ahead=False),
    attend(5, 64, "bthd", 1),
    attend(5, 128, "bhtd", 2, pieces=2, batches=4),
    attend(9, 64, "bhtd", 2, pieces=3),
    attend(16, 64, "bthd", 1),
    attend(16, 128, "bhtd", 4),
)
