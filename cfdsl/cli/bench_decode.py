"""`bench decode`: a whole model's time per token, its share of the memory's time, where it goes, and Hugging Face's beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cfdsl.cli.catalog import find_model
from cfdsl.cli.complaints import NeedsGpu
from cfdsl.cli.console import console
from cfdsl.cli.files import file_errors
from cfdsl.cli.measuring import JsonFile, command_line, deliver, json_errors, parse_lengths, progress
from cfdsl.cli.request import Dtype
from cfdsl.cli.tables import panel, table
from cfdsl.cli.traced import save_step
from cfdsl.cli.units import size
from cfdsl.dsl.fusion import DTYPES
from cfdsl.errors import raise_all


def bench_decode(
    model: Annotated[str, typer.Option("--model", "-m", help="A preset, or the path of a Hugging Face config.json.")],
    context: Annotated[str, typer.Option("--context", help="Cached tokens to begin at, several separated by commas.")] = "1024,4096",
    dtype: Annotated[Dtype, typer.Option(help="Of weights and caches; sums are float32.")] = "bf16",
    steps: Annotated[int, typer.Option(min=2, help="Tokens per measurement: one replay of a CUDA graph each.")] = 64,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure Hugging Face with torch.compile too.")] = True,
    layers: Annotated[
        Literal["whole", "blocks"], typer.Option(help="A kernel per layer, or one for attention and one for the feed-forward block.")
    ] = "whole",
    budget: Annotated[float, typer.Option(help="Seconds after which no further peer is begun.")] = 300.0,
    json: JsonFile = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write when each stage of each CTA ran in one step, for Perfetto.", show_default=False)
    ] = None,
) -> None:
    """Measure whole decode steps on the GPU at hand: random weights, batch 1, one CUDA graph per token, beside Hugging Face."""
    from cfdsl.cli.gpu import gpu_part

    contexts = parse_lengths(context, "--context")
    sizes = find_model(model)
    raise_all([*json_errors(json), *file_errors("--trace", trace)])
    if gpu_part() is None:
        raise NeedsGpu(command="python -m cfdsl bench decode")
    from cfdsl.hf.decode_bench import benchmark_decode

    measured = benchmark_decode(
        sizes, contexts, dtype=DTYPES[dtype], steps=steps, peers=peers, budget_s=budget, layers=layers, log=progress()
    )
    if trace is not None:
        from cfdsl.hf.decode_bench import trace_decode

        save_step(trace, trace_decode(sizes, max(contexts), DTYPES[dtype], layers=layers), console(stderr=True))
    record = {**measured, "command": command_line()}
    deliver(record, json, lambda screen: screen.print(decode_panel(record)))


def decode_panel(record: dict[str, Any]) -> Any:
    """The record: where and how, time per token, then the kernels of a step per context."""
    place, ceiling = record["environment"], record["ceiling"]
    lines = [
        f"{place['gpu']}, {place['sms']} SMs; torch {place['torch']}, CUDA {place['cuda']}; {place['date']}",
        f"read ceiling {ceiling['gbps']:,.0f} GB/s ({ceiling['how']})",
        f"{size(record['weight_bytes'])} of random weights, seed {record['seed']}; caches filled with random values",
        f"one CUDA graph replay per token, median of {record['rows'][0]['steps']}; each replay makes the cache one token longer, from the",
        "context on, and nothing sets it back in between; bytes are those of the middle",
        record["command"],
    ]
    parts: list[Any] = [*(Text(line, "dim") for line in lines), Text(), tokens_table(record)]
    for row in record["rows"]:
        parts += [Text(), Text(f"kernels of a step at {row['context']:,} tokens, each in a graph of its own", "bold"), kernels_table(row)]
        parts.append(Text(sum_line(row), "dim"))
    title = escape(f"decode, {record['model']}, {record['dtype']}, batch 1")
    return panel(title, *parts, *(Text(note, "yellow") for note in notes(record)))


def notes(record: dict[str, Any]) -> list[str]:
    """What a reader must know: what was left out, what was flagged, what was not cold."""
    found = [f"left out: {text}" for text in record["peers_left_out"]]
    for row in record["rows"]:
        at = f"at {row['context']:,}"
        found += [f"{at}: {row['l2']}"] if row["l2"] else []
        found += [f"{at}: {flag}" for flag in row["flags"]]
        warm = [kernel["name"] for kernel in row["kernels"] if not kernel["cold"]]
        found += [f"{at}: L2 is not cold for {', '.join(warm)}: too few bytes to evict it"] if warm else []
        if row["advanced"] != row["steps"]:
            found.append(f"{at}: {row['steps']} steps advanced the length by {row['advanced']}: the times are of something else")
    return found


def tokens_table(record: dict[str, Any]) -> Table:
    """Time per token by context, ours and the peers'."""
    made = table(">context", "what", ">ms/token", ">tokens/s", ">GB/s", ">of ceiling", ">memory's ms", ">logits differ", ">faster by")
    for row in record["rows"]:
        ours = (f"{row['us'] / 1e3:.3f}", f"{row['tokens_per_s']:,.1f}", f"{row['gbps']:,.0f}", f"{row['of_ceiling']:.1%}")
        made.add_row(f"{row['context']:,}", "cfdsl", *ours, f"{row['memory_us'] / 1e3:.3f}", "", "", style="bold")
        for peer in row["peers"]:
            gbps = row["bytes"] / peer["us"] / 1e3
            share = f"{gbps / record['ceiling']['gbps']:.1%}"
            times = (f"{peer['us'] / 1e3:.3f}", f"{1e6 / peer['us']:,.1f}", f"{gbps:,.0f}", share, "", f"{peer['logits_error']:.1e}")
            made.add_row("", f"{peer['name']}: {peer['variant']}", *times, f"{peer['speedup']:.2f}x")
    return made


def kernels_table(row: dict[str, Any]) -> Table:
    """A kernel per line: how often a step launches it, and what one launch takes and moves."""
    made = table("kernel", ">launches", ">us", ">us per step", ">of the sum", ">bytes", ">GB/s", ">of ceiling", "L2")
    for kernel in row["kernels"]:
        share = f"{kernel['step_us'] / row['kernels_us']:.1%}"
        each = (f"{kernel['us']:.1f}", f"{kernel['step_us']:,.1f}", share, size(kernel["bytes"]), f"{kernel['gbps']:,.0f}")
        l2 = "cold" if kernel["cold"] else "NOT cold"
        made.add_row(kernel["name"], str(kernel["launches"]), *each, f"{kernel['of_ceiling']:.1%}", l2)
    return made


def sum_line(row: dict[str, Any]) -> str:
    """The kernels' times added up, against the whole step."""
    apart = row["us"] - row["kernels_us"]
    than = "more" if apart >= 0 else "less"
    return f"sum {row['kernels_us']:,.1f} us; a whole step takes {row['us']:,.1f} us, {abs(apart):,.1f} us {than}"
