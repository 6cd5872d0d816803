"""A whole layer of a decoder as one kernel, decoding one token per sequence: from the residual stream to the residual stream.

    h = x + attention(x);  y = h + feed_forward(h)

The two blocks' specs, one behind the other. Rows of h are spread over the CTAs, and the feed-forward part needs all of them: one more
exchange over the grid takes the place of the end of one launch and the start of another. The load stream goes on through it, so that
weights of the feed-forward part are on their way while attention still waits for its exchanges; two launches have only what fits beside
each other on an SM. Needs the shared memory of one CTA per SM, as deep a ring as there is room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import cfdsl as cf
from fusions.attention_block import attention, attention_block
from fusions.ffn_block import feed_forward, ffn_block

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NORM = "ffn_norm"  # the feed-forward part's norm weight: `norm` is attention's


@cf.fusion
def decoder_layer(
    m: cf.ModelConfig, batch: int, *, qkv: Literal["grid", "rows", "split_k"] = "grid", layout: Literal["bhtd", "bthd"] = "bhtd"
) -> cf.Outputs:
    """y = h + feed_forward(h) with h = x + attention(x). Options, `length` and `pos` as attention_block's."""
    x = cf.input("x", (batch, m.hidden))
    h = cf.grid_gather(attention(m, batch, x, qkv=qkv, layout=layout) + x)
    return cf.outputs(y=feed_forward(m, batch, h, norm=NORM) + h)


@decoder_layer.reference
def reference(
    m: cf.ModelConfig, tensors: dict[str, Tensor], precision: str = "f64", *, qkv: str = "grid", layout: str = "bhtd"
) -> dict[str, Tensor]:
    """What the layer must compute: y (batch, hidden), not rounded, and the caches after the call. precision: "f32" or "f64"."""
    first = attention_block.reference(m, tensors, precision, qkv=qkv, layout=layout, residual=False)
    second = ffn_block.reference(m, {**tensors, "norm": tensors[NORM], "x": first["y"]}, precision)
    return {**first, **second}


@decoder_layer.example_inputs
def example_inputs(
    m: cf.ModelConfig,
    batch: int = 1,
    dtype: str = "bf16",
    length: int | Sequence[int] = 128,
    capacity: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    *,
    qkv: str = "grid",
    layout: str = "bhtd",
) -> dict[str, Tensor]:
    """Random tensors for one call: those of attention_block, and of ffn_block the weights. What must not be read is NaN, and so is y."""
    both: dict[str, Tensor] = attention_block.example_inputs(m, batch, dtype, length, capacity, seed, device, layout=layout, residual=False)
    more: dict[str, Tensor] = ffn_block.example_inputs(m, batch, dtype, seed=seed + 1, device=device)
    weights = {NORM: more["norm"], **{name: more[name] for name in ("w_gate", "w_up", "w_down")}}
    return {**both, **weights, "y": both["y"]}


@decoder_layer.peer("torch.compile", "max-autotune, SDPA, fused QKV and gate/up", compile=True)
@decoder_layer.peer("torch eager", "SDPA, fused QKV and gate/up")
def _in_torch(
    m: cf.ModelConfig, tensors: dict[str, Tensor], length: int, layout: str = "bhtd", **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    from fusions import _layer_peer

    return _layer_peer.layer, _layer_peer.layer_inputs(m, tensors, length, layout)
