"""What the decoder says about arguments, caches, weights and settings that are wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from on_oracle import PROMPT, TINY, make
from plain_model import random_weights
from torch import Tensor

from cfdsl.errors import ArgumentError, BatchUnsupported, CapacityExceeded, Errors, TokenOutOfRange, WeightsMismatch
from fusions.decoder import Decoder, Sampler


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
        ({"max_new_tokens": "4"}, "argument 'max_new_tokens' must be a positive number, got '4'."),
        ({"max_new_tokens": 1.5}, "argument 'max_new_tokens' must be a positive number, got 1.5."),
        ({"max_new_tokens": True}, "argument 'max_new_tokens' must be a positive number, got True."),
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
