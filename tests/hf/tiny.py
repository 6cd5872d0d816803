"""A tiny Llama or Mistral with random weights whose logits are far apart, and how two runs of generate() are compared."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

PROMPT = [[3, 1, 4, 1, 5, 9, 2, 6]]
SIZES = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "vocab_size": 96, "max_position_embeddings": 256, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


def tiny(kind: str = "Llama", dtype: torch.dtype = torch.bfloat16, device: str = "cpu", **changed: Any) -> Any:
    """A model in eval mode; matrices of deviation 1 / sqrt(in), so that every layer matters."""
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changed})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            made = torch.randn(weight.shape, generator=generator)
            weight.copy_(made / weight.shape[-1] ** 0.5 if weight.dim() == 2 else 1 + 0.1 * made)
        model.model.embed_tokens.weight.mul_(6)
    return model.to(dtype).to(device).eval()


def generated(model: Any, tokens: int = 12, **how: Any) -> tuple[list[int], list[Tensor]]:
    """Greedy tokens, and the logits (vocab,) that each was chosen from."""
    asked = {"cache_implementation": "static", "do_sample": False, "output_logits": True, "return_dict_in_generate": True, **how}
    prompt = torch.tensor(PROMPT, device=model.device)
    with torch.no_grad():
        found = model.generate(prompt, max_new_tokens=tokens, attention_mask=torch.ones_like(prompt), **asked)
    return found.sequences[0, prompt.shape[1] :].tolist(), [step[0].float() for step in found.logits]


def assert_same(ours: tuple[list[int], list[Tensor]], theirs: tuple[list[int], list[Tensor]], noise: float = 3e-2) -> None:
    """Near logits and equal tokens, up to a step where they part: there the two best logits are nearer than `noise` of their deviation."""
    compared = 0
    for a, b, x, y in zip(*ours[:1], *theirs[:1], ours[1], theirs[1], strict=True):
        assert (x - y).norm() <= noise * y.norm(), f"step {compared}: logits differ by {float((x - y).norm() / y.norm()):.1e}"
        compared += 1
        if a != b:
            best = y.topk(2).values
            margin = float((best[0] - best[1]) / y.std())
            assert margin < noise, f"step {compared - 1}: {a} instead of {b}, which is ahead by {margin:.1e} of the deviation"
            break
    assert compared >= len(theirs[0]) // 2, "the margins are too small for this to be a test"
