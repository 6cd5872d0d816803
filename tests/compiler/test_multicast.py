"""Inputs by multicast: bytes derived by hand, the order of things in the source, planted errors, and what the cost model makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import block, buffer, norm, step_of, steps_of, with_barrier, with_buffer, with_params, with_step, without

from cfdsl import PRESETS, Mesh, place
from cfdsl.compiler.check import check
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import choose
from cfdsl.compiler.cost.estimate import estimate, pause_us
from cfdsl.compiler.cost.shared_inputs import shared_inputs
from cfdsl.compiler.cost.smem import fixed_smem
from cfdsl.compiler.cost.traffic import Pause, traffic
from cfdsl.compiler.emit import emit
from cfdsl.compiler.expr import Expr
from cfdsl.compiler.lowering.multicast import pieces
from cfdsl.compiler.parts import H100_SXM, H200, Part
from cfdsl.compiler.plan import KernelPlan, Step
from cfdsl.compiler.plan_text import plan_text
from cfdsl.errors import CfdslError
from fusions.attention_block import attention_block

LLAMA = attention_block.trace("llama-2-7b")


def shared(cluster_size: int = 4, **how: Any) -> KernelPlan:
    return block(cluster_size=cluster_size, multicast=True, **how)


# ---- the plan's arithmetic


@given(st.integers(0, 4096), st.sampled_from([1, 2, 4, 8, 16]))
def test_pieces_are_whole_chunks_and_make_up_the_vector(chunks: int, ranks: int) -> None:
    parts = pieces(16 * chunks, ranks)
    assert len(parts) == ranks
    assert sum(parts) == 16 * chunks
    assert all(part % 16 == 0 for part in parts)
    assert max(parts) - min(parts) in (0, 16)


def test_pieces_of_an_uneven_vector() -> None:
    assert pieces(576 * 2, 16) == (64, 80) * 8  # 72 chunks of 16 bytes: four and a half each
    assert pieces(64 * 2, 16) == (0, 16) * 8  # fewer chunks than ranks


def test_three_vectors_share_one_barrier() -> None:
    plan = shared()
    check(plan, H100_SXM)
    requests = [plan.steps[i].params for i in steps_of(plan, "multicast")]
    assert [(p["arg"], p["dst"], p["n"]) for p in requests] == [
        ("norm", "norm_whole", 4096),
        ("x", "x_whole", 4096),
        ("residual", "residual_whole", 4096),
    ]
    barrier = next(b for b in plan.barriers if b.name == "mb_shared")
    assert (barrier.kind, barrier.arrivals, barrier.tx_bytes) == ("exchange", 1, 3 * 4096 * 2)
    for name in ("norm_whole", "x_whole", "residual_whole"):
        landing = buffer(plan, name)
        assert (landing.dtype, landing.shape, landing.bytes, landing.peer_written, landing.first) == ("bf16", (4096,), 8192, True, 0)


def test_the_exchange_is_recorded() -> None:
    exchange = shared().exchanges[0]
    assert (exchange.scope, exchange.op, exchange.algorithm, exchange.monoid) == ("cluster", "gather", "multicast", None)
    assert exchange.payload == 3 * 8192 // 4
    assert exchange.sent_bytes == 3 * exchange.payload  # to three peers
    assert exchange.received_bytes == 3 * 8192
    assert shared().steps[exchange.step].params["mbar"] == exchange.barrier == "mb_shared"
    uneven = block("smollm2-135m", 3, 16, multicast=True).exchanges[0]
    assert (uneven.payload, uneven.sent_bytes, uneven.received_bytes) == (3 * 80, 15 * 3 * 80, 3 * 1152)


def test_the_rendezvous_comes_first_and_once_and_indices_move_along() -> None:
    plan, plain = shared(), block(cluster_size=4)
    assert [step.op for step in plan.steps[:4]] == ["rendezvous", "multicast", "multicast", "multicast"]
    assert len(steps_of(plan, "rendezvous")) == 1
    assert plan.early_steps == 2  # the rendezvous and norm, a weight; x and residual may be the predecessor's work
    assert [step.op for step in plain.steps[: plain.early_steps]] == ["fetch_fragment"]  # norm too, in its own way
    for one, other in zip(plain.exchanges, plan.exchanges[1:], strict=True):
        assert plan.steps[other.step].op == plain.steps[one.step].op
        assert plan.steps[other.step].text == plain.steps[one.step].text


def test_landing_places_are_free_after_their_last_reader() -> None:
    plan = shared()
    readers = {name: [i for i, step in enumerate(plan.steps) if name in step.ins] for name in ("x_whole", "norm_whole")}
    for name, found in readers.items():
        assert buffer(plan, name).last == max(found)
    assert max(readers["x_whole"]) < step_of(plan, "mean_square") < max(readers["norm_whole"]) < step_of(plan, "gemv")


def test_without_a_vector_that_all_ranks_read_nothing_changes() -> None:
    assert norm(multicast=True).steps == norm().steps  # each rank has its slice of the row
    assert norm(multicast=True).buffers == norm().buffers


def test_split_k_reads_slices_of_what_has_landed_and_its_own_part_of_the_weight() -> None:
    plan = shared(qkv="split_k")
    check(plan, H100_SXM)
    assert {plan.steps[i].params["arg"] for i in steps_of(plan, "multicast")} == {"x", "residual"}
    source = emit(plan)
    assert "frag.load(x_whole, WQ, rank * 1024)" in source
    assert "norm_raw = frag.fetch(norm, WQ, rank * 1024)" in source


@pytest.mark.parametrize("out", ["gather", "atomic"])
@pytest.mark.parametrize("cluster_size", [1, 2, 4, 8, 16])
def test_every_cluster_size_passes_the_checks(cluster_size: int, out: str) -> None:
    check(shared(cluster_size, clusters=4, stages=2, ctas_per_sm=1, out=out), H100_SXM)


def test_plan_text_tells_it() -> None:
    text = plan_text(shared())
    assert "multicast True" in text
    assert "cluster gather by multicast: norm_whole, x_whole, residual_whole; payload 6144 B, sends 18432 B, gets 24576 B" in text
    assert "norm -> norm_whole of every rank, each asks for its part" in text


# ---- the source


def order(source: str, *texts: str) -> None:
    at = [source.index(text) for text in texts]
    assert at == sorted(at), texts


def test_order_in_the_source() -> None:
    consumers = emit(shared()).split("else:\n")[1]
    order(
        consumers, "cute.arch.cluster_wait()", "multicast.gather(norm, norm_whole, 4096, mb_shared, rank, RANKS)",
        "cute.arch.griddepcontrol_wait()", "multicast.gather(x, x_whole, 4096, mb_shared, rank, RANKS)",
        "multicast.gather(residual, residual_whole, 4096, mb_shared, rank, RANKS)", "position = kv.clamp(", "exchange.wait(mb_shared)",
        "frag.load(x_whole, WQ) + frag.load(residual_whole, WQ)", "frag.load(norm_whole, WQ)",
    )  # fmt: skip
    assert consumers.count("cute.arch.cluster_wait()") == 1
    assert "x_whole[granule4096 * 2 + i].to(Float32) + residual_whole[granule4096 * 2 + i].to(Float32)" in emit(shared(cluster_size=2))


def test_arming_and_views() -> None:
    source = emit(shared())
    assert "exchange.arm(mb_shared, 24576)" in source
    assert f"x_whole = cta.view(smem, {buffer(shared(), 'x_whole').offset}, BFloat16, 4096)" in source
    assert "multicast" in source[source.index("from primitives import") : source.index("RANKS, CTAS")]


def test_without_pdl_nothing_waits_for_the_predecessor() -> None:
    assert "griddepcontrol" not in emit(shared(pdl=False))


def test_off_is_as_before() -> None:
    source = emit(block(cluster_size=4))
    assert "multicast" not in source
    order(source.split("else:\n")[1], "cute.arch.griddepcontrol_wait()", "position = kv.clamp(", "cute.arch.cluster_wait()")


# ---- planted errors

Damage = Callable[[KernelPlan], KernelPlan]


def request_of(plan: KernelPlan, arg: str) -> int:
    return next(i for i in steps_of(plan, "multicast") if plan.steps[i].params["arg"] == arg)


def in_tree(plan: KernelPlan, at: int, change: Callable[[Expr], Expr]) -> KernelPlan:
    def walk(expr: Expr) -> Expr:
        expr = replace(expr, args=tuple(walk(arg) for arg in expr.args))
        return change(expr) if expr.kind == "smem" else expr

    return with_params(plan, at, tree=walk(plan.steps[at].params["tree"]))


def swapped(plan: KernelPlan, one: int, other: int) -> KernelPlan:
    steps = list(plan.steps)
    steps[one], steps[other] = steps[other], steps[one]
    return replace(plan, steps=tuple(steps))


def with_arg(plan: KernelPlan, name: str, **fields: Any) -> KernelPlan:
    return replace(plan, args=tuple(replace(arg, **fields) if arg.name == name else arg for arg in plan.args))


DAMAGES: list[tuple[Damage, str]] = [
    (lambda p: with_barrier(p, "mb_shared", tx_bytes=24560), "with 24560 bytes, but 24576 arrive: 8192 + 8192 + 8192 = 24576"),
    (lambda p: without(p, request_of(p, "x")), "mb_shared is armed with 24576 bytes, but 16384 arrive"),
    (lambda p: without(p, step_of(p, "wait")), "mb_shared has one phase: 0 waits"),
    (lambda p: without(p, step_of(p, "rendezvous")), "a push before the cluster's rendezvous: step 0: norm -> norm_whole"),
    (lambda p: swapped(p, 3, step_of(p, "wait")), "mb_shared is waited for before the last push to it"),
    (lambda p: with_params(p, request_of(p, "x"), early=True), "step 2 runs before the kernel ahead has finished: multicast: x -> x_whole"),
    (lambda p: with_params(p, step_of(p, "length"), early=True), "an early step comes late"),
    (lambda p: with_params(p, request_of(p, "x"), n=2048), "x is not multicast as it is: 2048 x 2 B of 4096 x 2 B"),
    (lambda p: with_params(p, request_of(p, "x"), itemsize=4), "x is not multicast as it is: 4096 x 4 B of 4096 x 2 B"),
    (lambda p: with_buffer(p, "x_whole", dtype="f16"), "x does not land in its like: 4096 bf16 into (4096,) f16"),
    (lambda p: with_params(p, request_of(p, "x"), dst="q"), "x does not land in its like: 4096 bf16 into (128,) f32"),
    (lambda p: with_buffer(p, "x_whole", peer_written=False), "x_whole is written by peers at any time"),
    (lambda p: with_arg(p, "x", align=8), "x cannot be cut into pieces of whole chunks: 8192 % 16 = 0, aligned to 8"),
    (lambda p: with_params(p, request_of(p, "x"), arg="y"), "y is multicast: but is no input or weight of the launch"),
    (lambda p: in_tree(p, step_of(p, "fragment"), lambda e: replace(e, dtype="f32")), "x_whole is read as f32: it holds bf16"),
    (lambda p: in_tree(p, step_of(p, "fragment"), lambda e: replace(e, offset=e.offset.of(8))),
     "x_whole is read past its end: 4104 of 4096"),
    (lambda p: swapped(p, step_of(p, "wait"), step_of(p, "fragment")), "x_whole is read before it has landed"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "text"), DAMAGES, ids=[text[:40] for _, text in DAMAGES])
def test_planted_errors_are_found(damage: Damage, text: str) -> None:
    with pytest.raises(CfdslError) as caught:
        check(damage(shared()), H100_SXM)
    assert text in str(caught.value)


@pytest.mark.parametrize("op", ["rendezvous", "multicast", "wait"])
@pytest.mark.parametrize("qkv", ["rows", "split_k"])
def test_deleting_any_step_of_the_protocol_is_an_error(op: str, qkv: str) -> None:
    plan = shared(qkv=qkv)
    for at in steps_of(plan, op):
        with pytest.raises(CfdslError):
            check(without(plan, at), H100_SXM)


def test_an_early_step_reads_nothing_else() -> None:
    """A leading run of early steps cannot be stretched over other steps without notice."""
    plan = shared()
    for at in range(2, len(plan.steps)):
        stretched = plan
        for i in range(at + 1):
            stretched = with_step(stretched, i, lambda step: replace(step, params={**step.params, "early": True}))
        with pytest.raises(CfdslError, match="before the kernel ahead has finished"):
            check(stretched, H100_SXM)


# ---- the cost model


def measured(part: Part, us: float | None) -> Part:
    return replace(part, timing=replace(part.timing, multicast_us=us))


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3.1-8b", "smollm2-135m"])
@pytest.mark.parametrize("qkv", ["rows", "split_k"])
def test_the_cost_model_and_the_plan_mean_the_same_vectors(model: str, qkv: str) -> None:
    graph = attention_block.trace(model, qkv=qkv)
    plan = block(model, 3 if model == "smollm2-135m" else 8, 4, qkv=qkv, multicast=True)
    landed = {plan.steps[i].params["arg"]: buffer(plan, plan.steps[i].params["dst"]).bytes for i in steps_of(plan, "multicast")}
    assert shared_inputs(place(graph, plan.mesh)) == landed


def test_ranks_ask_for_their_part_and_take_in_all() -> None:
    placed = place(LLAMA, Mesh(32, 4))
    plain, multicast = traffic(placed), traffic(placed, multicast=shared_inputs(placed))
    assert plain.l2_bytes - multicast.l2_bytes == 3 * 8192 * 3 // 4 * 128
    assert multicast.cta_bytes == plain.cta_bytes
    assert multicast.unique_bytes == plain.unique_bytes
    pauses = [event for event in multicast.events if event not in plain.events and isinstance(event, Pause)]
    assert pauses == [Pause("multicast", "inputs")]


def test_the_pause_is_one_push_until_the_launch_is_measured() -> None:
    pause = Pause("multicast", "inputs")
    unmeasured = measured(H100_SXM, None)
    assert pause_us(unmeasured, pause, 128, 4) == pytest.approx(240 / (H100_SXM.clock_ghz * 1000))
    assert pause_us(unmeasured, pause, 32, 1) == 0  # a cluster of one has nobody to wait for
    assert pause_us(measured(H100_SXM, -0.25), pause, 128, 4) == 0


@pytest.mark.parametrize("us", [-0.25, 0.0, 0.75])
def test_a_measured_difference_is_added_to_the_start(us: float) -> None:
    config = Config(clusters=16, cluster_size=4, stages=8, ctas_per_sm=1)
    placed = place(LLAMA, Mesh(16, 4))
    plain = estimate(H100_SXM, config, traffic(placed))
    shared = estimate(measured(H100_SXM, us), config.with_(multicast=True), traffic(placed, multicast=shared_inputs(placed)))
    assert shared.time_us - plain.time_us == pytest.approx(us)
    assert shared.start_us - plain.start_us == pytest.approx(us)


def test_shared_memory_of_the_landing_places() -> None:
    placed = place(LLAMA, Mesh(32, 4))
    config = Config(clusters=32, cluster_size=4, stages=6)
    assert fixed_smem(placed, config.with_(multicast=True)) - fixed_smem(placed, config) == 3 * 8192


@pytest.mark.parametrize("model", sorted(PRESETS))
@pytest.mark.parametrize("part", [H100_SXM, H200], ids=lambda part: part.name)
def test_off_by_default_while_it_is_not_measured(model: str, part: Part) -> None:
    rows = choose(attention_block.trace(model), measured(part, None)).rows
    assert not any(row.config.multicast for row in rows)


def test_on_where_the_estimate_says_that_it_pays() -> None:
    fixed = {"clusters": 16, "cluster_size": 4, "ctas_per_sm": 1, "stages": 8}
    plain = choose(LLAMA, measured(H100_SXM, None), fixed).chosen.time_us
    assert plain is not None
    pays = choose(LLAMA, measured(H100_SXM, -0.5), fixed)
    assert pays.config.multicast
    assert pays.chosen.time_us < plain
    assert not choose(LLAMA, measured(H100_SXM, 0.5), fixed).config.multicast
    assert choose(LLAMA, measured(H100_SXM, 0.5), fixed | {"multicast": True}).config.multicast  # as asked
    assert not choose(LLAMA, measured(H100_SXM, -0.5), fixed | {"multicast": False}).config.multicast
    assert not choose(LLAMA, measured(H100_SXM, -0.5), {"clusters": 32, "cluster_size": 1}).config.multicast


def test_no_fusion_steps_are_lost() -> None:
    """The pass moves steps and adds its own: all others are there, in their order, but for the fetch of what is multicast."""
    ours = ("multicast", "rendezvous", "fetch_fragment")

    def rest(plan: KernelPlan) -> list[tuple[str, Any]]:
        return [(step.op, step.params.get("out")) for step in plan.steps if step.op not in ours and not _is_shared_wait(step)]

    assert rest(shared()) == rest(block(cluster_size=4))


def _is_shared_wait(step: Step) -> bool:
    return step.op == "wait" and step.params["mbar"] == "mb_shared"
