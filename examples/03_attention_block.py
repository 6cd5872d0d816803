"""The attention block of a decoder layer: several dataflows of one sum, on the CPU; one kernel; and, on a GPU, decoding under a CUDA graph.

    python examples/03_attention_block.py
"""

from __future__ import annotations

import torch

import cfdsl as cf
from fusions.attention_block import attention_block

MODEL = cf.PRESETS["smollm2-135m"]  # hidden 576, 9 query heads over 3 KV heads of 64
MESH = cf.Mesh(clusters=3, ranks=4)  # one cluster per KV head
LENGTH, CAPACITY, STEPS = 37, 64, 8
DATAFLOWS = [{"qkv": "grid", "out": "gather"}]  # the default
DATAFLOWS += [{"qkv": qkv, "out": out} for qkv in ("rows", "split_k") for out in ("gather", "atomic")]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative error in the Euclidean norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def compare_dataflows() -> None:
    """The same y from every dataflow, by different exchanges: which, and how many bytes of one launch."""
    given = attention_block.example_inputs(MODEL, length=LENGTH, capacity=CAPACITY)
    want = attention_block.reference(MODEL, given)["y"]
    for options in DATAFLOWS:
        placed = cf.place(attention_block.trace(MODEL, **options), MESH)
        got = cf.interpret(placed, given, round_outputs=False)
        moved = ", ".join(f"{row.op} {row.bytes:,} B" for row in got.traffic.exchanges)
        print(f"  qkv={options['qkv']:8} out={options['out']:7} error {relative(got.outputs['y'], want):.1e}  {moved}")


def decode(kernel: cf.Kernel) -> None:
    """Capture one step, which also counts length and pos up, and replay it: the graph follows the growing cache."""
    given = attention_block.example_inputs(MODEL, length=LENGTH, capacity=CAPACITY, device="cuda")
    kernel.prepare()  # load it and allocate its workspace; a capture must do neither
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel(**given)
        given["length"] += 1
        given["pos"] += 1
    for _ in range(STEPS):
        want = attention_block.reference(MODEL, given)  # of the tensors as they are before the step
        graph.replay()
        print(f"  {int(given['length'])} tokens: relative error {relative(given['y'], want['y']):.1e}")
    print(f"  flags: {kernel.status() or 'none'}")


def main() -> None:
    """The placements, the dataflows, the kernel."""
    print(cf.to_text(cf.place(attention_block.trace(MODEL), MESH)))
    print(f"{len(DATAFLOWS)} dataflows on {MESH}, {LENGTH} cached tokens, against PyTorch in float64:")
    compare_dataflows()

    kernel = cf.compile(attention_block, MODEL, part="h100-sxm")
    config, plan = kernel.config, kernel.plan
    print(f"\n{kernel}")
    print(f"  ring of {config.stages} x {config.stage_bytes:,} bytes, {plan.smem_bytes:,} bytes of shared memory per CTA,")
    print(f"  {kernel.registers} registers, {kernel.spills} bytes spilled. Its arguments, in order:")
    for arg in kernel.args:
        shape = " x ".join(map(str, arg.shape))
        print(f"    {arg.name:9} {arg.dtype:5} {shape:24} {arg.role}{', written' if arg.mutated else ''}")

    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9:
        print(f"\n{STEPS} steps of decoding by replaying one CUDA graph:")
        decode(kernel)
    else:
        print("\nNo Hopper GPU here: not launched.")


if __name__ == "__main__":
    main()
