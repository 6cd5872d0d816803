"""Text to tokens and back, from what a GGUF file says of its model's tokenizer: the package `tokenizers` does the work.

Needs the optional dependencies: pip install -c constraints.txt -e ".[text]".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cfdsl as cf
from fusions.decoder.gguf_file import GgufFile

CONTROL = 3  # llama.cpp's token type of texts like <|im_start|>, which no ordinary text is cut into
PRE_TOKENIZERS = ("gpt-2", "smollm")
BEGIN, ADD_BEGIN, ADD_END = (f"tokenizer.ggml.{key}" for key in ("bos_token_id", "add_bos_token", "add_eos_token"))
UNFINISHED = "\ufffd"  # what the bytes of a character that is not complete yet are decoded to


class Text:
    """The tokenizer and the chat template of a GGUF file.

    eos   the tokens that end an answer
    Raises ModelUnsupported with all the reasons why its texts cannot be cut.
    """

    def __init__(self, file: GgufFile) -> None:
        reasons = list(_unsupported(file))
        if reasons:
            raise cf.errors.ModelUnsupported(name=file.path, reasons=reasons)
        self._tokenizer = _tokenizer(file)
        self._template = file.metadata("tokenizer.chat_template")
        self._begin = int(file.metadata(BEGIN)) if file.metadata(ADD_BEGIN) else None
        self._names = dict(_names(file))
        ends = (file.metadata(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
        self.eos: frozenset[int] = frozenset(int(token) for token in ends if token is not None)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; control tokens in it are recognised. Where the file says that texts begin with a token, that one comes
        first, if it is not there already."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids if self._begin is None or ids[:1] == [self._begin] else [self._begin, *ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the control tokens."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a conversation, up to where the model's answer begins. messages: {"role": ..., "content": ...} each."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self._template is None:
            raise cf.errors.ArgumentError(argument="messages", expected="a text for encode()", got="a chat, and the file has no template")
        template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(self._template)
        return self.encode(template.render(messages=list(messages), add_generation_prompt=True, **self._names))

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text as it comes: see `stream`."""
        return stream(self.decode, tokens)


def stream(decode: Callable[[list[int]], str], tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens while they come, in pieces, each as soon as it is certain: a character of several tokens comes with its last one,
    or as it is if there are no more tokens."""
    # What a token adds may depend on the one before it, such as a space between words: so the tokens of the piece before are decoded with
    # each new one. Not all of them again: that would take longer and longer, in the end longer than a step.
    near: list[int] = []
    shown, text, since = 0, "", 0
    for token in tokens:
        near.append(token)
        text = decode(near)
        if len(text) > shown and not text.endswith(UNFINISHED):
            yield text[shown:]
            near, since = near[since:], len(near) - since
            shown, text = len(decode(near)), ""
    if len(text) > shown:
        yield text[shown:]


def _unsupported(file: GgufFile) -> Iterator[str]:
    kind, cut = file.metadata("tokenizer.ggml.model"), file.metadata("tokenizer.ggml.pre")
    if kind != "gpt2":
        yield f"its tokenizer is {kind!r}; known is gpt2 (byte-level BPE)"
    elif cut not in PRE_TOKENIZERS:
        yield f"its tokenizer cuts words by the rules of {cut!r}; known are {', '.join(PRE_TOKENIZERS)}"
    if file.metadata(ADD_BEGIN) and file.metadata(BEGIN) is None:
        yield f"its texts begin with a token ({ADD_BEGIN}), and it does not say which"
    if file.metadata(ADD_END):
        yield f"its texts end with a token ({ADD_END}), and a prompt must not"


def _names(file: GgufFile) -> Iterator[tuple[str, str]]:
    """What chat templates call the tokens that begin and end a text."""
    texts = file.metadata("tokenizer.ggml.tokens")
    for name in ("bos", "eos"):
        token = file.metadata(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            yield f"{name}_token", texts[token]


def _tokenizer(file: GgufFile) -> Any:
    """Byte-level BPE with the file's vocabulary and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    texts, kinds = file.metadata("tokenizer.ggml.tokens"), file.metadata("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in file.metadata("tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE({text: token for token, text in enumerate(texts)}, merges))
    cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if file.metadata("tokenizer.ggml.pre") == "smollm":  # digits one by one, then as GPT-2
        cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), cut])
    made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text, kind in zip(texts, kinds) if kind == CONTROL])
    return made
