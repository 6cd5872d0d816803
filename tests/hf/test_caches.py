"""The tensors inside a cache, under the names of every version of transformers that is known: the installed one has some of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cfdsl.hf.caches import has_tokens, static_tensors, tokens_before

KEYS, VALUES = torch.zeros(1, 2, 8, 64), torch.zeros(1, 2, 8, 64)


class StaticLayer(SimpleNamespace):
    """A layer of a version that has layers."""


class StaticCache(SimpleNamespace):
    """A cache of either kind."""

    def get_seq_length(self) -> int:
        return 5


def layered(**fields: Any) -> Any:
    return StaticCache(layers=[StaticLayer(**{"keys": KEYS, "values": VALUES, **fields})])


@pytest.mark.parametrize(
    ("cache", "holds"),
    [
        (None, False),
        (layered(is_initialized=True), True),
        (layered(is_initialized=False), False),
        (layered(), True),  # of a version whose layers do not say
        (layered(keys=None), False),
        (StaticCache(layers=[]), False),
        (StaticCache(key_cache=[KEYS]), True),
        (StaticCache(key_cache=[]), False),
        (StaticCache(key_cache=[[]]), False),
        (StaticCache(key_cache=[KEYS[:, :, :0]]), False),
        (((KEYS, VALUES),), True),
    ],
)
def test_whether_a_call_continues_a_sequence(cache: Any, holds: bool) -> None:
    assert has_tokens(cache) is holds


@pytest.mark.parametrize("cache", [layered(), StaticCache(key_cache=[KEYS], value_cache=[VALUES])], ids=["layers", "lists"])
def test_the_tensors_of_either_kind(cache: Any) -> None:
    found = static_tensors(cache)
    assert found is not None
    [(keys, values)] = found.layers
    assert keys is KEYS
    assert values is VALUES
    assert (found.counters, found.sliding, found.capacity) == ((), (), 8)
    assert found.still_in(cache)


@pytest.mark.parametrize(
    "cache",
    [
        StaticCache(layers=[]),
        layered(keys=None, values=None),  # no call has initialised it
        layered(keys=KEYS[0], values=VALUES[0]),
        StaticCache(layers=[SimpleNamespace(keys=KEYS, values=VALUES)]),
        StaticCache(key_cache=[], value_cache=[]),
        SimpleNamespace(key_cache=[KEYS], value_cache=[VALUES]),
        ((KEYS, VALUES),),
    ],
)
def test_what_is_no_static_cache_or_not_ready(cache: Any) -> None:
    assert static_tensors(cache) is None


def test_tokens_are_counted_by_the_layers_or_told_by_the_call_or_asked_of_the_cache() -> None:
    count, position = torch.tensor(3), torch.tensor([4])
    for cache, call, want in (
        (layered(cumulative_length=count), {"cache_position": position}, count),
        (layered(cumulative_length=3), {"cache_position": position}, position),  # a number on the host does not count along
        (layered(), {"cache_position": None}, 5),
        (layered(), {}, 5),
    ):
        found = static_tensors(cache)
        assert found is not None
        got = tokens_before(cache, found, call)
        assert got is want or got == want
