"""The plan of llama-2-7b's attention block on 32 clusters of 4, derived by hand, and what changes with the config."""

from __future__ import annotations

from collections.abc import Iterator

import plans
import pytest
from plans import block, buffer, norm, steps_of

from cfdsl.compiler.allocate import separated
from cfdsl.compiler.check.memory import corners
from cfdsl.compiler.geometry import RowTiles
from cfdsl.compiler.plan import KernelPlan
from cfdsl.models import resolve

PLAN = block(stages=6)
BARRIERS = {b.name: b for b in PLAN.barriers}


def gemv(plan: KernelPlan, weight: str) -> RowTiles:
    """The tiles of a weight."""
    params = [plan.steps[i].params for i in steps_of(plan, "gemv")]
    (tiles,) = (p["tiles"] for p in params if plan.streams[p["stream"]].name == weight)
    assert isinstance(tiles, RowTiles)
    return tiles


# ---- streams


def test_weight_tiles() -> None:
    # head_dim 128 over 4 ranks: 32 rows of 4096 x 2 = 8192 B; 2 rows to a stage of 16384 B: 16 tiles; one head, one run of rows
    tiles = gemv(PLAN, "wq")
    assert (tiles.rows, tiles.tiles, tiles.cols, tiles.ld, tiles.warps_per_row, tiles.block_rows) == (2, 16, 4096, 4096, 8, 0)
    first, rank3, _, last = corners(PLAN)
    assert tiles.row0.at(first) == 0
    assert tiles.row0.at(rank3) == 3 * 32
    assert tiles.row0.at(last) == 31 * 128 + 3 * 32 == 4096 - 32
    assert tiles.col0.at(last) == 0


def test_split_k_tiles() -> None:
    # 4096 / 4 = 1024 columns of all 128 rows of a head: 2048 B a row, 8 rows a stage, 16 tiles of 8 copies
    plan = block(qkv="split_k")
    tiles = gemv(plan, "wk")
    assert (tiles.rows, tiles.tiles, tiles.cols, tiles.ld) == (8, 16, 1024, 4096)
    last = corners(plan)[-1]
    assert (tiles.row0.at(last), tiles.col0.at(last)) == (31 * 128, 3 * 1024)
    assert not plan.streams[0].contiguous
    assert plan.streams[0].copy_bytes == 2048


def test_atomic_output_tiles() -> None:
    # a head's 128 columns of 4096 / 4 = 1024 rows: 256 B a row, 64 rows a stage
    plan = block(out="atomic", ctas_per_sm=1)
    tiles = gemv(plan, "wo")
    assert (tiles.rows, tiles.tiles, tiles.cols, tiles.ld) == (64, 16, 128, 4096)
    assert gemv(block(out="atomic", ctas_per_sm=2), "wo").rows == 32  # with 96 registers a warp takes 4 rows, and not 8
    last = corners(plan)[-1]
    assert (tiles.row0.at(last), tiles.col0.at(last)) == (3 * 1024, 31 * 128)


def test_several_heads_of_a_cluster_are_blocks_of_rows() -> None:
    # llama-3.1-8b on 8 clusters of 4: 4 query heads of 128 rows to a cluster, of which a rank has 32 each
    plan = block("llama-3.1-8b", clusters=8)
    tiles = gemv(plan, "wq")
    assert (tiles.block_rows, tiles.block_stride, tiles.tiles * tiles.rows) == (32, 128, 4 * 32)
    assert tiles.row0.at(corners(plan)[-1]) == 7 * 4 * 128 + 3 * 32
    assert gemv(plan, "wk").row0.at(corners(plan)[-1]) == 7 * 128 + 3 * 32


def test_clusters_that_share_a_kv_head() -> None:
    plan = block("llama-3.1-8b", clusters=32)  # one query head each; 4 clusters to a KV head
    last = corners(plan)[-1]
    assert last["slice8"] == 31 // 4 == 7
    assert gemv(plan, "wq").row0.at(last) == 31 * 128 + 3 * 32
    assert gemv(plan, "wk").row0.at(last) == 7 * 128 + 3 * 32
    assert [plan.steps[i].params["repeat"] for i in steps_of(plan, "append")] == [4]


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3.1-8b", "smollm2-135m"])
@pytest.mark.parametrize("ranks", [1, 4, 8])
@pytest.mark.parametrize("flow", plans.FLOWS, ids=str)
def test_all_ctas_together_read_every_weight_once(model: str, ranks: int, flow: dict[str, str]) -> None:
    m = resolve(model)
    plan = block(model, m.kv_heads, ranks, stages=2, **flow)
    for i in steps_of(plan, "gemv"):
        tiles, arg = plan.steps[i].params["tiles"], plan.streams[plan.steps[i].params["stream"]].name
        size = next(a.shape for a in plan.args if a.name == arg)
        seen = [piece for cta in range(plan.mesh.ctas) for piece in rectangle(plan, tiles, cta)]
        assert len(seen) == len(set(seen))
        assert {row for row, _ in seen} == set(range(int(size[0])))
        assert len(seen) * tiles.cols == int(size[0]) * int(size[1])


def rectangle(plan: KernelPlan, tiles: RowTiles, cta: int) -> Iterator[tuple[int, int]]:
    """(row, first column) of each row that a CTA reads."""
    cluster, rank = divmod(cta, plan.mesh.ranks)
    at = {"cluster": cluster, "rank": rank} | {s.symbol: s.bounds(cta)[0] // s.granule for s in plan.shares}
    rows = tiles.tiles * tiles.rows
    if tiles.share:
        first, last = next(s for s in plan.shares if s.name == tiles.share).bounds(cta)
        rows = last - first
    for i in range(rows):
        offset = i // tiles.block_rows * tiles.block_stride + i % tiles.block_rows if tiles.block_rows else i
        yield tiles.row0.at(at) + offset, tiles.col0.at(at)


def test_kv_tiles() -> None:
    # 16384 / (2 x 128 x 2) = 32 tokens; 8 warps take 4 each at a time: one step
    stream = next(s for s in PLAN.streams if s.tiles is None)
    assert (stream.rows, stream.cols, stream.tensors, stream.tile_bytes) == (32, 128, ("cache_k", "cache_v"), 16384)
    assert stream.contiguous
    assert stream.copy_bytes == 32 * 128 * 2
    by_token = next(s for s in block(layout="bthd").streams if s.tiles is None)
    assert (by_token.contiguous, by_token.ld, by_token.copy_bytes) == (False, 32 * 128, 256)


def test_output_rows_are_shared_over_all_ctas() -> None:
    (share,) = PLAN.shares
    assert (share.name, share.rows, share.granule, share.ctas, share.most) == ("rows4096", 4096, 2, 128, 32)


# ---- barriers: bytes


def test_bytes_of_the_exchanges() -> None:
    assert BARRIERS["mb_gather"].tx_bytes == 4 * 3 * 32 * 4  # ranks x (q, k, v) x rows x f32
    assert BARRIERS["mb_softmax"].tx_bytes == 4 * (32 * 4 + 8)  # ranks x (a quarter of the head's output, and its (max, sum))
    gather, softmax, grid = PLAN.exchanges
    assert (gather.payload, gather.sent_bytes, gather.received_bytes) == (3 * 32 * 4, 3 * 3 * 32 * 4, 1536)
    assert (softmax.payload, softmax.sent_bytes, softmax.received_bytes) == ((128 + 2) * 4, 3 * (32 * 4 + 8), 544)
    assert (grid.payload, grid.received_bytes, grid.barrier) == (32 * 4, 4096 * 4, None)


def test_values_that_go_through_memory_together_are_one_exchange() -> None:
    plan = block("llama-2-7b", 64, 2, splits=2, qkv="grid")
    gather, _, reduce = plan.exchanges
    assert gather.values == ("ws_gather", "ws_gather2", "ws_gather3")
    assert gather.sent_bytes == 3 * 32 * 4  # 4096 rows of q, k and v each, over 128 CTAs
    assert gather.received_bytes == 3 * 128 * 4  # a head of each, which its cluster works on
    assert gather.total == 3 * (4096 + 128 * 128) * 4
    assert reduce.sent_bytes == (64 + 2) * 4  # half a head's outputs, and its maximum and sum
    assert reduce.received_bytes == 2 * 32 * (128 + 2) * 4


def test_bytes_of_the_papers_exchanges() -> None:
    plan = block(qkv="split_k", out="atomic")
    armed = {b.name: b.tx_bytes for b in plan.barriers if b.kind == "exchange"}
    assert armed == {"mb_reduce": 4 * 3 * 128 * 4, "mb_softmax": 4 * (32 * 4 + 8), "mb_gather": 4 * 32 * 4}
    assert plan.exchanges[-1].sent_bytes == 1024 * 4  # a rank's quarter of y, added to global memory


def test_a_large_reduce_takes_two_rounds() -> None:
    # llama-3.1-8b on 8 clusters of 8: (4 + 1 + 1) x 128 x 4 B x 8 ranks = 24576 B: one round. Of 16, 49152 B would land: two rounds,
    # each for q, k and v together, of a slice of 1/16 of each from each rank, and of all slices
    one = {b.name: b.tx_bytes for b in block("llama-3.1-8b", 8, 8, "split_k").barriers if b.kind == "exchange"}
    assert one["mb_reduce"] == 24576
    two = {b.name: b.tx_bytes for b in block("llama-3.1-8b", 8, 16, "split_k").barriers if b.kind == "exchange"}
    assert (two["mb_scatter"], two["mb_gather"]) == (16 * 768 // 16 * 4, 768 * 4)
    assert "mb_reduce" not in two


def test_the_scalar_exchange_of_rms_norm() -> None:
    assert {b.name: b.tx_bytes for b in norm(cluster_size=16).barriers} == {"mb_reduce": 16 * 4}
    assert norm().ring is None


def test_arrivals() -> None:
    assert (BARRIERS["full"].arrivals, BARRIERS["full"].tx_bytes, BARRIERS["full"].count) == (1, 16384, 6)
    assert (BARRIERS["empty"].arrivals, BARRIERS["empty"].count) == (8, 6)
    assert next(b for b in block(warps=4).barriers if b.name == "empty").arrivals == 4


# ---- shared memory


def test_layout() -> None:
    # 6 stages, then 6 full and 6 empty barriers, then two exchanges' barriers, rounded up to 16
    assert PLAN.ring is not None
    assert PLAN.ring.bytes == 6 * 16384 == 98304
    assert [BARRIERS[n].offset for n in ("full", "empty", "mb_gather", "mb_softmax")] == [98304, 98352, 98400, 98408]
    assert buffer(PLAN, "part_o").offset == 98416
    assert buffer(PLAN, "part_o").bytes == 8 * 128 * 4  # one (o) per warp
    assert buffer(PLAN, "wq_terms").bytes == 8 * 3 * 32 * 4  # q, k and v: one loop eats the tiles of all three
    assert buffer(PLAN, "box_ml").bytes == 4 * 1 * 2 * 4
    assert PLAN.smem_bytes == max(b.offset + b.bytes for b in PLAN.buffers) == 104784


def test_buffers_share_bytes_only_with_a_barrier_between_their_lives() -> None:
    shared = 0
    for n, one in enumerate(PLAN.buffers):
        for other in PLAN.buffers[n + 1 :]:
            if one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes:
                assert separated(one, other, PLAN.steps)
                shared += 1
    assert shared >= 6  # the arena is less than the sum of its buffers
    assert PLAN.smem_bytes - 98416 < sum(b.bytes for b in PLAN.buffers)


def test_lives_that_touch_are_not_separated() -> None:
    terms, out = buffer(PLAN, "wq_terms"), buffer(PLAN, "wq_slice")
    assert not separated(terms, out, PLAN.steps)  # step 11 reads one and writes the other
    assert separated(terms, buffer(PLAN, "box_o"), PLAN.steps) is False  # peers write it from the start


def test_landing_places_are_reserved_from_the_start() -> None:
    assert {b.name for b in PLAN.buffers if b.peer_written} == {"q", "k", "v", "box_o", "box_ml"}
    assert {b.first for b in PLAN.buffers if b.peer_written} == {0}


# ---- launch


def test_arguments() -> None:
    roles = {a.name: (a.role, a.mutated, a.align) for a in PLAN.args}
    assert list(roles)[-3:] == ["y", "ws_sync", "ws_gather"]
    assert roles["pos"] == ("input", False, 4)
    assert roles["cache_k"] == ("cache", True, 16)
    assert roles["y"] == ("output", True, 16)
    assert roles["ws_sync"] == ("workspace", True, 16)
    shapes = {a.name: a.shape for a in block(layout="bthd").args}
    assert shapes["cache_v"] == (1, "tokens", 32, 128)
    assert shapes["cos"] == ("positions", 64)


def test_residency_follows_from_the_grid_barrier() -> None:
    assert PLAN.needs_residency
    assert not norm().needs_residency
    assert (PLAN.threads, norm().threads, PLAN.grid) == (288, 256, 128)  # 8 consumer warps, and a producer where there is a stream


def test_one_barrier_where_one_is_needed() -> None:
    """Seven in the whole block, besides the grid barrier and the one inside the norm."""
    assert [PLAN.steps[i - 1].op for i in steps_of(PLAN, "sync")] == [
        "gemv", "rendezvous", "rope", "decode", "combine_warps", "lse_combine", "gemv",
    ]  # fmt: skip
