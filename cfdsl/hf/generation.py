"""Everything that `python -m cfdsl generate` does before the first token: sizes, weights, tokens, decoder, sampler."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cfdsl.errors import ArgumentError, PackageMissing
from cfdsl.hf.session import decoder_class
from cfdsl.hf.step_trace import REPLAYS, trace_step, traced
from cfdsl.hf.text import Bytes, FolderVocabulary, Vocabulary
from cfdsl.hf.weights import Progress, end_tokens, folder_weights, nothing, random_weights
from cfdsl.models import PRESETS, ModelConfig

ROUND = 128  # capacities are multiples of this, so that prompts of nearly the same length share kernels


class Source(Protocol):
    """A model to generate with: its sizes, and whether its weights are random."""

    sizes: ModelConfig
    random: bool

    def vocabulary(self) -> Vocabulary: ...
    def ends(self) -> frozenset[int]: ...
    def weights(self, dtype: str, device: str, seed: int, progress: Progress) -> tuple[dict[str, Tensor], tuple[str, ...]]: ...


def find_source(name: str) -> Source:
    """A preset by name, a .gguf file, else a folder (or the config.json in it).

    Raises UnknownModel, ArgumentError (a .gguf file that is not there), ModelUnsupported, PackageMissing.
    """
    path = Path(name)
    if name in PRESETS:
        return PresetSource(PRESETS[name])
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ArgumentError(argument="model", expected="a .gguf file that exists", got=repr(name))
        return GgufSource(path)
    return FolderSource(path)


class PresetSource:
    """Sizes of a known model with random weights; bytes are its tokens, and no token ends a text."""

    random = True

    def __init__(self, sizes: ModelConfig) -> None:
        self.sizes = sizes

    def vocabulary(self) -> Vocabulary:
        """Bytes in, numbers out."""
        return Bytes()

    def ends(self) -> frozenset[int]:
        """None."""
        return frozenset()

    def weights(self, dtype: str, device: str, seed: int, progress: Progress) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Random ones of `seed`; nothing is converted."""
        return random_weights(self.sizes, dtype, device, seed, progress), ()


class FolderSource:
    """A folder as Hugging Face has it."""

    random = False

    def __init__(self, path: Path) -> None:
        self.sizes, self.folder = ModelConfig.from_hf(path), path if path.is_dir() else path.parent

    def vocabulary(self) -> Vocabulary:
        """The folder's tokenizer."""
        return FolderVocabulary(self.folder)

    def ends(self) -> frozenset[int]:
        """What its configs say."""
        return end_tokens(self.folder)

    def weights(self, dtype: str, device: str, seed: int, progress: Progress) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Those of its safetensors files, and the dtypes that were converted."""
        return folder_weights(self.folder, self.sizes, dtype, device, progress)


class GgufSource:
    """A GGUF file; quantised weights are taken out of their blocks."""

    random = False

    def __init__(self, path: Path) -> None:
        try:
            self._file = importlib.import_module("fusions.decoder.gguf_file").GgufFile(path)
        except ImportError:
            raise PackageMissing(package="gguf", needs="reading a .gguf file") from None
        self.sizes: ModelConfig = self._file.model

    def vocabulary(self) -> Vocabulary:
        """The file's tokenizer."""
        try:
            found: Vocabulary = importlib.import_module("fusions.decoder.text").Text(self._file)
        except ImportError:
            raise PackageMissing(package="tokenizers", needs="the tokenizer of a .gguf file") from None
        return found

    def ends(self) -> frozenset[int]:
        """What the file says."""
        ends: frozenset[int] = getattr(self.vocabulary(), "eos", frozenset())
        return ends

    def weights(self, dtype: str, device: str, seed: int, progress: Progress) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """All of them in `dtype`, and the types that were converted."""
        found: dict[str, Tensor] = self._file.weights(dtype, device)
        progress(len(found), len(found))
        return found, tuple(kind for kind in self._file.types if kind != dtype.upper())


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

    def trace(self) -> list[tuple[str, Any]]:
        """One more step on a timeline, with the prompt and the new tokens in the caches: see `step_trace.trace_step`."""
        return trace_step(self.decoder, len(self.prompt) + self.count)

    def flags(self) -> tuple[str, ...]:
        """What the kernels flagged, in words."""
        return tuple(self.decoder.status())


def get_ready(
    source: Source, prompt: list[int], count: int, *, sampling: Sampling, dtype: str, backend: str, progress: Progress = nothing,
    trace: bool = False,
) -> Generation:  # fmt: skip
    """Weights, then the decoder (which compiles its kernels, or takes them from the cache).

    trace   make one that `Generation.trace` can use
    """
    device = "cpu" if backend == "oracle" else "cuda"
    sampler, ends = sampling.sampler(device), source.ends()
    weights, converted = source.weights(dtype, device, sampling.seed, progress)
    capacity = -(-(len(prompt) + count + (REPLAYS if trace else 0)) // ROUND) * ROUND
    if device == "cuda":
        torch.cuda.synchronize()  # kernels read weights ahead of stream order
    settings = traced("whole") if trace else {}
    decoder = decoder_class()(source.sizes, weights, capacity=capacity, dtype=dtype, backend=backend, settings=settings)
    return Generation(decoder, prompt, count, sampler, ends, converted)
