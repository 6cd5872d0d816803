"""Calls of a model with a StaticCache, and what is refused about a model or a call."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from tiny import PROMPT

from cfdsl.errors import DecodeRefused, Errors, ModelUnsupported, PatchRefused
from cfdsl.hf import patch


def static(model: Any, tokens: int = 64) -> Any:
    wanted = {"max_batch_size": 1, "device": model.device, "dtype": model.dtype}  # which versions before 4.56 ask for
    known = inspect.signature(transformers.StaticCache.__init__).parameters
    how = {name: value for name, value in wanted.items() if name in known}
    return transformers.StaticCache(config=model.config, max_cache_len=tokens, **how)


def prefilled(model: Any, cache: Any = None) -> Any:
    """A cache with PROMPT in it, by Hugging Face."""
    cache = static(model) if cache is None else cache
    with torch.no_grad():
        model(torch.tensor(PROMPT), past_key_values=cache)
    return cache


def refused(model: Any, ids: Any = None, **call: Any) -> str:
    with torch.no_grad(), pytest.raises((DecodeRefused, Errors)) as caught:
        model(input_ids=torch.tensor([[5]]) if ids is None else ids, **call)
    return str(caught.value)


def patch_refused(model: Any, **how: Any) -> str:
    with pytest.raises((PatchRefused, ModelUnsupported, Errors)) as caught:
        patch(model, **how)
    assert "_cfdsl" not in model.__dict__
    return str(caught.value)


def decoded(model: Any, cache: Any, token: int = 5) -> torch.Tensor:
    """The logits (vocab,) after one more token."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits
    return logits[0, -1].float()
