"""Looking inside: the stages of a compilation, the config and what it was weighed against, bytes and time, the machine code.

    python examples/05_inspect.py
"""

from __future__ import annotations

import cfdsl as cf
from cfdsl.compiler.parts import part_named
from cfdsl.dsl.interpret import count_traffic
from fusions.attention_block import attention_block

MODEL, PART = cf.PRESETS["llama-2-7b"], "h100-sxm"
TOKENS = 4096


def shape(config: cf.Config) -> str:
    """Clusters x CTAs of each; over how many clusters the tokens of a head are split; CTAs that fit on an SM together."""
    return f"{config.clusters} x {config.cluster_size} CTAs, splits {config.splits}, CTAs per SM {config.ctas_per_sm}"


def show_config(kernel: cf.Kernel) -> None:
    """The table behind the choice: `python -m cfdsl explain` prints all of it."""
    choice = kernel.lowered.choice
    fit = [row for row in choice.rows if not row.refused]
    print(f"{len(fit)} configs fit and {len(choice.rows) - len(fit)} are refused. The first five, and one that is refused:")
    for row in fit[:5]:
        mark = "*" if row.chosen else " "
        print(f"  {mark} {shape(row.config)}: estimated {row.time_us:.1f} us, of which exchanges {row.exchanges_us:.1f} us")
    refused = next(row for row in choice.rows if row.refused)
    print(f"    {shape(refused.config)}: {refused.verdict}")


def show_traffic(kernel: cf.Kernel) -> None:
    """Bytes of one launch, from shapes and placements alone."""
    traffic = count_traffic(kernel.lowered.placed, {"tokens": TOKENS + 1, "positions": TOKENS + 1, "length": TOKENS})
    part = part_named(PART)
    print(f"With {TOKENS} cached tokens a launch moves {traffic.hbm_bytes:,} bytes of device memory: {traffic.weights:,} of weights,")
    print(f"{traffic.kv_read:,} of cache. At {part.hbm_gbps:,} GB/s that takes {part.at_hbm_us(traffic.hbm_bytes):.1f} us.")
    for row in traffic.exchanges:
        print(f"  {row.scope:7} {row.op:22} {row.bytes:>9,} bytes  ({row.src.file.rsplit('/', 1)[-1]}:{row.src.line})")


def show_plan(kernel: cf.Kernel) -> None:
    """The plan is records, not code: what is streamed, what is waited for, what lives where and when."""
    plan = kernel.plan
    print("The load stream of each CTA:")
    for stream in plan.streams:
        count = "as many tiles as the cache needs" if stream.tiles is None else f"{stream.tiles} tiles"
        print(f"  {stream.name:6} {count}, {stream.tile_bytes:,} bytes each")
    print("Barriers that peers signal, and the bytes they count:")
    for barrier in plan.barriers:
        if barrier.kind == "exchange":
            print(f"  {barrier.name}: {barrier.tx_bytes:,} bytes")
    print("The largest buffers, and the steps in which they live:")
    for buffer in sorted(plan.buffers, key=lambda buffer: -buffer.bytes)[:3]:
        print(f"  {buffer.name}: {buffer.bytes:,} bytes at {buffer.offset:,}, steps {buffer.first} to {buffer.last}")


def show_code(kernel: cf.Kernel) -> None:
    """From a line of the spec to the calls that came of it; then what the assembler made of them."""
    lines = kernel.source.splitlines()
    first = next(number for number, line in enumerate(lines) if "# src" in line and "cluster_reduce_scatter" in line)
    print("Of the generated source, what became of one line of the spec:")
    print("\n".join(lines[first : first + 5]))
    loads = sum("UBLKCP" in line for line in kernel.sass.splitlines())
    print(f"PTX: {len(kernel.ptx.splitlines())} lines. SASS: {loads} bulk copy instructions.")
    print(f"{kernel.registers} registers, {kernel.spills} bytes spilled; the symbol in a profiler is {kernel.binary.kernel}.")


def main() -> None:
    """Every stage of one kernel; nothing here needs a GPU."""
    kernel = cf.compile(attention_block, MODEL, part=PART, sizes={"tokens": TOKENS})
    print(f"{kernel}\nStages: {', '.join(kernel.stages)}; `kernel.stages[name]` is the text of one.")
    for show in (show_config, show_traffic, show_plan, show_code):
        print()
        show(kernel)


if __name__ == "__main__":
    main()
