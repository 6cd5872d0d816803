from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cfdsl.cli.panels import candidates, config_panel, graph_panel
from cfdsl.cli.report import candidate_record, choice_record, config_record, graph_record, refusals, traffic_record, why
from cfdsl.compiler.config import Config
from cfdsl.compiler.cost import choose
from cfdsl.compiler.parts import H100_SXM
from cfdsl.compiler.schedule import schedule
from cfdsl.dsl.interpret import count_traffic
from cfdsl.dsl.place import place
from cfdsl.dsl.placement import Mesh
from fusions.attention_block import attention_block


def row(time: float, size: int, chosen: bool = False, splits: int = 1) -> dict:
    return {"config": {"clusters": 64 // size, "cluster_size": size, "splits": splits}, "time_us": time, "chosen": chosen}


def test_why_names_the_runner_up_of_another_cluster_size() -> None:
    assert why([row(70.0, 2, True), row(70.6, 2), row(72.0, 4, splits=2)], {}) == (
        "Estimated at 70.0 us, the least of 3 configs that fit. The best with another cluster size, 8 x 2 x 4: 72.0 us (+2.0)."
    )


def test_why_says_what_decides_among_estimates_that_count_as_equal() -> None:
    """The table begins with them, and so is not in the order of the times; what rounds to the same time is no less and no more."""
    assert why([row(71.02, 2, True), row(70.98, 4), row(70.95, 2), row(80.0, 8)], {}) == (
        "Estimated at 71.0 us. Of 4 configs that fit, 3 are within 0.5 us and 3% of the least estimate, 71.0 us, and count as equal: first "
        "comes what has an SM to each CTA, then fewer splits, then smaller clusters. The others follow by their times. The best with "
        "another cluster size, 16 x 4: 71.0 us."
    )


def test_why_says_what_was_given_by_hand() -> None:
    text = why([row(70.0, 4, True)], {"cluster_size": 4, "pdl": False})
    assert text == "Estimated at 70.0 us; nothing else fits what was given. Given by hand: cluster_size=4, pdl=False."


def test_a_table_leaves_columns_out_rather_than_break_its_rows() -> None:
    rows = choice_record(choose(attention_block.trace("llama-2-7b"), H100_SXM).rows, {})["fit"]
    for width, there, gone in ((120, "waves", "nothing"), (80, "stream", "waves"), (60, "exchanges", "smem")):
        screen = io.StringIO()
        Console(width=width, file=screen).print(candidates(rows))
        lines = [line for line in screen.getvalue().splitlines() if line.strip()]
        assert len(lines) == len(rows) + 1
        assert max(map(len, lines)) <= width
        assert there in lines[0]
        assert gone not in lines[0]


def test_refusals_are_counted_by_kind() -> None:
    rows = [{"refused": ["shared memory: 1", "not resident: 2"]}, {"refused": ["shared memory: 3", "shared memory: 4"]}]
    assert refusals(rows) == [("shared memory", 2), ("not resident", 1)]


def test_every_candidate_becomes_a_record() -> None:
    graph = attention_block.trace("llama-2-7b")
    choice = choose(graph, H100_SXM)
    record = choice_record(choice.rows, {})
    assert len(record["fit"]) + len(record["refused"]) == len(choice.rows)
    assert [candidate["chosen"] for candidate in record["fit"]].count(True) == 1
    assert record["refused"]
    assert all(candidate["refused"] and candidate["time_us"] is None for candidate in record["refused"])
    first = candidate_record(choice.rows[0])
    parts = first["start_us"] + first["stream_us"] + first["exchanges_us"] + first["tail_us"]
    assert parts == pytest.approx(first["time_us"], rel=1e-6)
    json.dumps(record)


def test_graph_record_has_every_op_with_its_placement_and_line() -> None:
    placed = place(attention_block.trace("llama-2-7b", qkv="rows"), Mesh(32, 2))
    record = graph_record(placed)
    assert record["mesh"] == {"clusters": 32, "ranks": 2, "splits": 1}
    ops = {op["op"]: op for op in record["ops"]}
    assert ops["cluster_gather"]["name"] == "q, k, v"
    assert ops["cluster_gather"]["placement"] == "[S(1), R]"
    assert ops["attend"]["placement"] == "[S(1), P(lse)]"
    assert [op["op"] for op in record["ops"] if op["exchange"]] == ["cluster_gather", "cluster_reduce_scatter", "grid_gather"]
    assert all("attention_block.py:" in op["line"] for op in record["ops"])
    assert {leaf["kind"] for leaf in record["leaves"]} == {"input", "weight", "kv_cache"}


def test_splits_are_told_in_json_and_on_the_screen() -> None:
    record = graph_record(place(attention_block.trace("llama-2-7b"), Mesh(64, 2, 2)))
    assert record["mesh"] == {"clusters": 64, "ranks": 2, "splits": 2}
    assert "Placed graph: 64 clusters (32 groups of 2 splits) of 2 ranks" in str(graph_panel(record).title)
    choice = choose(attention_block.trace("llama-2-7b"), H100_SXM, {"clusters": 64, "cluster_size": 2, "splits": 2, "window": 3})
    plan = schedule(place(attention_block.trace("llama-2-7b"), Mesh(64, 2, 2)), choice.config)
    config = config_record(choice.config, plan)
    assert (config["splits"], config["window"], config["ring"]["window"]) == (2, 3, 3)
    screen = io.StringIO()
    Console(width=200, file=screen).print(config_panel(config, choice_record(choice.rows, {})))
    text = screen.getvalue()
    assert "64 clusters (32 groups of 2 splits) of 2 = 128 CTAs" in text
    assert "3 tiles in flight, 2 of them behind a grid barrier to come" in " ".join(text.replace("│", " ").split())
    assert "32 x 2 x 2" in text


def test_traffic_of_llama_2_7b_by_hand() -> None:
    graph = attention_block.trace("llama-2-7b")
    placed = place(graph, Mesh(64, 2, 2))
    traffic = count_traffic(placed, {"tokens": 4097, "positions": 4097, "length": 4096})
    plan = schedule(placed, Config(clusters=64, cluster_size=2, splits=2, stages=4))
    record = traffic_record(traffic, plan, choose(graph, H100_SXM), H100_SXM)
    assert record["weights"] == 4 * 4096 * 4096 * 2 + 4096 * 2
    assert record["kv_read"] == 2 * 32 * 4096 * 128 * 2
    assert record["kv_write"] == 2 * 32 * 128 * 2
    assert record["memory_us"] == pytest.approx(record["hbm_bytes"] / 3150e3)
    # a half of each of 64 heads' outputs and its (m, l), between 2 ranks
    assert record["dsmem_bytes"] == traffic.dsmem_bytes == 64 * 2 * (64 + 2) * 4
    # q, k, v: written once, a head of each read by 128 CTAs; two splits' terms of 32 heads: written once, read by all
    assert record["grid_bytes"] == traffic.grid_bytes == 3 * (4096 + 128 * 128) * 4 + 2 * 32 * 130 * 4 * (1 + 128)
    assert [(exchange["op"], exchange["does"]) for exchange in record["exchanges"]] == [
        ("grid_gather", "gather"), ("cluster_reduce_scatter", "reduce_scatter"), ("grid_reduce", "reduce"),
    ]  # fmt: skip
