"""The source has every barrier and wait of the plan, in the plan's order: what is proved of the steps holds for the kernel only then.

A GPU seldom tells: a kernel without one of them is right as long as nobody is late.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import plans
import pytest
from plans import block, plan_graph

import cfdsl as cf
from cfdsl.compiler.emit import emit
from cfdsl.compiler.plan import KernelPlan, Step

SHIPPED = dict(plans.shipped())
LINES = {
    "sync": "cta.consumer_sync(WARPS)",
    "rendezvous": "cute.arch.cluster_wait()",
    "grid_barrier": "phase = grid.barrier(ws_sync, phase, CTAS, WARPS)",
}
BARRIERS = re.compile(r"(cta\.consumer_sync|cute\.arch\.cluster_|exchange\.wait|phase = grid\.barrier)")


@pytest.fixture(params=SHIPPED.values(), ids=list(SHIPPED))
def plan(request: pytest.FixtureRequest) -> KernelPlan:
    made: KernelPlan = request.param
    return made


def parts(plan: KernelPlan) -> tuple[list[str], list[str], list[str]]:
    """The lines of a kernel: before the warps part, the producer's, the consumers'. Without a ring the first are the consumers' too."""
    source = emit(plan)
    body = source[source.index("\n):\n", source.index("def kernel(")) + 4 : source.index("kernel.set_name_prefix")]
    before, _, rest = body.partition("    if cta.warp() == WARPS:")
    producer, _, consumers = rest.partition("\n    else:\n")
    lines = [[line.strip() for line in text.splitlines() if line.strip()] for text in (before, producer, consumers)]
    return (lines[0], lines[1][1:], lines[2]) if plan.ring else (lines[0], [], lines[0])


def as_lines(step: Step) -> list[str]:
    if step.op == "wait":
        return [f"exchange.wait({step.params['mbar']})"]
    return [LINES[step.op]] if step.op in LINES else []


def test_every_barrier_and_wait_of_the_plan_is_in_the_source(plan: KernelPlan) -> None:
    wanted = [line for step in plan.steps for line in as_lines(step)]
    found = [line for line in parts(plan)[2] if BARRIERS.match(line) and "arrive" not in line]
    assert found == wanted


def test_barriers_are_made_fenced_and_armed_before_anybody_uses_them(plan: KernelPlan) -> None:
    """By one thread; the CTA meets behind it, and then the cluster: a peer pushes once it has seen all ranks arrive."""
    lines = parts(plan)[0]
    exchanges = [(b.name, b.tx_bytes) for b in plan.barriers if b.kind == "exchange"]
    made = ["rings.init(smem, RING)"] * bool(plan.ring) + [f"exchange.init({name}, {nbytes})" for name, nbytes in exchanges]
    armed = [f"exchange.arm({name}, {nbytes})" for name, nbytes in exchanges]
    wanted = ["if tidx == 0:", *made, "cute.arch.mbarrier_init_fence()", *armed, "cute.arch.sync_threads()"] if made else []
    wanted += ["cute.arch.cluster_arrive_relaxed()"] * any(step.op == "rendezvous" for step in plan.steps)
    wanted += ["cute.arch.griddepcontrol_launch_dependents()"]
    first = lines.index(wanted[0])
    assert lines[first : first + len(wanted)] == wanted
    assert not [line for line in lines[:first] if BARRIERS.match(line) or "sync" in line]


def test_whoever_reads_what_the_kernel_before_may_have_written_waits_for_it(plan: KernelPlan) -> None:
    _, producer, consumers = parts(plan)
    wait, phase = "cute.arch.griddepcontrol_wait()", "phase = grid.phase(ws_sync)"
    before, after = consumers[: consumers.index(wait)], consumers[consumers.index(wait) :]
    assert not [line for line in before if re.match(r"(\w+ = frag\.load|for |if (rank|cluster)|attention|gemv|cta\.consumer_sync)", line)]
    assert sum("multicast.gather(" in line or "= frag.fetch(" in line for line in before) == sum(
        step.op in ("multicast", "fetch_fragment") for step in plan.steps[: plan.early_steps]
    )
    assert (after[1] == phase) == any(step.op == "grid_barrier" for step in plan.steps)
    tokens = [i for i, line in enumerate(producer) if line.startswith(("tokens", "at = stream.tokens("))]
    assert not tokens or producer.index(f"{wait}  # the cache may be the predecessor's work") < tokens[0]


def test_the_producer_stays_until_every_rank_has_made_its_barriers(plan: KernelPlan) -> None:
    """A CTA whose warps have left takes its shared memory with it."""
    _, producer, _ = parts(plan)
    meets = any(step.op == "rendezvous" for step in plan.steps) and plan.ring is not None
    assert [line for line in producer if BARRIERS.match(line)] == ["cute.arch.cluster_wait()"] * meets
    assert not meets or producer[-1] == "cute.arch.cluster_wait()"


def lines_of(**how: Any) -> list[str]:
    return [line.strip() for line in emit(block(**how)).splitlines()]


def test_who_a_cta_is() -> None:
    grouped = lines_of(model="llama-3.1-8b", clusters=24, cluster_size=4, splits=3, qkv="grid")
    for line in ("cluster = bid // RANKS", "group = cluster // 3", "split = cluster % 3"):
        assert line in grouped
    assert "holder = split * RANKS + rank  # of those that share a head's tokens" in grouped
    shared = lines_of(model="llama-3.1-8b", clusters=32, cluster_size=4)
    assert "slice8 = cluster // 4  # neighbouring clusters share one of 8 slices" in shared
    for lines in (grouped, shared):
        assert [line for line in lines if line.startswith("grid=")] == [
            "grid=[CTAS * host.gapless(cache_k, cache_v), 1, 1], block=[288, 1, 1], cluster=[RANKS, 1, 1], stream=stream, use_pdl=True,"
        ]


def test_who_appends_a_token_and_where() -> None:
    """One rank of one of the clusters that hold the head, within the cache, unless the length was clamped."""

    def guard(**how: Any) -> tuple[str, str]:
        lines = lines_of(**how)
        at = next(i for i, line in enumerate(lines) if line.startswith("kv.append("))
        return lines[at - 1], lines[at]

    room = "(tokens == tokens_given) & (tokens < n_tokens):"
    alone, two, three = (
        guard(),
        guard(model="llama-3.1-8b", clusters=16, cluster_size=4),
        guard(model="llama-3.1-8b", clusters=24, cluster_size=4, splits=3, qkv="grid"),
    )
    assert alone[0] == f"if (rank == 0) & {room}"
    assert two[0] == f"if (rank == 0) & (cluster % 2 == 0) & {room}"
    assert three[0] == f"if (rank == 0) & (cluster % 3 == 0) & {room}"
    assert alone[1].endswith("Int64(cluster) * n_tokens * 128 + Int64(tokens) * 128, Int64(n_tokens) * 128, THREADS)")
    apart = guard(model="llama-3.1-8b", clusters=8, cluster_size=4, layout="bthd")[1]
    assert apart.endswith("Int64(cluster) * 128 + Int64(tokens) * 1024, Int64(128), THREADS)")


def test_what_is_past_the_end_of_a_table_or_of_a_cache_is_clamped_and_flagged() -> None:
    lines = lines_of()
    for line in (
        "position = kv.clamp(position_given, 0, n_positions - 1)",
        "tokens = kv.clamp(tokens_given, 0, n_tokens)",
        "kv.flag(ws_sync.iterator + 1, kv.POSITION_CLAMPED, position != position_given)",
        "kv.flag(ws_sync.iterator + 1, kv.LENGTH_CLAMPED, (tokens != tokens_given) | (tokens == n_tokens))",
    ):
        assert line in lines


def test_each_head_of_a_cluster_has_its_own_queries_keys_values_and_results() -> None:
    source = emit(block("llama-2-7b", 8, 4))  # 4 heads of 128
    calls = re.findall(r"attention\.decode\(smem, RING, at, (.*?), ATTEND", source)
    assert calls == [", ".join(f"cta.piece({name}, {128 * j}, 128)" for name in "qkv") for j in range(4)]
    assert re.findall(r"attention\.combine_warps\(.*, (\d+), THREADS\)", source) == ["0", "1", "2", "3"]
    source = emit(block("llama-3.1-8b", 4, 4))  # 2 heads of keys, 4 of queries to each
    assert re.findall(r"attention\.combine_warps\(.*, (\d+), THREADS\)", source) == ["0", "4"]


@pytest.mark.parametrize(
    ("sliced", "gathered", "guard"),
    [
        (True, True, "if (rank == 0):"),
        (True, False, ""),
        (False, True, "if (rank == 0) & (cluster == 0):"),
        (False, False, "if (cluster == 0):"),
    ],
)
def test_what_several_ctas_have_is_stored_by_one_of_them(sliced: bool, gathered: bool, guard: str) -> None:
    """As vectors of shared memory, which is where a gather leaves it; the guard of the whole loop, if there is one."""

    def spec(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x, w = cf.input("x", (batch, 64)), cf.weight("w", (64, 64)).split_heads(4)
        with cf.clusters(over=4) as axis:
            h = cf.linear(x, w[axis] if sliced else w, shard="out")
            h = cf.cluster_gather(h) if gathered else h
        return cf.outputs(y=h)

    lines = [line.strip() for line in emit(plan_graph(cf.fusion(spec).trace("llama-2-7b"), 4, 2)).splitlines()]
    store = next(i for i, line in enumerate(lines) if line.startswith("y["))
    assert lines[store - 1].startswith("for i in cutlass.range(")
    assert (lines[store - 2] if lines[store - 2].startswith("if") else "") == guard


def test_a_row_in_registers_that_every_rank_has_is_stored_by_one() -> None:
    def spec(m: cf.ModelConfig, batch: int, sliced: bool) -> cf.Outputs:
        x = cf.input("x", (batch, 128))
        return cf.outputs(y=cf.silu(cf.shard(x, 1) if sliced else x))

    for sliced in (False, True):
        plan = plan_graph(cf.fusion(lambda m, batch, sliced=sliced: spec(m, batch, sliced)).trace("llama-2-7b"), 1, 2)
        lines = [line.strip() for line in emit(plan).splitlines()]
        store = next(i for i, line in enumerate(lines) if line.startswith("frag.store(y, "))
        assert (lines[store - 1] == "if rank == 0:") is not sliced


def test_as_many_tiles_are_eaten_as_are_loaded(plan: KernelPlan) -> None:
    """One loop eats the tiles of products that are joined. Where CTAs have other numbers of rows, any number will do."""
    rows = {share.name: 64 * share.granule for share in plan.shares if not share.even}
    counts = {"stream.rows": 0, "gemv.rows": 0}
    for node in ast.walk(ast.parse(emit(plan))):
        if isinstance(node, ast.Call) and (call := ast.unparse(node.func)) in counts:
            tiles = node.args[{"stream.rows": 7, "gemv.rows": 6}[call]]
            counts[call] += eval(ast.unparse(tiles), {}, rows)
    assert counts["stream.rows"] == counts["gemv.rows"]
    assert (counts["gemv.rows"] > 0) == any(step.op == "gemv" for step in plan.steps)
