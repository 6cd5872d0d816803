"""Specs with `split`, `reshape` and `concat`: one matrix for several projections, and one product of several values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from against import LIMIT, error

import cfdsl as cf
from cfdsl.compiler.parts import H200
from cfdsl.compiler.stages import lower
from cfdsl.errors import NotLowered
from fusions.attention_block import attention_block
from fusions.ffn_block import ffn_block

SHAPES = {"x": (1, 576), "hidden": (1, 576), "norm": (576,), "w": (576, 2 * 576)}

if TYPE_CHECKING:
    from torch import Tensor


@cf.fusion
def fused_qkv(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """The attention block with one weight for Q, K and V."""
    x = cf.input("x", (batch, m.hidden))
    pos, length = cf.input("pos", (batch,), "i32"), cf.input("length", (batch,), "i32")
    cos, sin = (cf.input(name, ("positions", m.rotary_dim // 2), "f32") for name in ("cos", "sin"))
    q_size, kv_size = m.heads * m.head_dim, m.kv_heads * m.head_dim
    norm, wo = cf.weight("norm", (m.hidden,)), cf.weight("wo", (m.hidden, q_size))
    normed = cf.rms_norm(x, norm, m.norm_eps)
    qkv = cf.grid_gather(cf.linear(normed, cf.weight("wqkv", (q_size + 2 * kv_size, m.hidden)), shard="out"))
    q, k, v = cf.split(qkv, (q_size, kv_size, kv_size), dim=1)
    q, k, v = cf.reshape(q, (batch, m.heads, m.head_dim)), cf.split_heads(k, m.kv_heads), cf.reshape(v, (batch, m.kv_heads, m.head_dim))
    with cf.clusters(over=m.kv_heads) as head:
        q, k, v = q[:, head], k[:, head], v[:, head]
        q, k = cf.rope(q, cos, sin, pos), cf.rope(k, cos, sin, pos)
        cache = cf.kv_cache("cache", batch, m.kv_heads, "tokens", m.head_dim)[head].append(k, v, at=length)
        o = cf.cluster_reduce_scatter(cf.attend(q, cache, shard="tokens", across="all"), dim=2)
    return cf.outputs(y=cf.linear(cf.merge_heads(cf.grid_reduce(o)), wo, shard="out") + x)


@cf.fusion
def fused_ffn(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """The feed-forward block with one weight for gate and up."""
    x, norm = cf.input("x", (batch, m.hidden)), cf.weight("norm", (m.hidden,))
    w_gate_up, w_down = cf.weight("w_gate_up", (2 * m.intermediate, m.hidden)), cf.weight("w_down", (m.hidden, m.intermediate))
    both = cf.grid_gather(cf.linear(cf.rms_norm(x, norm, m.norm_eps), w_gate_up, shard="out"))
    gate, up = cf.split(both, (m.intermediate, m.intermediate), dim=1)
    return cf.outputs(y=cf.linear(cf.silu(gate) * up, w_down, shard="out") + x)


@cf.fusion
def two_inputs(m: cf.ModelConfig, batch: int) -> cf.Outputs:
    """What a draft model begins with: a token's embedding and a hidden state, put together, through one matrix."""
    x, hidden = cf.input("x", (batch, m.hidden)), cf.input("hidden", (batch, m.hidden))
    normed = cf.rms_norm(x, cf.weight("norm", (m.hidden,)), m.norm_eps)
    return cf.outputs(y=cf.linear(cf.concat([normed, hidden], dim=1), cf.weight("w", (m.hidden, 2 * m.hidden)), shard="out"))


def drafted(device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of `two_inputs` for smollm2-135m, and y in float64."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    t = {name: torch.randn(shape, generator=generator, device=device).bfloat16() for name, shape in SHAPES.items()}
    t["w"] /= 24
    normed = torch.nn.functional.rms_norm(t["x"].double(), (576,), t["norm"].double(), cf.PRESETS["smollm2-135m"].norm_eps)
    want = torch.cat([normed, t["hidden"].double()], 1) @ t["w"].double().T
    return {**t, "y": torch.full_like(t["x"], float("nan"))}, want


def case(name: str, device: str) -> tuple[cf.Fusion, dict[str, Tensor], Tensor]:
    """A fused spec, its tensors, and y in float64 from the spec with a matrix each."""
    import torch

    model = cf.PRESETS["smollm2-135m"]
    if name == "draft":
        return two_inputs, *drafted(device)
    if name == "qkv":
        tensors = attention_block.example_inputs(model, 1, "bf16", length=70, capacity=90, device=device, residual=False)
        want = attention_block.reference(model, tensors, "f64", residual=False)["y"]
        whole = torch.cat([tensors.pop(f"w{each}") for each in "qkv"])
        return fused_qkv, {**tensors, "wqkv": whole}, want
    tensors = ffn_block.example_inputs(model, 1, "bf16", device=device)
    want = ffn_block.reference(model, tensors, "f64")["y"]
    whole = torch.cat([tensors.pop("w_gate"), tensors.pop("w_up")])
    return fused_ffn, {**tensors, "w_gate_up": whole}, want


def source(spec: cf.Fusion, **sizes: int) -> str:
    return lower(spec, cf.PRESETS["smollm2-135m"].with_(**sizes), 1, "bf16", H200, {}, {}, {}).source


@pytest.mark.parametrize("name", ["qkv", "ffn", "draft"])
def test_the_oracle(name: str) -> None:
    spec, tensors, want = case(name, "cpu")
    cf.oracle(spec, "smollm2-135m")(**tensors)
    assert error(tensors["y"], want) <= LIMIT["bf16"]


def test_pieces_are_read_at_their_offset_in_what_was_gathered() -> None:
    """smollm2-135m: 9 heads of 64 for q, then 3 for k, then 3 for v, of one vector of 960; no copy is made."""
    text = source(fused_qkv)
    for offset in ("cluster * 64, 64", "slice3 * 64 + 576, 64", "slice3 * 64 + 768, 64"):
        assert f"grid.fetch(ws_gather, {offset}, THREADS)" in text
    assert "pointwise.silu(frag.load(ws_gather, W_DOWN)) * frag.load(ws_gather, W_DOWN, 1536)" in source(fused_ffn)


def test_pieces_are_put_together_in_shared_memory() -> None:
    text = source(two_inputs)
    assert "joined[i] = " in text
    assert "joined[576 + i] = hidden[i].to(Float32)" in text
    assert "frag.load(joined, W)" in text


def test_a_piece_that_vectors_of_8_cannot_be_read_from() -> None:
    @cf.fusion
    def odd(m: cf.ModelConfig, batch: int) -> cf.Outputs:
        x = cf.input("x", (batch, m.hidden + 4))
        _, rest = cf.split(x, (4, m.hidden), dim=1)
        return cf.outputs(y=cf.linear(rest, cf.weight("w", (m.hidden, m.hidden)), shard="out"))

    with pytest.raises(NotLowered, match="it is read 8 elements at a time, and starts at element 4 of what it is cut from"):
        source(odd)


@pytest.mark.compile
@pytest.mark.parametrize("spec", [fused_qkv, fused_ffn, two_inputs], ids=lambda spec: spec.name)
def test_they_compile(spec: cf.Fusion) -> None:
    assert cf.compile(spec, "smollm2-135m", part="h200").spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qkv", "ffn", "draft"])
def test_on_the_gpu(name: str) -> None:
    import torch

    spec, tensors, want = case(name, "cuda")
    kernel = cf.compile(spec, "smollm2-135m")
    kernel(**tensors)
    torch.cuda.synchronize()
    assert error(tensors["y"], want) <= LIMIT["bf16"]
    assert kernel.status() == ()
