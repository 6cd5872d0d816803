"""From logits to the next token, with torch's ops on the logits' device: nothing here waits for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

import cfdsl as cf

Sample = Callable[[Tensor], Tensor]  # logits (1, vocab) f32 -> token (1,) i32


def greedy(logits: Tensor) -> Tensor:
    """The token of the greatest logit: logits (batch, vocab) -> (batch,) i32."""
    return logits.argmax(-1).int()


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass
class Sampler:
    """Draws a token from softmax(logits / temperature), cut to the likeliest first: logits (batch, vocab) f32 -> (batch,) i32.
    Where a row's logits are not numbers, or none is finite, it is -1: an error would have to wait for the GPU.

    temperature   above 0, and not so small that float32 has no such number; smaller is sharper
    top_k         of the likeliest tokens only so many remain; 0: all
    top_p         of those, the fewest whose probabilities sum to at least this; 1: all. One always remains.
    generator     of the logits' device; seeded, it makes the draws repeatable. None: torch's own

    Raises ArgumentError (Errors with all of them) for a number out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        wrong = []
        if not _number(self.temperature) or not torch.finfo(torch.float32).tiny <= self.temperature < float("inf"):
            wrong.append(("temperature", "a positive float32 number (for the likeliest token each time, pass `greedy` as the sampler)"))
        if not cf.errors.is_whole(self.top_k, 0):
            wrong.append(("top_k", "a number of tokens, or 0 for all"))
        if not _number(self.top_p) or not 0 < self.top_p <= 1:
            wrong.append(("top_p", "a probability above 0, up to 1"))
        generator: object = self.generator  # whatever a caller passed
        if generator is not None and not isinstance(generator, torch.Generator):
            wrong.append(("generator", "a torch.Generator of the logits' device, or None"))
        cf.errors.raise_all(cf.errors.ArgumentError(argument=name, expected=what, got=repr(getattr(self, name))) for name, what in wrong)

    def __call__(self, logits: Tensor) -> Tensor:
        """Draw one token per row."""
        scores = logits.float()
        scores, tokens = self._likeliest((scores - scores.amax(-1, keepdim=True)) / self.temperature)  # up to 0: no quotient overflows
        if self.top_p < 1:
            probabilities = scores.softmax(-1)
            ahead = probabilities.cumsum(-1) - probabilities  # of the tokens before each one
            scores = scores.masked_fill(ahead >= self.top_p, float("-inf"))
        # The Gumbel trick: torch.multinomial would read back whether the probabilities are valid, and so wait for the GPU.
        noise = torch.empty_like(scores).exponential_(generator=self.generator).clamp_min_(torch.finfo(scores.dtype).tiny)
        best, pick = (scores - noise.log()).max(-1, keepdim=True)  # which is NaN where any is
        drawn = pick if tokens is None else tokens.gather(-1, pick)
        return drawn.masked_fill(best.isnan(), -1).squeeze(-1).int()

    def _likeliest(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scores that remain after top_k, greatest first where top_p needs it, and which tokens they are of (None: all, in order)."""
        if 0 < self.top_k < scores.shape[-1]:
            top, tokens = scores.topk(self.top_k, -1)
            return top, tokens
        if self.top_p < 1:
            ordered, tokens = scores.sort(-1, descending=True)
            return ordered, tokens
        return scores, None
