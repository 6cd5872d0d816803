"""Your own fusion: the gated projection of a feed-forward block, in one phase over all CTAs.

    n = rms_norm(x);  y = act(n @ w_gate.T) * (n @ w_up.T)

Every CTA normalises the whole row, which is small, and computes the same rows of both products, so that act and * need no communication.
A fusion with a reference and example inputs has all that the command line does with the shipped ones:

    python examples/04_your_own_fusion.py
    python -m cfdsl compile examples/04_your_own_fusion.py:gated_projection --model llama-2-7b --option activation=gelu
"""

from __future__ import annotations

from typing import Literal

import torch

import cfdsl as cf

MODEL = cf.PRESETS["smollm2-135m"]  # hidden 576, intermediate 1536


@cf.fusion
def gated_projection(m: cf.ModelConfig, batch: int, *, activation: Literal["silu", "gelu"] = "silu") -> cf.Outputs:
    """y = act(gate) * up of rms_norm(x): x (batch, hidden) -> y (batch, intermediate)."""
    x = cf.input("x", (batch, m.hidden))
    n = cf.rms_norm(x, cf.weight("norm", (m.hidden,)), m.norm_eps)
    gate = cf.linear(n, cf.weight("w_gate", (m.intermediate, m.hidden)), shard="out")
    up = cf.linear(n, cf.weight("w_up", (m.intermediate, m.hidden)), shard="out")
    act = cf.silu(gate) if activation == "silu" else cf.gelu(gate, tanh=True)
    return cf.outputs(y=act * up)


@gated_projection.reference
def reference(
    m: cf.ModelConfig, tensors: dict[str, torch.Tensor], precision: str = "f64", *, activation: str = "silu"
) -> dict[str, torch.Tensor]:
    """What the fusion must compute, in plain PyTorch: {"y": (batch, intermediate)}, not rounded."""
    from torch.nn.functional import gelu, linear, rms_norm, silu

    t = {name: value.to(torch.float64 if precision == "f64" else torch.float32) for name, value in tensors.items()}
    n = rms_norm(t["x"], (m.hidden,), t["norm"], m.norm_eps)
    gate = linear(n, t["w_gate"])
    return {"y": (silu(gate) if activation == "silu" else gelu(gate, approximate="tanh")) * linear(n, t["w_up"])}


@gated_projection.example_inputs
def example_inputs(
    m: cf.ModelConfig, batch: int = 1, dtype: str = "bf16", length: int = 0, capacity: int | None = None, seed: int = 0,
    device: str | torch.device = "cpu", *, activation: str = "silu",
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Random tensors for one call; y is full of NaN. length and capacity are for fusions with a cache."""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(kind)

    wide = {name: normal(m.intermediate, m.hidden, scale=m.hidden**-0.5) for name in ("w_gate", "w_up")}
    y = torch.full((batch, m.intermediate), float("nan"), dtype=kind, device=device)
    return {"x": normal(batch, m.hidden), "norm": normal(m.hidden), **wide, "y": y}


def main() -> None:
    """Check the numbers on several meshes and both activations, then compile; run where there is a GPU."""
    given = gated_projection.example_inputs(MODEL)
    for options in ({"activation": "silu"}, {"activation": "gelu"}):
        want = gated_projection.reference(MODEL, given, **options)["y"]
        for mesh in (cf.Mesh(1, 1), cf.Mesh(5, 2), cf.Mesh(2, 8)):  # 10 CTAs do not divide 1536 rows: shares may be uneven
            got = cf.interpret(gated_projection.trace(MODEL, **options), given, mesh, round_outputs=False).outputs["y"]
            print(f"{options['activation']} on {mesh}: relative error {float((got - want).norm() / want.norm()):.1e}")

    kernel = cf.compile(gated_projection, MODEL, part="h100-sxm", activation="gelu")
    print(f"\n{kernel}, {kernel.registers} registers. What each CTA's consumer warps do:\n")
    print(kernel.stages["plan"].partition("steps of the consumer warps\n")[2])
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9:
        on_gpu = gated_projection.example_inputs(MODEL, device="cuda")
        kernel(**on_gpu)
        want = gated_projection.reference(MODEL, on_gpu, activation="gelu")["y"]
        print(f"On the GPU: relative error {float((on_gpu['y'].double() - want).norm() / want.norm()):.1e}, rounded to bf16.")
    else:
        print("No Hopper GPU here: not launched.")


if __name__ == "__main__":
    main()
