"""What a caller of `generate` asks for: tokens as they come, and everything that is wrong with them, before anything runs."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

import cfdsl as cf

FLAT = "a flat sequence of tokens"


def token_list(given: Any) -> list[Any] | None:
    """The elements of a tensor (n,), or of anything else that can be gone through and is no text, as a list; None for what cannot."""
    if isinstance(given, Tensor):
        return list(given.tolist()) if given.dim() == 1 else None
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        return None
    return list(given)


def end_list(eos: Any) -> list[Any]:
    """`eos` as a list: one token is as good as several."""
    several = [] if eos is None else token_list(eos)
    return [eos] if several is None else several


def choice_errors(sampler: Any, prefill: Any, ends: list[Any]) -> Iterator[cf.CfdslError]:
    """A sampler or a prefill that cannot be called, ends that are no tokens."""
    if sampler is not None and not callable(sampler):
        yield argument_error("sampler", "None or a function of logits, such as fusions.decoder.Sampler(temperature=0.8)", sampler)
    if prefill is not None and not callable(prefill):
        yield argument_error("prefill", "None or a function of the prompt, which returns how many of its tokens are in the caches", prefill)
    strange = [end for end in ends if not whole(end)]
    if strange:
        yield cf.errors.ArgumentError(argument="eos", expected="a token, or several", got=_some(strange))


def room_errors(model: cf.ModelConfig, capacity: int, given: Any, prompt: list[Any] | None, new: Any) -> Iterator[cf.CfdslError]:
    """A prompt that is not one sequence of the model's tokens, or has no room together with `new` ones. prompt: `given` as a list, if it
    can be one."""
    yield from _not_one(given) if prompt is None else _token_errors(model, prompt)
    if not cf.errors.is_whole(new, 1):
        yield argument_error("max_new_tokens", "a positive number", new)
    elif prompt and len(prompt) + new > capacity:
        yield cf.errors.CapacityExceeded(prompt=len(prompt), new=new, capacity=capacity)


def _not_one(given: Any) -> Iterator[cf.CfdslError]:
    """A prompt that is no sequence."""
    if isinstance(given, (str, bytes)):
        yield argument_error("prompt_ids", "tokens, which a tokenizer makes of a text", given)
    elif isinstance(given, Tensor) and given.dim() == 2:
        yield from _batch_errors(len(given))
    elif isinstance(given, Tensor):
        yield cf.errors.ArgumentError(argument="prompt_ids", expected=FLAT, got=f"a tensor of shape {tuple(given.shape)}")
    else:
        yield argument_error("prompt_ids", FLAT, given)


def _token_errors(model: cf.ModelConfig, prompt: list[Any]) -> Iterator[cf.CfdslError]:
    if any(map(_row, prompt)):
        yield from _batch_errors(len(prompt))
        return
    if not prompt:
        yield cf.errors.ArgumentError(argument="prompt_ids", expected="at least one token", got="none")
    strange = [token for token in prompt if not whole(token)]
    if strange:
        yield cf.errors.ArgumentError(argument="prompt_ids", expected=f"{FLAT}, which are whole numbers", got=_some(strange))
    outside = [int(token) for token in prompt if whole(token) and not 0 <= int(token) < model.vocab]
    if outside:
        yield cf.errors.ArgumentError(argument="prompt_ids", expected=f"tokens from 0 to {model.vocab - 1}", got=_some(outside))


def _batch_errors(batch: int) -> Iterator[cf.CfdslError]:
    if batch == 1:
        yield cf.errors.ArgumentError(argument="prompt_ids", expected=FLAT, got="a batch of one such sequence")
    else:
        yield cf.errors.BatchUnsupported(batch=batch)


def _row(value: Any) -> bool:
    """Whether this is several tokens in the place of one."""
    if isinstance(value, Tensor):
        return value.dim() > 0
    return isinstance(value, Collection) and not isinstance(value, (str, bytes))


def whole(value: Any) -> bool:
    """Whether a token is a whole number, of whatever type."""
    try:
        operator.index(value)
    except (TypeError, ValueError):
        return False
    return True


def _some(values: list[Any], shown: int = 8) -> str:
    """Values for a message, which a long prompt must not flood."""
    return f"{values[:shown]}" + (f" and {len(values) - shown} more" if len(values) > shown else "")


def argument_error(name: str, expected: str, got: object) -> cf.CfdslError:
    """An argument that is not what it must be, told by its repr."""
    return cf.errors.ArgumentError(argument=name, expected=expected, got=repr(got))
