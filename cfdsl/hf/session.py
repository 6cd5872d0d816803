"""One cache's decode: the Decoder on its tensors, the captured graph, and the watch over what only the device can see."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cfdsl.errors import DecodeRefused
from cfdsl.hf.caches import StaticTensors
from cfdsl.hf.call_checks import causal
from cfdsl.models import ModelConfig


def decoder_class() -> Any:
    """fusions.decoder.Decoder: fusions lie above this floor, so they are found by name, at run time."""
    return importlib.import_module("fusions.decoder").Decoder


class Session:
    """A Decoder whose caches are the tensors of one StaticCache, `found`. With other ones, or other weights, it is of no use: a graph has
    them captured."""

    def __init__(self, sizes: ModelConfig, weights: Mapping[str, Tensor], found: StaticTensors, dtype: str, backend: str) -> None:
        self.found = found
        how: dict[str, Any] = {"capacity": found.capacity, "dtype": dtype, "caches": list(found.layers), "backend": backend}
        self.decoder = decoder_class()(sizes, weights, **how)
        self.capacity = found.capacity
        self.on_gpu = found.layers[0][0].is_cuda
        self._replay: Callable[[], Any] | None = None
        self._fine = torch.ones((), dtype=torch.bool, device=found.layers[0][0].device)
        self._seen = torch.ones((), dtype=torch.bool, pin_memory=self.on_gpu)
        self._calls = 0

    def begin(self, length: Tensor | int, mask: Tensor | None, position_ids: Tensor | None) -> None:
        """Set the length, from device to device, and look at what the call attends to.

        Masks, positions and lengths are on the device, and waiting for them would cost more than the check: so the first call with a
        cache waits, and any later one is refused by the call after it. (generate() waits for the token in between.)
        """
        held = self.decoder.length
        if isinstance(length, Tensor):
            held.copy_(length.reshape(-1)[-1:])
        else:
            held.fill_(length)
        if not bool(self._seen):  # on the host: a copy of the flag that an earlier call sent
            self._forget()
            raise _unlike(self.capacity)
        good = causal(mask, position_ids, held[0], self.capacity)
        self._calls += 1
        if not self.on_gpu or self._calls == 1:
            if not bool(good):
                self._calls = 0
                raise _unlike(self.capacity)
            return
        self._fine.logical_and_(good)
        self._seen.copy_(self._fine, non_blocking=True)

    def _forget(self) -> None:
        torch.cuda.synchronize()
        self._fine.fill_(True)
        self._seen.fill_(True)
        self._calls = 0

    def step(self, ids: Tensor) -> Tensor:
        """One decode step for token `ids` (1, 1), after `begin`. Returns the decoder's own logits (1, vocab) f32: the next step writes
        them again."""
        self.decoder.token.copy_(ids.reshape(-1))
        if not self.on_gpu:
            self.decoder.step()
        else:
            self._replay = self._replay or self.decoder.capture(advance=False)  # which runs nothing, and leaves token and length
            self._replay()
        logits: Tensor = self.decoder.logits
        return logits


def _unlike(capacity: int) -> DecodeRefused:
    return DecodeRefused(
        problem="this call, or one just before it with this cache, attends to other tokens than all that are cached and its own: "
        f"padding in attention_mask, a position other than the cache's length, or more than the {capacity} tokens it has room for",
        advice="give one sequence without padding, positions as Hugging Face counts them, and a StaticCache that is long enough",
    )
