"""A plan's text: complete, and always the same."""

from __future__ import annotations

from plans import block, norm

from cfdsl.compiler.plan_text import plan_text


def test_every_part_of_a_plan_is_in_its_text() -> None:
    plan = block(stages=6)
    text = plan_text(plan)
    stream = "load stream, through a ring of 6 x 16384 B, 6 tiles in flight"
    for section in ("arguments", stream, "barriers", "buffers (steps first..last)", "exchanges", "steps of the consumer warps"):
        assert f"\n\n{section}\n" in text
    lines = text.splitlines()
    assert lines[0] == "plan attention_block llama-2-7b bf16: 32 clusters x 4 ranks, 288 threads, 104784 B of shared memory"
    for named in (*plan.args, *plan.buffers, *plan.barriers, *plan.streams):
        assert any(line.startswith(f"  {named.name} ") for line in lines), named.name
    assert "  mb_gather        exchange  at  98400: 1 arrivals, 1536 B" in lines
    assert "  cache        by KV length   of 2 x 32 x 128 = 16384 B, one copy each" in lines
    assert "   20 wait           1536 bytes have landed: q, k, v" in text
    assert sum(line[2:5].strip().isdigit() for line in lines) == len(plan.steps)
    assert max(map(len, lines)) <= 140


def test_the_text_is_the_same_every_time() -> None:
    assert plan_text(block(stages=6)) == plan_text(block.__globals__["_block"].__wrapped__(
        "llama-2-7b", 32, 4, (("qkv", "rows"), ("out", "gather"), ("layout", "bhtd")), (("stages", 6),)))  # fmt: skip


def test_a_plan_without_a_stream() -> None:
    assert "load stream" not in plan_text(norm())
