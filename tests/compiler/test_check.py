"""Every proof about a plan finds the bug that it is there for, and says the sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import plans
import pytest
from plans import block, norm, plan_graph, step_of, steps_of, with_barrier, with_buffer, with_exchange, with_params, with_step, without

import cfdsl as cf
from cfdsl.compiler.affine import Affine
from cfdsl.compiler.check import CHECKS, check
from cfdsl.compiler.geometry import Share
from cfdsl.compiler.parts import B200, H100_SXM, H200
from cfdsl.compiler.plan import KernelPlan
from cfdsl.errors import Errors, NotResident, PlanError, SharedMemoryExceeded

SHIPPED = dict(plans.shipped())
SYNCS = ("sync", "grid_barrier")


def found(plan: KernelPlan) -> dict[str, list[str]]:
    """By check: what it says of the plan."""
    texts = {rule.__name__: [f"{error.what}: {error.sum}" for error in rule(plan)] for rule in CHECKS}  # type: ignore[attr-defined]
    return {name: said for name, said in texts.items() if said}


@pytest.mark.parametrize("plan", SHIPPED.values(), ids=SHIPPED)
def test_shipped_plans_are_right(plan: KernelPlan) -> None:
    check(plan, H100_SXM)


# ---- no step of the protocol can be spared

REMOVED = [(name, i) for name, plan in SHIPPED.items() for i, step in enumerate(plan.steps) if step.op in (*SYNCS, "wait", "rendezvous")]


@pytest.mark.parametrize(("name", "at"), REMOVED, ids=[f"{name}, {SHIPPED[name].steps[at].op} {at}" for name, at in REMOVED])
def test_every_barrier_and_wait_is_needed(name: str, at: int) -> None:
    with pytest.raises((PlanError, Errors)):
        check(without(SHIPPED[name], at), H100_SXM)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_push_is_needed(name: str) -> None:
    plan = SHIPPED[name]
    for i, step in enumerate(plan.steps):
        if step.op.endswith("_push") or step.op == "multicast":
            assert "exchange_bytes" in found(without(plan, i)), step.text


# ---- one planted bug for each check: (what is done to a good plan, which check sees it, what it says)

@cf.fusion
def joined(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    x, z = cf.input("x", (batch, 64)), cf.input("z", (batch, 64))
    return cf.outputs(y=cf.linear(cf.concat([x, z], dim=1), cf.weight("w", (64, 128)), shard="out"))


@cf.fusion
def summed(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    x, w = cf.input("x", (batch, 256)), cf.weight("w", (320, 256))
    with cf.clusters(over=4) as axis:
        total = cf.grid_reduce_scatter(cf.linear(x[:, axis], w[:, axis], shard="out"), dim=1)
    return cf.outputs(y=total, z=cf.silu(total))


SUMMED = plan_graph(summed.trace("llama-2-7b"), 4, 2)
JOINED = plan_graph(joined.trace("llama-2-7b"), 8, 1)
PARTS = JOINED.steps[step_of(JOINED, "concat")].params["parts"]
SPREAD = block("llama-3.1-8b", 24, 4, splits=3, qkv="grid", window=3)
PUSHED = next(buffer for buffer in SPREAD.buffers if buffer.name == SPREAD.steps[step_of(SPREAD, "terms_push")].params["dst"])
SPLIT = block(clusters=64, cluster_size=2, splits=2, qkv="grid")
GOOD = block(stages=6)  # llama-2-7b, 32 x 4; its steps and buffers are pinned in test_schedule.py
PAPER = block(qkv="split_k", out="atomic")

BUGS: dict[str, tuple[KernelPlan, str, str]] = {
    "tile too large": (
        replace(GOOD, streams=(replace(GOOD.streams[0], rows=4), *GOOD.streams[1:])),
        "ring_geometry", "a tile of wq does not fit a stage: 1 x 4 rows x 4096 x 2 B = 32768 > 16384",
    ),
    "misaligned row": (
        replace(GOOD, streams=(replace(GOOD.streams[0], cols=4090, ld=4090), *GOOD.streams[1:])),
        "ring_geometry", "rows of wq are not multiples of 16 bytes: 8180 % 16 = 4",
    ),
    "one stage": (
        replace(GOOD, ring=replace(GOOD.ring, stages=1)),
        "ring_geometry", "a ring has at least 2 stages of a multiple of 128 bytes: 1 x 16384",
    ),
    "more early tiles than tiles in flight": (
        replace(SPREAD, ring=replace(SPREAD.ring, window=3, early=3)), "ring_geometry",
        "tiles for behind a grid barrier are some of those in flight, and those some of the stages: 3 < 3 < 4 is not so",
    ),
    "the count of grid barriers on top of a barrier": (
        replace(SPREAD, ring=replace(SPREAD.ring, window=3, early=2)), "layout", "full is misplaced: at 65536, ring ends at 65544",
    ),
    "arrivals": (with_barrier(GOOD, "empty", arrivals=9), "ring_barriers", "empty expects the wrong arrivals: 9, not 8"),
    "too few barriers": (with_barrier(GOOD, "full", count=5), "ring_barriers", "there is not one full barrier to a stage: 5 of 6"),
    "full's bytes": (
        with_barrier(GOOD, "full", tx_bytes=8192), "ring_barriers", "full does not wait for the largest tile: 8192, not 16384",
    ),
    "phase overflow": (
        with_barrier(GOOD, "mb_gather", tx_bytes=2**20),
        "ring_barriers", "mb_gather waits for more than a phase can count: 1048576 > 1048575",
    ),
    "stream order": (
        with_params(with_params(GOOD, 8, stream=1), 9, stream=0),
        "stream_order", "tiles are eaten in another order than they are loaded: [1, 0, 2, 3, 4] of 5 streams",
    ),
    "stream never eaten": (
        without(GOOD, 10), "stream_order", "tiles are eaten in another order than they are loaded: [0, 1, 3, 4] of 5 streams",
    ),
    "wrong tx bytes": (
        with_barrier(GOOD, "mb_gather", tx_bytes=1535),
        "exchange_bytes", "mb_gather is armed with 1535 bytes, but 1536 arrive: 512 + 512 + 512 = 1536",
    ),
    "lost push": (without(GOOD, 17), "exchange_bytes", "mb_gather is armed with 1536 bytes, but 1024 arrive: 512 + 512 = 1024"),
    "missing wait": (
        without(GOOD, 20), "exchange_bytes",
        "mb_gather has one phase: 0 waits: a rank that does not wait may leave while peers write to it",
    ),
    "early wait": (
        replace(GOOD, steps=(*GOOD.steps[:19], GOOD.steps[20], GOOD.steps[19], *GOOD.steps[21:])),
        "exchange_bytes", "mb_gather is waited for before the last push to it: step 19 < step 20",
    ),
    "barrier of two exchanges": (
        with_exchange(GOOD, 1, barrier="mb_gather", received_bytes=1536), "exchange_records",
        "mb_gather is used by 2 exchanges and has one phase: cluster_gather:q,k,v, cluster_reduce_scatter:box_o,box_ml",
    ),
    "barrier of no exchange": (
        replace(GOOD, exchanges=GOOD.exchanges[1:]), "exchange_records", "mb_gather belongs to no exchange: armed with 1536 bytes",
    ),
    "record": (
        with_exchange(GOOD, 0, received_bytes=1), "exchange_records",
        "cluster_gather:q,k,v gets other bytes than its barrier counts: 1 bytes, mb_gather is armed with 1536",
    ),
    "a record of half of what is sent": (
        with_exchange(GOOD, 0, sent_bytes=576), "exchange_records",
        "cluster_gather:q,k,v sends other bytes than it gets: 576 to 3 peers, of whom each gets 1536 from 4 ranks",
    ),
    "no rendezvous": (
        without(GOOD, 15), "rendezvous", "a push before the cluster's rendezvous: step 16: wq_slice -> q, pushed to every rank",
    ),
    "two rendezvous": (
        with_step(GOOD, 16, lambda step: replace(step, op="rendezvous")), "rendezvous",
        "a second rendezvous waits for arrivals that never come: steps 15, 16",
    ),
    "unreserved landing place": (
        with_buffer(GOOD, "q", first=16), "landing_places", "q is written by peers at any time: but is reserved from step 16",
    ),
    "unmarked landing place": (
        with_buffer(GOOD, "q", peer_written=False, first=0), "landing_places", "q is written by peers at any time: but is not marked so",
    ),
    "small landing place": (
        with_buffer(GOOD, "box_o", shape=(4, 31)), "landing_places", "box_o is too small for what is pushed to it: 496 < 512",
    ),
    "wait for another": (
        with_params(GOOD, 20, fills=("q", "k")), "landing_places", "v lands on mb_gather: whose wait names q, k",
    ),
    "pushes of parts of 16 bytes": (
        with_params(GOOD, 29, block=30), "landing_places", "blocks pushed to box_o are not multiples of 16 bytes: 30 % 4 = 2",
    ),
    "read after write": (without(GOOD, 23), "hazards", "q is read without a barrier: written in step 21, read in 24"),
    "write after read": (
        with_step(GOOD, 25, lambda step: replace(step, out="v")), "hazards",
        "v is overwritten without a barrier: used in step 24, written in 25",
    ),
    "write after write": (
        with_params(GOOD, 9, first=16), "hazards", "wq_terms is overwritten without a barrier: used in step 8, written in 9",
    ),
    "scratch in use": (
        with_step(GOOD, 4, lambda step: replace(step, out="scratch")), "hazards",
        "scratch is overwritten without a barrier: used in step 4, written in 5",
    ),
    "read before it lands": (
        with_params(GOOD, 31, fills=("box_o",)), "hazards",
        "box_ml is read before it has landed: step 32: attended = softmax terms of box_o combined, in rank order",
    ),
    "short life": (with_buffer(GOOD, "my_rows", last=37), "lifetimes", "my_rows is used outside of its life: step 39, live 4 to 37"),
    "buffers overlap": (
        with_buffer(GOOD, "wk_slice", offset=101488 + 112), "lifetimes",
        "wq_slice and wk_slice share bytes while both are live: [101488, 101616) and [101600, 101728)",
    ),
    "barriers overlap": (with_barrier(GOOD, "mb_softmax", offset=98400), "layout", "mb_gather and mb_softmax overlap: 98400 < 98408"),
    "barrier in the ring": (
        with_barrier(GOOD, "mb_gather", offset=98296), "layout", "mb_gather is misplaced: at 98296, ring ends at 98304",
    ),
    "misaligned buffer": (
        with_buffer(GOOD, "box_ml", offset=104744), "layout", "box_ml is misplaced: [104744, 104776) of [98416, 104784)",
    ),
    "buffer past the arena": (
        replace(GOOD, smem_bytes=104768), "layout", "box_ml is misplaced: [104752, 104784) of [98416, 104768)",
    ),
    "row past the end": (
        with_params(GOOD, 8, tiles=replace(GOOD.steps[8].params["tiles"], row0=Affine.of(1, cluster=128, rank=32))),
        "addresses", "wq is read past its end: rows 1 to 4097 of 4096, columns 0 to 4096 of 4096",
    ),
    "column past the end": (
        with_params(PAPER, 9, tiles=replace(PAPER.steps[9].params["tiles"], col0=Affine.of(8, rank=1024))),
        "addresses", "wq is read past its end: rows 0 to 4096 of 4096, columns 8 to 4104 of 4096",
    ),
    "odd column": (
        with_params(PAPER, 9, tiles=replace(PAPER.steps[9].params["tiles"], col0=Affine.of(rank=1020))),
        "addresses", "tiles of wq start at an odd place: column 3060 x 2 B % 16 = 8",
    ),
    "a stream of another type": (
        replace(GOOD, streams=(replace(GOOD.streams[0], itemsize=4, rows=1), *GOOD.streams[1:])), "streamed_types",
        "wq is streamed as another type than it has: 4 B an element, bf16 has 2",
    ),
    "half of each row": (
        with_params(GOOD, 8, tiles=replace(GOOD.steps[8].params["tiles"], cols=2048)), "products",
        "rows of wq do not meet the whole vector once: 1 x 2048 columns, of 4096",
    ),
    "every rank has the same columns": (
        with_params(PAPER, 9, tiles=replace(PAPER.steps[9].params["tiles"], col0=Affine())), "products",
        "rows of wq do not meet the whole vector once: 1 x 1024 columns, of 4096",
    ),
    "a vector for other rows": (
        with_params(GOOD, 8, tiles=replace(GOOD.steps[8].params["tiles"], warps_per_row=4)), "products",
        "rows of wq meet a vector that is spread in another way: (columns, pieces, warps to a row) (4096, 1, 4), "
        "of the vector (4096, 1, 8)",
    ),
    "an output that is not stored": (
        without(JOINED, step_of(JOINED, "store_rows")), "stored_whole", "y is not stored whole: element 0 of 64 is missing",
    ),
    "a term that every rank adds": (
        with_params(PAPER, 44, offset=Affine()), "terms_once",
        "ws_sum does not get every term once: 4 x 1024 elements of 4096, by cluster 0",
    ),
    "a gathered vector that is not stored": (
        with_params(GOOD, 34, offset=Affine.of(cluster=128, rank=16)), "stored_whole",
        "ws_gather is not stored whole: element 80 of 4096 is missing",
    ),
    "fragment that ends within a chunk": (
        with_params(GOOD, 5, tiles=replace(GOOD.steps[5].params["tiles"], cols=4092)), "fragments",
        "a fragment in mean_square ends within a chunk: 4092 % 8",
    ),
    "fragment that starts within a chunk on odd ranks": (
        with_params(PAPER, 41, tree=replace(PAPER.steps[41].params["tree"], offset=Affine.of(rank=4))), "fragments",
        "a fragment of whole starts within a chunk: rank * 4, not in 8s",
    ),
    "fragment of an argument that may lie anywhere": (
        replace(GOOD, args=tuple(replace(arg, align=2) if arg.name == "x" else arg for arg in GOOD.args)), "fragments",
        "a fragment is read from or written to x, which is aligned to less: 2 bytes, not 16",
    ),
    "store past the end": (
        with_params(GOOD, 34, offset=Affine.of(cluster=129, rank=32)), "vectors",
        "ws_gather is used past its end in store_vector: elements 0 to 4127 of 4096",
    ),
    "softmax terms past the end": (
        with_params(SPLIT, 37, dim=192), "vectors", "ws_terms is used past its end in store_terms: elements 0 to 12224 of 8192",
    ),
    "softmax terms read past the end": (
        with_params(SPLIT, 39, tree=replace(SPLIT.steps[39].params["tree"], terms=(3, 32, 128))), "vectors",
        "ws_terms is used past its end in fragment: elements 0 to 12288 of 8192",
    ),
    "pushed terms read past the end": (
        with_params(SPREAD, step_of(SPREAD, "terms_push"), dim=192), "vectors",
        "ws_terms is used past its end in terms_push: elements 0 to 16384 of 12288",
    ),
    "terms pushed where others may still read": (
        with_buffer(SPREAD, PUSHED.name, first=PUSHED.first + 1), "landing_places",
        f"{PUSHED.name} is written by peers at any time: but is reserved from step {PUSHED.first + 1}",
    ),
    "terms pushed where something lives": (
        with_buffer(SPREAD, "my_rows", offset=PUSHED.offset), "lifetimes",
        "attended2 and my_rows share bytes while both are live: [65616, 82000) and [65616, 65792)",
    ),
    "terms read without a grid barrier": (
        without(SPREAD, steps_of(SPREAD, "grid_barrier")[-1]), "workspaces",
        "ws_terms is read without a grid barrier: written in step 37, read in 38",
    ),
    "a piece written past the end": (
        with_params(JOINED, step_of(JOINED, "concat"), parts=(PARTS[0], (PARTS[1][0], 80, 64))), "shared_vectors",
        "joined is written past its end: 144 of 128",
    ),
    "a sum past the end": (
        with_params(GOOD, step_of(GOOD, "finish"), rows=96), "shared_vectors", "wq_slice is written past its end: 96 of 32",
    ),
    "rows of a product that are not there": (
        with_params(GOOD, step_of(GOOD, "finish"), rows=128), "shared_vectors", "wq_terms is read past its end: 128 of 96 in finish",
    ),
    "a vector read past its end": (
        with_params(GOOD, step_of(GOOD, "store_vector"), n=96), "shared_vectors", "attended is read past its end: 96 of 32 in store_vector",
    ),
    "a piece past the end": (
        with_params(JOINED, step_of(JOINED, "concat"), parts=(PARTS[0], (PARTS[1][0], 64, 80))), "vectors",
        "z is used past its end in concat: elements 0 to 80 of 64",
    ),
    "atomics past the end": (
        with_params(PAPER, 44, offset=Affine.of(rank=1025)),
        "vectors", "ws_sum is used past its end in atomic_add: elements 0 to 4099 of 4096",
    ),
    "head past the end": (
        with_params(GOOD, 24, cache=replace(GOOD.steps[24].params["cache"], base=Affine.of(1, cluster=1))), "cache_heads",
        "cache is used past its last head: heads to 33 of 32",
    ),
    "share does not cover": (
        replace(GOOD, shares=(Share("rows4096", 4096, 3, 128),)), "shares_cover",
        "rows4096 is not a partition: it ends at row 4095 of 4096, over 128 of 128 CTAs",
    ),
    "share over other CTAs": (
        replace(GOOD, shares=(Share("rows4096", 4096, 2, 64),)), "shares_cover",
        "rows4096 is not a partition: it ends at row 4096 of 4096, over 64 of 128 CTAs",
    ),
    "no grid barrier": (without(GOOD, 35), "workspaces", "ws_gather is read without a grid barrier: written in step 34, read in 35"),
    "sums kept for the next launch": (
        with_params(PAPER, 46, clears=()), "workspaces", "ws_sum is not zero when the next launch adds to it: no step clears it",
    ),
    "a sum that is cleared too early": (
        with_params(SUMMED, steps_of(SUMMED, "store_rows")[0], clears=("ws_sum",)), "workspaces",
        "ws_sum is read after it was cleared: zeroed in step 5, read in 6",
    ),
    "residency forgotten": (
        replace(GOOD, needs_residency=False), "workspaces", "a grid barrier needs all clusters at once: but the plan does not ask for it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_seen(bug: str) -> None:
    plan, rule, text = BUGS[bug]
    said = found(plan)
    assert rule in said, said
    assert text in said[rule]


def test_every_check_has_a_planted_bug() -> None:
    own = {"whole_vectors", "early_requests", "buffers_as_they_are"}  # test_multicast.py
    assert {rule.__name__ for rule in CHECKS} - own == {rule for _, rule, _ in BUGS.values()}  # type: ignore[attr-defined]


def test_all_mistakes_come_in_one_error_with_the_sum_and_the_users_line() -> None:
    plan = with_buffer(with_barrier(GOOD, "mb_gather", tx_bytes=1535), "my_rows", last=37)
    with pytest.raises(Errors) as caught:
        check(plan, H100_SXM)
    text = str(caught.value)
    assert "the plan is wrong: mb_gather is armed with 1535 bytes, but 1536 arrive: 512 + 512 + 512 = 1536." in text
    assert "the plan is wrong: my_rows is used outside of its life: step 39, live 4 to 37." in text
    assert "attention_block.py" in text
    assert "return cf.outputs(y=attention(m, batch, h, qkv=qkv, out=out, layout=layout) + h)" in text


# ---- the part


def test_shared_memory_over_the_limit() -> None:
    plan = block(stages=7)  # 7 x 16384 + 16 bytes of barriers more than with 6 stages: 104784 + 16400
    assert plan.smem_bytes == 104784 + 16384 + 16
    with pytest.raises(SharedMemoryExceeded) as caught:
        check(plan, H100_SXM)
    assert caught.value.message == (
        "a CTA needs 121,184 bytes of shared memory, the limit is 115,712: ring 114,688 + barriers and buffers 6,496 = 121,184."
    )


def test_clusters_that_are_not_resident() -> None:
    plan = block(cluster_size=4, ctas_per_sm=1)  # 32 clusters of 4; an H100 holds 30
    with pytest.raises(NotResident) as caught:
        check(plan, H100_SXM)
    assert caught.value.message == "the launch has 32 clusters of 4, but h100-sxm holds 30 at once (CTAs per SM: 1)."
    assert "grid barrier waits for all of them" in caught.value.remedy
    check(block(cluster_size=4, ctas_per_sm=2), H200)  # 62 of them with two on an SM


def test_shared_memory_may_be_full() -> None:
    plan, budget = norm(), H100_SXM.smem_budget(norm().config.ctas_per_sm)
    check(replace(plan, smem_bytes=budget), H100_SXM)
    with pytest.raises(SharedMemoryExceeded):
        check(replace(plan, smem_bytes=budget + 1), H100_SXM)


def test_residency_does_not_matter_without_a_grid_barrier() -> None:
    check(norm(batch=264, cluster_size=16), H100_SXM)


def test_unknown_residency_is_not_refused_here() -> None:
    check(block(), B200)  # the cost model and the runtime ask for it


def test_the_last_of_uneven_shares_is_looked_at() -> None:
    """133 granules of 8 rows over 132 CTAs: the last one alone has two."""

    @cf.fusion
    def rows(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        return cf.outputs(y=cf.linear(cf.input("x", (batch, 64)), cf.weight("w", (133 * 8, 64)), shard="out"))

    plan = plan_graph(rows.trace("llama-2-7b"), 132, 1)
    at = step_of(plan, "gemv")
    tiles = plan.steps[at].params["tiles"]
    assert found(plan) == {}
    late = with_params(plan, at, tiles=replace(tiles, row0=tiles.row0 + Affine.of(1)))
    assert found(late) == {"addresses": ["w is read past its end: rows 1 to 1065 of 1064, columns 0 to 64 of 64"]}


def test_the_last_block_of_a_ranks_rows_is_looked_at() -> None:
    """32 rows of each of 4 heads of 128: three heads on, and then 32 rows."""
    plan = block("llama-3.1-8b", 8, 4)
    at = step_of(plan, "gemv")
    tiles = plan.steps[at].params["tiles"]
    assert (tiles.block_rows, tiles.block_stride, tiles.run) == (32, 128, 4 * 32)
    late = with_params(plan, at, tiles=replace(tiles, row0=tiles.row0 + Affine.of(1)))
    assert "wq is read past its end: rows 1 to 4097 of 4096, columns 0 to 4096 of 4096" in found(late)["addresses"]


def test_the_mutations_change_only_what_they_say() -> None:
    same: list[Callable[[KernelPlan], KernelPlan]] = [
        lambda p: without(p), lambda p: with_buffer(p, "q"), lambda p: with_barrier(p, "full"), lambda p: with_params(p, 7),
    ]  # fmt: skip
    for change in same:
        assert found(change(GOOD)) == {}
