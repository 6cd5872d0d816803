"""What a decoder is held against: the model written plainly in PyTorch, random weights for it, and the rule for comparing tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import cfdsl as cf
from fusions.decoder import weight_shapes
from fusions.decoder.weights import DTYPES

NAMES = (
    "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
    "self_attn.v_proj.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
    "self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias",
)  # fmt: skip


def random_weights(model: cf.ModelConfig, dtype: str = "bf16", device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Normals, made on the device, scaled so that the residual stream grows to about 1 and attention's scores are as sharp as a model's."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(model).items():
        normal = torch.randn(shape, generator=generator, device=device, dtype=DTYPES[dtype])
        if "norm" in name:
            weights[name] = normal.mul_(0.1).add_(1)
        elif name.endswith("bias"):
            weights[name] = normal.mul_(0.1)
        else:
            scale = 1 / math.sqrt(shape[-1])
            if "o_proj" in name or "down_proj" in name:
                scale /= math.sqrt(2 * model.layers)
            weights[name] = normal.mul_(2.5 * scale if "q_proj" in name else scale)
    return weights


class PlainModel:
    """One token after another with a KV cache, in `dtype` throughout: float32 is the truth, a 16-bit dtype shows what rounding does."""

    def __init__(self, model: cf.ModelConfig, weights: Mapping[str, Tensor], capacity: int, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.dtype, self.length = model, dtype, 0
        self.weights = {name: weight.to(dtype) for name, weight in weights.items()}
        self.layers = [
            {name: self.weights[f"model.layers.{layer}.{name}"] for name in NAMES if f"model.layers.{layer}.{name}" in self.weights}
            for layer in range(model.layers)
        ]
        shape = (model.layers, 2, 1, model.kv_heads, capacity, model.head_dim)
        device = weights["model.norm.weight"].device
        self.cache = torch.zeros(shape, dtype=dtype, device=device)
        angles = torch.arange(capacity, dtype=torch.float64)[:, None] * torch.tensor(cf.rope_inv_freq(model), dtype=torch.float64)
        self.cos, self.sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def step(self, token: Tensor) -> Tensor:
        """The logits (vocab,) after `token` (1,), which becomes the last one in the cache."""
        m = self.model
        x = F.embedding(token.long(), self.weights["model.embed_tokens.weight"])
        for layer, w in enumerate(self.layers):
            x = x + self._attention(layer, w, F.rms_norm(x, (m.hidden,), w["input_layernorm.weight"], m.norm_eps))
            n = F.rms_norm(x, (m.hidden,), w["post_attention_layernorm.weight"], m.norm_eps)
            gate = F.linear(n, w["mlp.gate_proj.weight"])
            gate = F.silu(gate) if m.activation == "silu" else F.gelu(gate, approximate="tanh")
            x = x + F.linear(gate * F.linear(n, w["mlp.up_proj.weight"]), w["mlp.down_proj.weight"])
        self.length += 1
        head = self.weights["model.embed_tokens.weight" if m.tied_embeddings else "lm_head.weight"]
        return F.linear(F.rms_norm(x, (m.hidden,), self.weights["model.norm.weight"], m.norm_eps), head)[0]

    def _attention(self, layer: int, w: Mapping[str, Tensor], n: Tensor) -> Tensor:
        weights = ((w[f"self_attn.{name}_proj.weight"], w.get(f"self_attn.{name}_proj.bias")) for name in "qkv")
        q, k, v = (F.linear(n, weight, bias).view(-1, self.model.head_dim) for weight, bias in weights)
        keys, values = self.cache[layer]
        keys[0, :, self.length], values[0, :, self.length] = self._rotated(k), v
        held = (cache[:, :, : self.length + 1] for cache in (keys, values))
        o = F.scaled_dot_product_attention(self._rotated(q)[None, :, None], *held, enable_gqa=True)
        return F.linear(o.reshape(1, -1), w["self_attn.o_proj.weight"])

    def _rotated(self, x: Tensor) -> Tensor:
        """x (heads, head_dim) turned to the position that the cache's length says."""
        c, s = self.cos[self.length], self.sin[self.length]
        if self.model.rope_style == "interleaved":
            a, b = x[:, 0::2], x[:, 1::2]
            return torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat((a * c - b * s, b * c + a * s), -1)


def logits_of(model: PlainModel, tokens: Tensor, last: int) -> Tensor:
    """The logits (last, vocab) f32 after each of the last `last` of `tokens` (n,), fed one by one: teacher forcing."""
    found = [model.step(token) for token in tokens.split(1)]
    return torch.stack(found[-last:]).float()


NOISES = 5  # the difference of two logits is off by the square root of 2 times as much as each: 3.5 of its standard deviations
CONTENDERS = 100


@dataclass(frozen=True)
class Agreement:
    """How a 16-bit decode compares with the truth, step by step.

    errors      relative L2 error of each step's logits; plain_errors: of the same model in 16-bit PyTorch
    decisive    steps at which rounding as PyTorch's hardly changes the token: the best two logits of the truth are further apart than
                NOISES times the error that 16-bit PyTorch makes in that step, as root mean square over the CONTENDERS greatest logits
    exceptions  decisive steps at which the token is not the truth's
    equal       steps at which it is, of all
    """

    errors: Sequence[float]
    plain_errors: Sequence[float]
    decisive: int
    exceptions: int
    equal: int

    def __str__(self) -> str:
        steps = len(self.errors)
        kernel, plain = (f"mean {sum(e) / steps:.2e}, max {max(e):.2e}" for e in (self.errors, self.plain_errors))
        tokens = f"{self.equal} of {steps} tokens equal, {self.exceptions} exceptions among {self.decisive} decisive steps"
        return f"{tokens}; relative error of the logits: {kernel} (16-bit PyTorch: {plain})"


def agreement(got: Tensor, truth: Tensor, plain: Tensor) -> Agreement:
    """Compare logits (steps, vocab) f32: of the decoder, of float32, and of 16-bit PyTorch, all fed the same tokens."""
    best = truth.topk(min(CONTENDERS, truth.shape[-1]), -1)
    noise = (plain - truth).gather(-1, best.indices).square().mean(-1).sqrt()
    decisive = best.values[:, 0] - best.values[:, 1] > NOISES * noise
    same = got.argmax(-1) == truth.argmax(-1)
    errors, plain_errors = (((of - truth).norm(dim=-1) / truth.norm(dim=-1)).tolist() for of in (got, plain))
    return Agreement(errors, plain_errors, int(decisive.sum()), int((decisive & ~same).sum()), int(same.sum()))
