"""From a prompt to tokens and back: a folder's tokenizer, or plain bytes where a model has random weights and so no language."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from cfdsl.errors import PackageMissing, WeightsUnusable


class Vocabulary(Protocol):
    """What a prompt needs of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...


class FolderVocabulary:
    """The tokenizer of a model's folder: tokenizer.json by the package tokenizers, else whatever transformers can read."""

    def __init__(self, folder: Path) -> None:
        self._fast: Any = None
        if (folder / "tokenizer.json").is_file():
            try:
                from tokenizers import Tokenizer
            except ImportError:
                raise PackageMissing(package="tokenizers", needs="reading tokenizer.json") from None
            self._fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return
        if not any(folder.glob("tokenizer*")):
            raise WeightsUnusable(folder=str(folder), reasons=["there is no tokenizer.json"])
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise PackageMissing(package="transformers", needs="a tokenizer without tokenizer.json") from None
        self._slow: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, with those that the tokenizer puts around it."""
        return list(self._fast.encode(text).ids if self._fast is not None else self._slow(text)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without special ones."""
        decoder = self._fast if self._fast is not None else self._slow
        return str(decoder.decode(tokens, skip_special_tokens=True))


class Bytes:
    """UTF-8 bytes as tokens; tokens as their numbers. For random weights, which have no language."""

    def encode(self, text: str) -> list[int]:
        """One token per byte."""
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        """The numbers, a space after each."""
        return "".join(f"{token} " for token in tokens)


def stream(vocabulary: Vocabulary, tokens: Iterable[int]) -> Iterator[str]:
    """The text as it grows, in pieces, by fusions.decoder, which is found by name: fusions lie above this floor."""
    pieces: Iterator[str] = importlib.import_module("fusions.decoder.text").stream(vocabulary.decode, tokens)
    return pieces
