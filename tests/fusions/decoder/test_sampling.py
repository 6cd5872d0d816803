"""Greedy and random choice of the next token: which tokens may come up, how often, and that a seed repeats them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cfdsl.errors import ArgumentError, Errors
from fusions.decoder import Sampler, greedy

DRAWS = 20_000
P = torch.tensor([0.4, 0.05, 0.3, 0.15, 0.1])
LOGITS = P.log()[None].expand(DRAWS, -1)


def frequencies(**how: Any) -> torch.Tensor:
    """How often each token comes up, in one call of many rows."""
    tokens = Sampler(generator=torch.Generator().manual_seed(3), **how)(LOGITS)
    assert tokens.shape == (DRAWS,)
    assert tokens.dtype == torch.int32
    return tokens.bincount(minlength=len(P)) / DRAWS


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=4 * 0.5 / DRAWS**0.5)  # four deviations
    assert (got[want == 0] == 0).all()


def test_plain_sampling_has_the_models_distribution() -> None:
    close(frequencies(), P)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature(temperature: float) -> None:
    close(frequencies(temperature=temperature), (P.log() / temperature).softmax(-1))


def test_top_k_keeps_the_likeliest() -> None:
    kept = torch.tensor([0.4, 0, 0.3, 0.15, 0])
    close(frequencies(top_k=3), kept / kept.sum())
    close(frequencies(top_k=99), P)


@pytest.mark.parametrize(("top_p", "kept"), [(0.39, [0]), (0.41, [0, 2]), (0.75, [0, 2, 3]), (0.99, [0, 1, 2, 3, 4]), (1e-9, [0])])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    want = torch.zeros_like(P)
    want[kept] = P[kept]
    close(frequencies(top_p=top_p), want / want.sum())


def test_top_p_counts_what_temperature_and_top_k_left() -> None:
    """At temperature 2 the square roots; of the first three 0.42, 0.36, 0.22 after renormalising."""
    want = torch.tensor([0.4, 0, 0.3, 0, 0]).sqrt()
    close(frequencies(temperature=2.0, top_k=3, top_p=0.7), want / want.sum())


def test_a_seed_repeats_the_draws_and_another_does_not() -> None:
    draws = [Sampler(generator=torch.Generator().manual_seed(seed))(LOGITS) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_extreme_logits() -> None:
    """A token that cannot come up never does, and huge logits overflow nothing."""
    logits = torch.full((1000, 50), float("-inf"))
    logits[:, 7], logits[:, 8] = 3e38, -3e38
    for how in ({}, {"top_k": 5}, {"top_p": 0.9}):
        assert Sampler(generator=torch.Generator().manual_seed(0), **how)(logits).unique().tolist() == [7]  # type: ignore[arg-type]


def test_the_smallest_temperature_takes_the_likeliest() -> None:
    logits = torch.tensor([[19.0, 20.0, 20.0 - 1e-5, 3.0]])
    assert Sampler(temperature=1.2e-38)(logits.expand(1000, -1)).unique().tolist() == [1]


@pytest.mark.parametrize("how", [{}, {"top_k": 2}, {"top_p": 0.9}, {"temperature": 1e-30}])
def test_logits_that_are_not_numbers_give_no_token(how: dict[str, Any]) -> None:
    nan, low = float("nan"), float("-inf")
    rows = torch.tensor([[1.0, nan, 2.0, 3.0], [nan] * 4, [low] * 4, [low, 5.0, low, low]])
    assert Sampler(**how)(rows).tolist() == [-1, -1, -1, 1]


def test_greedy_takes_the_first_of_equals() -> None:
    assert greedy(torch.tensor([[1.0, 3.0, 2.0, 3.0]])).tolist() == [1]
    assert greedy(torch.zeros(2, 9)).dtype == torch.int32


def test_numbers_out_of_range_are_all_named() -> None:
    with pytest.raises(Errors) as caught:
        Sampler(temperature=0.0, top_k=-1, top_p=0.0)
    assert [error.argument for error in caught.value.errors] == ["temperature", "top_k", "top_p"]  # type: ignore[attr-defined]
    with pytest.raises(ArgumentError, match="pass `greedy` as the sampler"):
        Sampler(temperature=0)
    for wrong in ("1", None, True, 1e-46, float("inf"), float("nan")):
        with pytest.raises(ArgumentError, match="argument 'temperature' must be a positive float32 number"):
            Sampler(temperature=wrong)  # type: ignore[arg-type]
    with pytest.raises(Errors) as caught:
        Sampler(top_p="a", generator=3)  # type: ignore[arg-type]
    assert [error.argument for error in caught.value.errors] == ["top_p", "generator"]  # type: ignore[attr-defined]
