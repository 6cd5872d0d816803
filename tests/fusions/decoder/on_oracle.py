"""A tiny model's decoder on the oracle, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from plain_model import random_weights
from torch import Tensor

import cfdsl as cf
from fusions.decoder import Decoder

TINY = cf.ModelConfig(
    "tiny", 128, 4, 2, 64, layers=2, intermediate=192, vocab=320, tied_embeddings=True, rope_theta=100.0, max_positions=64
)  # fmt: skip
PROMPT = [5, 200, 17]


def make(model: cf.ModelConfig = TINY, dtype: str = "f16", capacity: int = 24, **how: Any) -> Decoder:
    weights = how.pop("weights", None) or random_weights(model, dtype)
    return Decoder(model, weights, capacity=capacity, dtype=dtype, backend="oracle", **how)


def run(decoder: Decoder, prompt: Sequence[int], new: int) -> tuple[list[int], Tensor]:
    """Tokens and logits (new, vocab) of greedy decoding, step by step from the outside."""
    tokens, logits = [], []
    decoder.reset()
    for token in prompt:
        decoder.token.fill_(token)
        decoder.step()
    for _ in range(new):
        logits.append(decoder.logits[0].clone())
        tokens.append(int(decoder.next_token))
        decoder.advance()
        decoder.step()
    return tokens, torch.stack(logits)
