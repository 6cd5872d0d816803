from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from cfdsl.cli.traced import trace_panel, write_trace
from cfdsl.runtime.timeline import Record, StageTimes


def test_the_table_says_when_what_and_where() -> None:
    line = "attention_block.py:58: q = cf.linear(normed, wq, bq, shard='out')"
    stages = [
        StageTimes("consumer", "set up", "", 0.1, 0.4, 0.7),
        StageTimes("consumer", "gemv", line, 3.25, 20.5, 25.75),
        StageTimes("producer", "stream wq", "block.py:5: q = w[head]", 0.5, 11.0, 12.0),
    ]
    screen = Console(width=120, record=True, file=io.StringIO())
    screen.print(trace_panel("block, llama-2-7b, 4,096 tokens", stages, Path("out.json")))
    text = screen.export_text()
    for wanted in ("when the stages of block, llama-2-7b, 4,096 tokens, ran", "out.json: open it at https://ui.perfetto.dev",
                   "3.25", "20.50", "25.75", "stream wq", "w[head]", "attention_block.py:58: q = cf.linear("):  # fmt: skip
        assert wanted in text
    assert text.count("consumer") == 1
    assert max(len(row) for row in text.splitlines()) <= 120


def test_launches_of_several_kernels_go_into_one_file(tmp_path: Path) -> None:
    def records(start: int) -> list[Record]:
        return [Record(0, 5, "consumer", 1, "gemv", "text", "block.py:7: y", start, start + 1000)]

    write_trace(tmp_path / "out.json", [("attention_block", records(7_000)), ("ffn_block", records(9_000))])
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    assert [(e["name"], e["ts"]) for e in events if e["ph"] == "X"] == [
        ("attention_block", 0.0), ("gemv", 0.0), ("ffn_block", 2.0), ("gemv", 2.0),
    ]  # fmt: skip
