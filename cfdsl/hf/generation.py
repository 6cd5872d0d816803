"""Everything that `python -m cfdsl generate` does before the first token: sizes, weights, tokens, decoder, sampler."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cfdsl.hf.session import decoder_class
from cfdsl.hf.text import Bytes, FolderVocabulary, Vocabulary
from cfdsl.hf.weights import Progress, end_tokens, folder_weights, nothing, random_weights
from cfdsl.models import PRESETS, ModelConfig

ROUND = 128  # capacities are multiples of this, so that prompts of nearly the same length share kernels


@dataclass(frozen=True)
class Source:
    """A model to generate with: a preset (random weights), or a folder."""

    sizes: ModelConfig
    folder: Path | None

    @classmethod
    def find(cls, name: str) -> Source:
        """A preset by name, else a folder (or the config.json in it). Raises UnknownModel, ModelUnsupported."""
        if name in PRESETS:
            return cls(PRESETS[name], None)
        path = Path(name)
        return cls(ModelConfig.from_hf(path), path if path.is_dir() else path.parent)

    def vocabulary(self) -> Vocabulary:
        """The folder's tokenizer; bytes for a preset."""
        return Bytes() if self.folder is None else FolderVocabulary(self.folder)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text."""
        return frozenset() if self.folder is None else end_tokens(self.folder)


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: temperature 0 takes the likeliest; top_k 0 and top_p 1 cut nothing off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def sampler(self, device: torch.device | str) -> Callable[[Any], Any] | None:
        """A sampler for logits on `device`; None for the likeliest token, which the kernel chooses."""
        if self.temperature == 0:
            return None
        generator = torch.Generator(device).manual_seed(self.seed)
        made: Callable[[Any], Any] = importlib.import_module("fusions.decoder").Sampler(self.temperature, self.top_k, self.top_p, generator)
        return made


@dataclass
class Generation:
    """A decoder that is ready, and what it shall continue."""

    decoder: Any
    prompt: list[int]
    count: int
    sampler: Callable[[Any], Any] | None
    ends: frozenset[int]
    converted: tuple[str, ...]

    def tokens(self) -> Iterator[int]:
        """The new tokens; an end token is the last one, if it comes up."""
        yield from self.decoder.generate(self.prompt, self.count, sampler=self.sampler, eos=self.ends or None)

    def flags(self) -> tuple[str, ...]:
        """What the kernels flagged, in words."""
        return tuple(self.decoder.status())


def get_ready(
    source: Source, prompt: list[int], count: int, *, sampling: Sampling, dtype: str, backend: str, progress: Progress = nothing
) -> Generation:
    """Weights, then the decoder (which compiles its kernels, or takes them from the cache)."""
    device = "cpu" if backend == "oracle" else "cuda"
    sampler = sampling.sampler(device)
    converted: tuple[str, ...] = ()
    if source.folder is None:
        weights = random_weights(source.sizes, dtype, device, sampling.seed, progress)
    else:
        weights, converted = folder_weights(source.folder, source.sizes, dtype, device, progress)
    capacity = -(-(len(prompt) + count) // ROUND) * ROUND
    if device == "cuda":
        torch.cuda.synchronize()  # kernels read weights ahead of stream order
    decoder = decoder_class()(source.sizes, weights, capacity=capacity, dtype=dtype, backend=backend)
    return Generation(decoder, prompt, count, sampler, source.ends, converted)
