from __future__ import annotations

import json
from pathlib import Path

import pytest

from cfdsl.cli.complaints import BadOption, NoSuchFusion, UnknownName
from cfdsl.cli.request import parse_options, resolve
from cfdsl.errors import ClusterSizeUnsupported, ConfigError, Errors, UnknownModel, UnknownOption, UnknownPart

TWICE = """
import cfdsl as cf

@cf.fusion
def twice(m, batch):
    x = cf.input("x", (batch, m.hidden))
    return cf.outputs(y=x + x)
"""
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "num_hidden_layers": 2, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 128,
}  # fmt: skip


def test_options_become_what_they_look_like() -> None:
    assert parse_options(["qkv=split_k", "n=2", "deep=-3", "fast=true", "slow=False"]) == {
        "qkv": "split_k",
        "n": 2,
        "deep": -3,
        "fast": True,
        "slow": False,
    }


@pytest.mark.parametrize("text", ["qkv", "=rows", "a b=c"])
def test_malformed_options(text: str) -> None:
    with pytest.raises(BadOption, match="--option got"):
        parse_options([text])


def test_a_machine_without_a_gpu_compiles_for_the_default_part_and_says_so() -> None:
    request = resolve(fusion="rms_norm", model="llama-2-7b")
    assert (request.part.name, request.part_from) == ("h100-sxm", "default")
    assert request.part_note == "There is no GPU here: compiling for h100-sxm, the default of --part."


def test_a_gpu_that_cannot_be_used_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfdsl.cli.gpu.gpu_present", lambda: True)
    monkeypatch.setattr("cfdsl.cli.gpu.gpu_part", lambda: None)
    request = resolve(fusion="rms_norm", model="llama-2-7b")
    assert request.part_from == "fallback"
    assert request.part_note.endswith("compiling for h100-sxm, the default of --part.")


def test_a_part_that_is_named_is_taken() -> None:
    request = resolve(fusion="rms_norm", model="llama-2-7b", part="h200")
    assert (request.part.name, request.part_from) == ("h200", "given")


def test_only_fields_that_were_given_override() -> None:
    request = resolve(fusion="rms_norm", model="llama-2-7b", cluster_size=4, window=0, pdl=False, warps=None)
    assert request.overrides == {"cluster_size": 4, "window": 0, "pdl": False}


def test_fp16_is_f16() -> None:
    assert resolve(fusion="rms_norm", model="llama-2-7b", dtype="fp16").dtype == "f16"


def test_all_wrong_names_are_reported_at_once() -> None:
    with pytest.raises(Errors) as caught:
        resolve(fusion="nope", model="never", part="h1", option=["x"])
    assert [type(error) for error in caught.value.errors] == [UnknownName, UnknownModel, UnknownPart, BadOption]


def test_wrong_fields_and_options_are_among_them() -> None:
    with pytest.raises(Errors) as caught:
        resolve(fusion="attention_block", model="never", option=["qkv=zz", "foo=3"], cluster_size=3, warps=7)
    assert [type(error) for error in caught.value.errors] == [
        UnknownModel, ClusterSizeUnsupported, ConfigError, UnknownOption, UnknownOption,
    ]  # fmt: skip


def test_a_fusion_of_the_users_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TWICE)
    assert resolve(fusion=f"{file}:twice", model="llama-2-7b").fusion.name == "twice"
    with pytest.raises(NoSuchFusion) as caught:
        resolve(fusion=f"{file}:thrice", model="llama-2-7b")
    assert str(caught.value) == f"there is no fusion '{file}:thrice': {file} has no thrice.\n  remedy: its fusions are: twice."
    with pytest.raises(NoSuchFusion) as caught:
        resolve(fusion=str(file), model="llama-2-7b")
    assert str(caught.value) == (
        f"there is no fusion '{file}': it names a file, and no fusion in it.\n  remedy: write {file}:NAME; its fusions are: twice."
    )
    with pytest.raises(NoSuchFusion, match="cf of .* is no fusion, but module") as caught:
        resolve(fusion=f"{file}:cf", model="llama-2-7b")
    other = f"{tmp_path}/other.py"
    with pytest.raises(NoSuchFusion) as caught:
        resolve(fusion=f"{other}:twice", model="llama-2-7b")
    assert str(caught.value) == (
        f"there is no fusion '{other}:twice': there is no file {other}.\n  remedy: give FILE.py:NAME with a file that exists, or a shipped"
        " fusion: attention_block, decoder_layer, embedding, ffn_block, lm_head, rms_norm."
    )
    for module in ("no.such", "fusions.nothing", ""):
        with pytest.raises(NoSuchFusion, match="there is no module"):
            resolve(fusion=f"{module}:twice", model="llama-2-7b")


def test_a_model_from_a_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for path in (tmp_path, tmp_path / "config.json"):
        assert resolve(fusion="rms_norm", model=str(path)).model.hidden == 256
