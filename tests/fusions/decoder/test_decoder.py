"""The decoder on the oracle: a whole model's steps against plain PyTorch, and what it does with prompts, caches and ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from on_oracle import PROMPT, TINY, make, run
from plain_model import PlainModel, agreement, logits_of, random_weights

import cfdsl as cf
from cfdsl.errors import ArgumentError, SequenceSuperseded
from cfdsl.runtime.flags import STATUS
from fusions.decoder import Sampler


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({}, "f16"),
        ({}, "bf16"),
        ({"tied_embeddings": False, "qkv_bias": True, "activation": "gelu_pytorch_tanh", "kv_heads": 1}, "f16"),
        ({"rope_style": "interleaved", "heads": 6, "kv_heads": 3, "hidden": 192}, "f16"),
        ({"rope_scaling": cf.RopeScaling("llama3", 8.0, 1.0, 4.0, 16), "head_dim": 128, "rotary_dim": 128, "layers": 1}, "f16"),
    ],
    ids=["tied", "bf16", "biases", "interleaved", "scaled"],
)
def test_steps_equal_plain_pytorch(fields: dict[str, Any], dtype: str) -> None:
    model, new = TINY.with_(**fields), 12
    weights = random_weights(model, dtype)
    decoder = make(model, dtype, weights=weights)
    tokens, logits = run(decoder, PROMPT, new)
    fed = torch.tensor(PROMPT + tokens[:-1])
    half = torch.float16 if dtype == "f16" else torch.bfloat16
    truth, plain = (logits_of(PlainModel(model, weights, 24, kind), fed, new) for kind in (torch.float32, half))
    found = agreement(logits, truth, plain)
    assert found.exceptions == 0, found
    assert found.decisive >= new // 4, found
    assert max(found.errors) < (2e-3 if dtype == "f16" else 1.5e-2), found
    assert tokens == logits.argmax(-1).tolist()
    assert decoder.status() == ()


@pytest.mark.parametrize("qkv", ["grid", "rows"])
def test_a_layer_as_one_kernel_or_as_two(qkv: str) -> None:
    """The same sums; only that the residual stream is not rounded to 16 bits between the two blocks of a layer."""
    model = TINY.with_(layers=3)  # an odd number: the last layer's result is in the other of the two buffers
    weights = random_weights(model, "f16")
    blocks = make(model, weights=weights, layers="blocks")
    whole = make(model, weights=weights, settings={"decoder_layer": {"qkv": qkv}})
    assert [name for name, _ in whole.kernels] == ["embedding", *["decoder_layer"] * 3, "lm_head"]
    tokens, want = run(blocks, PROMPT, 8)
    for token in PROMPT:
        whole.token.fill_(token)
        whole.step()
    for token, logits in zip(tokens, want, strict=True):  # fed with the other's tokens, so that a tie cannot part their ways
        assert (whole.logits[0] - logits).norm() < 3e-3 * logits.norm()
        whole.token.fill_(token)
        whole.step()


def test_generate_is_the_same_as_steps_and_begins_anew_each_time() -> None:
    decoder = make()
    want, _ = run(decoder, PROMPT, 8)
    assert list(decoder.generate(PROMPT, 8)) == want
    assert list(decoder.generate(torch.tensor(PROMPT), 8)) == want
    assert list(decoder.generate(iter(PROMPT), 8)) == want
    assert int(decoder.length) == len(PROMPT) + 8 - 1  # the last token is not fed


def test_another_cache_content_is_another_result() -> None:
    """What the first tokens were matters for the later ones: the caches are really read."""
    decoder = make()
    _, first = run(decoder, [5, 200, 17], 1)
    _, other = run(decoder, [6, 200, 17], 1)
    assert (first - other).norm() > 1e-2 * first.norm()


def test_eos_ends_it_and_is_yielded() -> None:
    decoder = make()
    want = list(decoder.generate(PROMPT, 8))
    cut = want.index(want[3]) + 1
    assert list(decoder.generate(PROMPT, 8, eos=want[3])) == want[:cut]
    assert list(decoder.generate(PROMPT, 8, eos={want[3], 999999})) == want[:cut]


@pytest.mark.parametrize("of", [torch.tensor, lambda t: torch.tensor([t]), lambda t: [torch.tensor(t)], lambda t: iter([t])])
def test_eos_is_taken_from_whatever_it_is_in(of: Callable[[int], Any]) -> None:
    decoder = make()
    want = list(decoder.generate(PROMPT, 8))
    assert list(decoder.generate(PROMPT, 8, eos=of(want[3]))) == want[: want.index(want[3]) + 1]


def test_of_two_generators_the_one_that_was_superseded_says_so() -> None:
    decoder = make()
    want = list(decoder.generate(PROMPT, 4))
    first, second = decoder.generate(PROMPT, 4), decoder.generate(PROMPT, 4)
    assert [next(first), next(first)] == want[:2]
    assert next(second) == want[0]
    with pytest.raises(SequenceSuperseded, match="begun another sequence since this generator yielded its token 2"):
        next(first)
    assert list(second) == want[1:]  # and is not disturbed
    third = decoder.generate(PROMPT, 4)
    next(third)
    decoder.reset()
    with pytest.raises(SequenceSuperseded):
        next(third)
    fourth = decoder.generate(PROMPT, 1)
    next(fourth)
    decoder.reset()
    assert list(fourth) == []  # it had no more to say


def test_a_sampler_chooses_the_tokens_and_a_seed_repeats_them() -> None:
    decoder = make()
    draws = [list(decoder.generate(PROMPT, 8, sampler=Sampler(2.0, generator=torch.Generator().manual_seed(s)))) for s in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert list(decoder.generate(PROMPT, 8, sampler=Sampler(1.0, top_k=1))) == list(decoder.generate(PROMPT, 8))


def test_prefill_by_the_caller_leaves_the_rest_to_steps() -> None:
    decoder, other = make(), make()
    want = list(decoder.generate(PROMPT, 6))
    asked = []

    def prefill(prompt: Sequence[int]) -> int:
        asked.append(list(prompt))
        for (k, v), (from_k, from_v) in zip(other.caches, decoder.caches, strict=True):
            k[:, :, :2], v[:, :, :2] = from_k[:, :, :2], from_v[:, :, :2]
        return 2

    assert list(other.generate(PROMPT, 6, prefill=prefill)) == want
    assert asked == [PROMPT]
    for count in (3, None):
        with pytest.raises(ArgumentError, match=f"argument 'prefill' must be to return 0 to 2 tokens, got {count}"):
            list(other.generate(PROMPT, 6, prefill=lambda prompt, count=count: count))


def test_the_callers_caches_and_weights_are_used_where_they_are() -> None:
    weights = random_weights(TINY, "f16")
    caches = [tuple(torch.full((1, 2, 24, 64), float("nan"), dtype=torch.float16) for _ in "kv") for _ in range(2)]
    decoder = make(weights=weights, caches=caches)
    want = list(make(weights=weights).generate(PROMPT, 4))
    assert list(decoder.generate(PROMPT, 4)) == want
    for k, v in caches:
        for cache in (k, v):
            assert not cache[:, :, :6].isnan().any()
            assert cache[:, :, 6:].isnan().all()
    where = {tensor.data_ptr() for launch in decoder.launches for tensor in launch.args}
    assert {tensor.data_ptr() for tensor in (*weights.values(), *(cache for pair in caches for cache in pair))} <= where


def test_parameters_and_inference_mode() -> None:
    """A module's weights need no gradient here, and what is made in inference mode works outside of it."""
    weights = random_weights(TINY, "f16")
    want = list(make(weights=weights).generate(PROMPT, 3))
    with torch.inference_mode():
        decoder = make(weights={name: torch.nn.Parameter(tensor) for name, tensor in weights.items()})
    assert list(decoder.generate(PROMPT, 3)) == want
    assert not decoder.logits.requires_grad


@pytest.mark.parametrize(("layers", "each"), [("whole", ["decoder_layer"]), ("blocks", ["attention_block", "ffn_block"])])
def test_launches_come_in_the_models_order_and_share_kernels(layers: str, each: list[str]) -> None:
    decoder = make(layers=layers)
    assert [name for name, _ in decoder.kernels] == ["embedding", *each * 2, "lm_head"]
    assert len({id(kernel) for _, kernel in decoder.kernels}) == 2 + len(each)
    assert [launch.layer for launch in decoder.launches] == [None, *[0] * len(each), *[1] * len(each), None]


@pytest.mark.parametrize("layers", ["blocks", "whole"])
def test_no_kernel_writes_what_it_reads_and_each_reads_what_the_one_before_wrote(layers: str) -> None:
    """What the two activation buffers rely on: a kernel may still be reading its inputs while it stores."""
    before: set[int] = set()
    for launch in make(layers=layers).launches:
        roles = list(zip(launch.kernel.args, launch.args, strict=True))
        written = {tensor.data_ptr() for arg, tensor in roles if arg.role == "output"}
        read = {tensor.data_ptr() for arg, tensor in roles if arg.role in ("input", "weight")}
        assert not written & read
        assert not before or before & read
        before = written


def test_bytes_of_a_step() -> None:
    """All weights once (of the embedding one row more), the cache up to the length, and the small rest."""
    decoder = make(capacity=24)
    weights = sum(tensor.numel() * 2 for tensor in random_weights(TINY).values())
    per_token = TINY.layers * 2 * TINY.kv_heads * TINY.head_dim * 2
    empty = decoder.kernel_bytes(0)
    assert weights + per_token < empty < weights + per_token + 16 * 1024
    assert decoder.kernel_bytes(10) - empty == 10 * per_token
    decoder.reset(10)
    assert decoder.kernel_bytes() == decoder.kernel_bytes(10)


def test_a_full_cache_is_flagged_and_stays_whole() -> None:
    decoder = make(capacity=4)
    list(decoder.generate([1, 2, 3], 1))
    decoder.step()
    assert decoder.status() == ()
    before = [cache.clone() for pair in decoder.caches for cache in pair]
    decoder.step()
    assert int(decoder.length) == 5
    assert decoder.status(clear=True) == (f"decoder_layer: {STATUS[0]}", f"decoder_layer: {STATUS[1]}")
    assert all(torch.equal(a, b) for a, b in zip(before, (cache for pair in decoder.caches for cache in pair)))
    assert decoder.status() == ()


def test_settings_reach_the_fusion_they_name() -> None:
    decoder = make(settings={"decoder_layer": {"cluster_size": 4, "qkv": "rows"}})
    layer = decoder.runners["decoder_layer"]
    assert isinstance(layer, cf.Oracle)
    assert layer.placed.mesh.ranks == 4
    assert list(decoder.generate(PROMPT, 3)) == list(make().generate(PROMPT, 3))


def test_counting_and_advancing_as_one_is_the_same_as_one_after_the_other() -> None:
    one, two = make(), make()
    for decoder in (one, two):
        list(decoder.generate(PROMPT, 1))
    for _ in range(3):
        one.step()
        one.advance()
        two.step_and_advance()
        assert [int(t) for t in (one.token, one.length, one.next_token)] == [int(t) for t in (two.token, two.length, two.next_token)]
    assert int(two.length) == len(PROMPT) + 3
