"""fusions.decoder.Decoder's face over plain PyTorch in float32: for tests where the kernels are not the point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cfdsl as cf

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


class PlainDecoder:
    """One token per step, in float32 from the weights as they are; caches rounded to their dtype."""

    made: list[PlainDecoder] = []

    def __init__(
        self, model: cf.ModelConfig, weights: Mapping[str, Tensor], *, capacity: int, dtype: str = "bf16", caches: Any = None,
        backend: str = "kernel", part: Any = None, layers: str = "whole", settings: Any = None,
    ) -> None:  # fmt: skip
        self.model, self.weights, self.capacity, self.backend = model, dict(weights), capacity, backend
        device = weights["model.norm.weight"].device
        shape = (1, model.kv_heads, capacity, model.head_dim)
        self.caches = caches or [tuple(torch.zeros(shape, dtype=DTYPES[dtype], device=device) for _ in "kv") for _ in range(model.layers)]
        self.token, self.length = (torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2))
        self.next_token = torch.zeros_like(self.token)
        self.logits = torch.zeros(1, model.vocab, device=device)
        self.steps, self.layers, self.settings = 0, layers, settings
        PlainDecoder.made.append(self)

    def step(self) -> None:
        m, at = self.model, int(self.length)
        x = self._weight("model.embed_tokens.weight")[int(self.token)]
        angles = at * torch.tensor(cf.rope_inv_freq(m))
        for layer, (keys, values) in enumerate(self.caches):
            w = {n: self._weight(f"model.layers.{layer}.{n}.weight") for n in LAYER}
            n = F.rms_norm(x, (m.hidden,), w["input_layernorm"], m.norm_eps)
            q, k, v = (F.linear(n, w[f"self_attn.{name}_proj"], self._bias(layer, name)).view(-1, m.head_dim) for name in "qkv")
            q, k = (rotated(each, angles) for each in (q, k))
            keys[0, :, at], values[0, :, at] = k, v
            held = keys[:, :, : at + 1].float(), values[:, :, : at + 1].float()
            o = F.scaled_dot_product_attention(q[None, :, None], *held, enable_gqa=True)
            x = x + F.linear(o.flatten(), w["self_attn.o_proj"])
            n = F.rms_norm(x, (m.hidden,), w["post_attention_layernorm"], m.norm_eps)
            x = x + F.linear(F.silu(F.linear(n, w["mlp.gate_proj"])) * F.linear(n, w["mlp.up_proj"]), w["mlp.down_proj"])
        head = self._weight("model.embed_tokens.weight" if m.tied_embeddings else "lm_head.weight")
        self.logits.copy_(F.linear(F.rms_norm(x, (m.hidden,), self._weight("model.norm.weight"), m.norm_eps), head)[None])
        self.next_token.copy_(self.logits.argmax(-1))
        self.length += 1
        self.steps += 1

    def status(self, clear: bool = False) -> tuple[str, ...]:
        return ()

    def advance(self) -> None:
        self.token.copy_(self.next_token)

    def generate(
        self, prompt_ids: Sequence[int], max_new_tokens: int, *, sampler: Callable[[Tensor], Tensor] | None = None, eos: Any = None,
        prefill: Any = None,
    ) -> Iterator[int]:  # fmt: skip
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        self.length.zero_()
        for token in prompt_ids:
            self.token.fill_(token)
            self.step()
        for left in reversed(range(max_new_tokens)):
            found = int(sampler(self.logits) if sampler else self.next_token)
            yield found
            if found in ends or not left:
                return
            self.token.fill_(found)
            self.step()

    def _weight(self, name: str) -> Tensor:
        return self.weights[name].float()

    def _bias(self, layer: int, name: str) -> Tensor | None:
        return self._weight(f"model.layers.{layer}.self_attn.{name}_proj.bias") if self.model.qkv_bias else None


LAYER = (
    "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x (heads, head_dim), its halves as pairs, by `angles`."""
    a, b = x.chunk(2, -1)
    c, s = angles.cos(), angles.sin()
    return torch.cat((a * c - b * s, b * c + a * s), -1)
