"""The decoder on the oracle: a whole model's steps against plain PyTorch, and what it does with arguments, caches and ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_model import PlainModel, agreement, logits_of, random_weights
from torch import Tensor

import cfdsl as cf
from cfdsl.errors import ArgumentError, BatchUnsupported, CapacityExceeded, Errors, SequenceSuperseded, TokenOutOfRange, WeightsMismatch
from cfdsl.runtime.flags import STATUS
from fusions.decoder import Decoder, Sampler

TINY = cf.ModelConfig(
    "tiny", 128, 4, 2, 64, layers=2, intermediate=192, vocab=320, tied_embeddings=True, rope_theta=100.0, max_positions=64
)  # fmt: skip
PROMPT = [5, 200, 17]


def make(model: cf.ModelConfig = TINY, dtype: str = "f16", capacity: int = 24, **how: Any) -> Decoder:
    weights = how.pop("weights", None) or random_weights(model, dtype)
    return Decoder(model, weights, capacity=capacity, dtype=dtype, backend="oracle", **how)


def run(decoder: Decoder, prompt: Sequence[int], new: int) -> tuple[list[int], Tensor]:
    """Tokens and logits (new, vocab) of greedy decoding, step by step from the outside."""
    tokens, logits = [], []
    decoder.reset()
    for token in prompt:
        decoder.token.fill_(token)
        decoder.step()
    for _ in range(new):
        logits.append(decoder.logits[0].clone())
        tokens.append(int(decoder.next_token))
        decoder.advance()
        decoder.step()
    return tokens, torch.stack(logits)


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


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompt_ids": []}, "argument 'prompt_ids' must be at least one token, got none."),
        ({"prompt_ids": [3, 320, -1]}, "argument 'prompt_ids' must be tokens from 0 to 319, got [320, -1]."),
        ({"prompt_ids": [[1, 2]]}, "argument 'prompt_ids' must be a flat sequence of tokens, got a batch of one such sequence."),
        ({"prompt_ids": "hi"}, "argument 'prompt_ids' must be tokens, which a tokenizer makes of a text, got 'hi'."),
        ({"prompt_ids": 5}, "argument 'prompt_ids' must be a flat sequence of tokens, got 5."),
        ({"prompt_ids": None}, "argument 'prompt_ids' must be a flat sequence of tokens, got None."),
        ({"prompt_ids": torch.tensor(5)}, "argument 'prompt_ids' must be a flat sequence of tokens, got a tensor of shape ()."),
        ({"prompt_ids": torch.ones(1, 1, 3)}, "argument 'prompt_ids' must be a flat sequence of tokens, got a tensor of shape (1, 1, 3)."),
        ({"prompt_ids": [torch.ones(3)]}, "argument 'prompt_ids' must be a flat sequence of tokens, got a batch of one such sequence."),
        ({"prompt_ids": ["a"]}, "argument 'prompt_ids' must be a flat sequence of tokens, which are whole numbers, got ['a']."),
        ({"prompt_ids": [1, 1.7]}, "argument 'prompt_ids' must be a flat sequence of tokens, which are whole numbers, got [1.7]."),
        ({"prompt_ids": [-1] * 10}, f"argument 'prompt_ids' must be tokens from 0 to 319, got {[-1] * 8} and 2 more."),
        ({"eos": [2, "x"]}, "argument 'eos' must be a token, or several, got ['x']."),
        (
            {"prefill": 2},
            "argument 'prefill' must be None or a function of the prompt, which returns how many of its tokens are in the caches, got 2.",
        ),
        (
            {"sampler": "greedy"},
            "argument 'sampler' must be None or a function of logits, such as fusions.decoder.Sampler(temperature=0.8), got 'greedy'.",
        ),
        ({"max_new_tokens": 0}, "argument 'max_new_tokens' must be a positive number, got 0."),
    ],
)
def test_generate_says_what_is_wrong_before_it_begins(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make().generate(**{"prompt_ids": PROMPT, "max_new_tokens": 4, **how})
    assert caught.value.message == message


def test_what_has_no_room_is_refused_beforehand() -> None:
    decoder = make(capacity=8)
    assert len(list(decoder.generate(PROMPT, 5))) == 5
    with pytest.raises(CapacityExceeded, match="3 tokens of the prompt and 6 new ones do not fit caches of 8 tokens"):
        decoder.generate(PROMPT, 6)


def test_one_sequence_only() -> None:
    for prompt in ([[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]])):
        with pytest.raises(BatchUnsupported, match="a batch of 2 sequences is not supported"):
            make().generate(prompt, 2)
    caches = [tuple(torch.zeros((2, 2, 24, 64), dtype=torch.float16) for _ in "kv") for _ in range(2)]
    with pytest.raises(BatchUnsupported):
        make(caches=caches)


def test_caches_that_do_not_fit_are_all_named() -> None:
    def good() -> Tensor:
        return torch.zeros((1, 2, 24, 64), dtype=torch.float16)

    with pytest.raises(Errors) as caught:
        make(caches=[(good(), good()[:, :, :-1]), (good().float(), good()), (good().to("meta"), good())])
    texts = [error.message for error in caught.value.errors]
    assert texts[0] == "argument 'caches' must be 2 pairs, one per layer, got 3 of them."
    assert [text.partition(" must")[0] for text in texts[1:]] == [f"argument 'caches[{at}'" for at in ("0] v", "1] k", "2] k")]
    assert texts[3].partition(", got ")[2] == "a float16 one on meta of shape (1, 2, 24, 64) and strides (3072, 1536, 64, 1)."
    same = good()
    with pytest.raises(Errors) as caught:
        make(caches=[(same, same), (good(), same)])
    assert [error.message for error in caught.value.errors] == [
        "argument 'caches[0] v' must be a tensor of its own, got that of caches[0] k.",
        "argument 'caches[1] v' must be a tensor of its own, got that of caches[0] k.",
    ]


PAIR = "a pair of tensors, keys and values"


@pytest.mark.parametrize(
    ("caches", "messages"),
    [
        (5, ["argument 'caches' must be 2 pairs, one per layer, got 5."]),
        ([(1, 2), 3], [f"argument 'caches[{at}]' must be {PAIR}, got {got}." for at, got in ((0, (1, 2)), (1, 3))]),
        ([[torch.zeros(1)] * 3] * 2, [f"argument 'caches[{at}]' must be {PAIR}, got 3 tensors." for at in (0, 1)]),
    ],
)
def test_caches_that_are_none(caches: Any, messages: list[str]) -> None:
    with pytest.raises((ArgumentError, Errors)) as caught:
        make(caches=caches)
    assert [error.message for error in getattr(caught.value, "errors", [caught.value])] == messages


def test_a_model_must_be_one() -> None:
    with pytest.raises(ArgumentError, match="argument 'model' must be a ModelConfig, the name of a preset, .*, got None"):
        Decoder(None, {}, capacity=8)  # type: ignore[arg-type]


def test_a_model_must_be_a_whole_one() -> None:
    with pytest.raises(Errors) as caught:
        Decoder(TINY.with_(vocab=0, intermediate=0), {}, capacity=0, backend="oracle")
    assert [error.message for error in caught.value.errors] == [
        "argument 'model' must be one with 'intermediate', got tiny without.",
        "argument 'model' must be one with 'vocab', got tiny without.",
        "argument 'capacity' must be a positive number of tokens, got 0.",
    ]
    assert caught.value.errors[1].remedy == "give its ModelConfig 'vocab', as model.with_(vocab=...) does."


@pytest.mark.parametrize("length", [-1, 25, "8", 1.0, None])
def test_a_length_that_the_caches_cannot_hold(length: Any) -> None:
    decoder = make()
    decoder.reset(24)
    with pytest.raises(ArgumentError, match=r"argument 'length' must be 0 to 24, the decoder's capacity, got"):
        decoder.reset(length)
    assert int(decoder.length) == 24


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (3, "3"),
        (None, "None"),
        (torch.zeros(2, dtype=torch.int32), "a int32 tensor of shape (2,)"),
        (torch.zeros(1), "a float32 tensor of shape (1,)"),
    ],
)
def test_what_a_sampler_returns_must_be_a_token(returned: Any, got: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        list(make().generate(PROMPT, 2, sampler=lambda logits: returned))
    assert caught.value.message == f"argument 'sampler' must be to return a token as a tensor (1,) i32, got {got}."


def test_what_was_chosen_must_be_a_token() -> None:
    decoder = make()
    decoder.generate(PROMPT, 2)
    with pytest.raises(TokenOutOfRange, match="token 320 was chosen, of a vocabulary of 320"):
        list(decoder.generate(PROMPT, 2, sampler=lambda logits: torch.tensor([320])))
    weights = {name: weight * float("nan") for name, weight in random_weights(TINY, "f16").items()}
    with pytest.raises(TokenOutOfRange, match="token -1 was chosen"):
        list(make(weights=weights).generate(PROMPT, 2, sampler=Sampler()))


def test_weights_that_are_no_tensors_and_too_many_problems_for_a_screen() -> None:
    with pytest.raises(ArgumentError, match="argument 'weights' must be a mapping of names to tensors, got str"):
        make(weights="model.safetensors")
    with pytest.raises(WeightsMismatch, match="model.norm.weight: it is no tensor, but list") as caught:
        make(weights={**random_weights(TINY, "f16"), "model.norm.weight": [1.0]})
    assert len(caught.value.problems) == 1
    many = replace(TINY, layers=TINY.layers + 3)
    with pytest.raises(WeightsMismatch) as caught:
        make(many, weights=random_weights(TINY, "f16"))
    assert len(caught.value.problems) == 27
    assert str(caught.value).splitlines()[-3:-1] == [
        "  - model.layers.4.post_attention_layernorm.weight: missing, of shape (128,)",
        "  - and 3 more; `problems` of this error has all",
    ]


def test_the_oracle_cannot_be_captured() -> None:
    with pytest.raises(ArgumentError) as caught:
        make().capture()
    assert str(caught.value) == (
        "argument 'backend' must be 'kernel' for capture(): a CUDA graph is of kernels, got 'oracle'.\n  remedy: call step() instead."
    )


def test_settings_that_make_no_sense_are_all_named() -> None:
    with pytest.raises(Errors) as caught:
        Decoder(TINY, {}, capacity=0, dtype="f64", backend="oracle", part="h100-sxm", settings={"ffn": {}})
    assert [error.argument for error in caught.value.errors] == ["capacity", "dtype", "part", "settings"]  # type: ignore[attr-defined]
    with pytest.raises(Errors) as caught:  # weights are judged beside them, where it is known by what
        Decoder(TINY, {}, capacity=0, backend="oracle", caches=[])
    assert [type(error) for error in caught.value.errors] == [ArgumentError, WeightsMismatch]
    with pytest.raises(ArgumentError, match="argument 'layers' must be 'blocks' or 'whole', got 'fused'"):
        make(layers="fused")
    with pytest.raises(ArgumentError, match="a dictionary by fusion: embedding, decoder_layer, lm_head, got 'ffn_block'"):
        make(settings={"ffn_block": {}})
    with pytest.raises(ArgumentError, match="argument 'backend' must be 'kernel' or 'oracle', got 'gpu'"):
        Decoder(TINY, {}, capacity=8, backend="gpu")


def test_what_a_step_needs_of_its_fusions_is_not_for_settings() -> None:
    how = {
        "attention_block": {"layout": "bthd", "residual": True, "qkv": "rows"},
        "lm_head": {"out": "logits", "dtype": "f16"}, "ffn_block": 3,
    }  # fmt: skip
    with pytest.raises(Errors) as caught:
        make(layers="blocks", settings=how)
    assert [error.message for error in caught.value.errors] == [
        "argument \"settings['attention_block']['layout']\" must be 'bhtd', which the rest of a step needs, got 'bthd'.",
        "argument \"settings['attention_block']['residual']\" must be False, which the rest of a step needs, got True.",
        "argument \"settings['lm_head']['out']\" must be 'both', which the rest of a step needs, got 'logits'.",
        "argument \"settings['lm_head']['dtype']\" must be what the decoder itself says, got 'f16'.",
        "argument \"settings['ffn_block']\" must be a dictionary of options of ffn_block and fields of its config, got 3.",
    ]
    with pytest.raises(ArgumentError, match="must be 'both'.*got 'token'"):
        make(settings={"lm_head": {"out": "token"}})
    with pytest.raises(ArgumentError, match="must be 'bhtd'.*got 'bthd'"):
        make(settings={"decoder_layer": {"layout": "bthd"}})
    with pytest.raises(ArgumentError, match="argument 'settings' must be a dictionary by fusion: embedding.*got 'rows'"):
        make(settings="rows")
    make(settings={"lm_head": {"out": "both"}})  # as it is anyway


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
