"""The smallest spec: y = x @ w.T, one weight, spread over every CTA of the launch.

From the spec to a graph, to who holds what, to numbers on the CPU, to a kernel. No GPU is needed; with a Hopper GPU it also runs.

    python examples/01_smallest_spec.py
"""

from __future__ import annotations

import torch

import cfdsl as cf

MODEL = cf.PRESETS["smollm2-135m"]  # hidden size 576


@cf.fusion
def project(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """y = x @ w.T: x (batch, hidden) -> y (batch, hidden)."""
    x = cf.input("x", (batch, m.hidden))
    w = cf.weight("w", (m.hidden, m.hidden))
    return cf.outputs(y=cf.linear(x, w, shard="out"))  # outside of a clusters block, "out" spreads rows of w over all CTAs


def tensors(device: str = "cpu") -> dict[str, torch.Tensor]:
    """Random x and w, and y full of NaN: what is not written shows."""
    seed = torch.Generator().manual_seed(0)
    x = torch.randn(1, MODEL.hidden, generator=seed).bfloat16()
    w = (torch.randn(MODEL.hidden, MODEL.hidden, generator=seed) / MODEL.hidden**0.5).bfloat16()
    return {name: value.to(device) for name, value in {"x": x, "w": w, "y": torch.full_like(x, float("nan"))}.items()}


def error(got: torch.Tensor, given: dict[str, torch.Tensor]) -> float:
    """Relative error against float64."""
    want = given["x"].double() @ given["w"].double().T
    return float((got.double() - want).norm() / want.norm())


def main() -> None:
    """Trace, place, interpret, compile, and run where there is a GPU."""
    graph = project.trace(MODEL)
    print("The graph, as text that `cf.parse` reads back:\n")
    print(cf.to_text(graph))

    placed = cf.place(graph, cf.Mesh(clusters=4, ranks=2))
    ((_, y),) = graph.outputs
    print(f"On {placed.mesh}, y is placed {placed.of(y)}: each of the {placed.mesh.ctas} CTAs has 1/{placed.mesh.ctas} of its elements.")

    given = tensors()
    got = cf.interpret(placed, given, round_outputs=False)
    print(f"The oracle's relative error is {error(got.outputs['y'], given):.1e}; a launch reads {got.traffic.weights:,} bytes of weights.")

    kernel = cf.compile(project, MODEL, part="h100-sxm")
    print(f"{kernel}\n  {kernel.registers} registers, {kernel.spills} bytes spilled, source in {kernel.paths['source']}")

    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9:
        on_gpu = tensors("cuda")
        kernel(**on_gpu)
        print(f"On the GPU: relative error {error(on_gpu['y'], on_gpu):.1e}, rounded to bf16.")
    else:
        print("No Hopper GPU here: not launched.")


if __name__ == "__main__":
    main()
