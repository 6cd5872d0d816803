"""`generate` from a folder and from a preset, with a plain PyTorch decoder in the place of fusions.decoder.Decoder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_decoder import PlainDecoder
from runner import run
from tiny import tiny

from cfdsl.errors import ArgumentError, ModelUnsupported, UnknownModel, WeightsUnusable
from cfdsl.hf.generation import FolderSource, find_source
from cfdsl.hf.text import Bytes, FolderVocabulary, stream
from cfdsl.hf.weights import end_tokens, folder_weights, random_weights
from cfdsl.models import PRESETS, ModelConfig

PROMPT = "the cat sat on the mat"
ORACLE = ("--backend", "oracle")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, plain: type) -> None:
    """Host tests say the same on a machine with a GPU."""
    monkeypatch.setattr("cfdsl.cli.gpu.gpu_present", lambda: False)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny(vocab_size=320, eos_token_id=[2, 5])


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as save_pretrained writes it, in two files with an index, with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    where = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(where, max_shard_size="100KB")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PROMPT] * 4, trainer)
    tokenizer.save(str(where / "tokenizer.json"))
    return where


def theirs(model: Any, folder: Path, tokens: int) -> str:
    vocabulary = FolderVocabulary(folder)
    ids = torch.tensor([vocabulary.encode(PROMPT)])
    with torch.no_grad():
        found = model.float().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    model.bfloat16()
    return vocabulary.decode(found[0, ids.shape[1] :].tolist())


def test_a_folder_is_continued_as_hugging_face_does(model: Any, folder: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 1
    done = run("generate", "--model", str(folder), "--prompt", PROMPT, "-n", "10", *ORACLE)
    assert done.code == 0, done.err
    assert done.out == theirs(model, folder, 10) + "\n"
    assert "RANDOM" not in done.err
    assert "tokens/s" in done.err
    [decoder] = PlainDecoder.made
    assert decoder.capacity == 128


def test_a_preset_says_that_its_weights_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    small = PRESETS["smollm2-135m"].with_(layers=1, vocab=300, intermediate=64)
    monkeypatch.setitem(PRESETS, "smollm2-135m", small)
    one, two = (run("generate", "--model", "smollm2-135m", "--prompt", "Hi", "-n", "5", *ORACLE) for _ in range(2))
    assert one.code == 0, one.err
    assert "RANDOM WEIGHTS: smollm2-135m is a preset, sizes only." in one.err
    assert len(one.out.split()) == 5
    assert all(0 <= int(token) < 300 for token in one.out.split())
    assert one.out == two.out
    drawn = [
        run("generate", "--model", "smollm2-135m", "--prompt", "Hi", "-n", "5", "--temperature", "5", "--top-k", "200", *ORACLE).out
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] != one.out


def test_without_a_gpu_only_the_oracle_generates(folder: Path) -> None:
    done = run("generate", "--model", str(folder), "--prompt", PROMPT)
    assert done.code == 1
    assert done.err.startswith(
        "error: GenerateNeedsGpu: `python -m cfdsl generate` runs kernels on a Hopper GPU, and this machine has none that torch can use."
    )
    assert "add --backend oracle" in done.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--top-p", "7"), "--top-p got '7.0', which is not a probability above 0, up to 1"),
        (("--top-k", "5"), "--temperature got '0', which is not above 0 where --top-k or --top-p are given"),
        (("-n", "1000"), "--max-new-tokens got '1000', which is not at most"),
        (("-n", "255"), "--max-new-tokens got '255', which is not at most"),
        (("--temperature", "inf"), "--temperature got 'inf', which is not 0 or a number that float32 has"),
        (("--temperature", "1e-46"), "--temperature got '1e-46', which is not 0 or a number that float32 has"),
        (("--seed", "12345678901234567890123"), "--seed got '12345678901234567890123', which is not from -9223372036854775808 to 18446"),
        (("--prompt", "cat " * 300), "which is not shorter than the model's 256 positions"),
        (("--prompt", ""), "--prompt got '', which is not a text of at least one token"),
        (("--temperature", "1", "--top-p", "0"), "--top-p got '0.0', which is not a probability above 0, up to 1"),
    ],
)
def test_options_that_cannot_be(folder: Path, arguments: tuple[str, ...], text: str) -> None:
    done = run("generate", "--model", str(folder), "--prompt", PROMPT, *ORACLE, *arguments)
    assert done.code == 1
    assert text in done.err


def test_all_options_that_cannot_be_are_told_at_once(folder: Path) -> None:
    wrong = ("--top-p", "7", "--seed", "12345678901234567890123", "--temperature", "inf", "--trace", "no/where.json")
    done = run("generate", "--model", str(folder), "--prompt", PROMPT, *ORACLE, *wrong)
    assert done.code == 1
    assert all(f"{option} got" in done.err for option in wrong[::2])
    assert "only kernels have a timeline" in done.err


def test_the_default_number_of_tokens_is_what_there_is_room_for(folder: Path) -> None:
    done = run("generate", "--model", str(folder), "--prompt", "a" * 250, *ORACLE)
    assert done.code == 0, done.err
    assert "5 further tokens" in done.err
    assert not done.err.startswith("\n")  # there is no bar where there is no terminal


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable) as caught:
        FolderVocabulary(tmp_path)
    assert list(caught.value.reasons) == ["there is no tokenizer.json"]


BROKEN = {
    "tokenizer.json": ("garbage", "tokenizer.json cannot be read: "),
    "generation_config.json": ("garbage", "generation_config.json is not JSON: "),
    "config.json": ("[]", "it is not a JSON object"),
    "model.safetensors.index.json": ('{"weight_map": 3}', "weight_map in model.safetensors.index.json is no table of files"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    text, reason = BROKEN[name]
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    done = run("generate", "--model", str(tmp_path / "model"), "--prompt", PROMPT, *ORACLE)
    assert done.code == 1
    assert reason in done.err
    assert PlainDecoder.made == []


def test_broken_weights_and_ends_that_are_no_tokens(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:100])
    with pytest.raises(WeightsUnusable) as caught:
        folder_weights(tmp_path / "model", ModelConfig.from_hf(folder))
    assert [reason.partition(" cannot be read: ")[0] for reason in caught.value.reasons] == [file.name for file in files[:2]]
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": ["2"]}')
    with pytest.raises(WeightsUnusable, match=r"eos_token_id in generation_config.json is \['2'\], and no token"):
        end_tokens(tmp_path / "model")


def test_sources(folder: Path, tmp_path: Path) -> None:
    assert find_source(str(folder)).ends() == {2, 5}
    by_file = find_source(str(folder / "config.json"))
    assert isinstance(by_file, FolderSource)
    assert by_file.folder == folder
    assert find_source("llama-2-7b").random
    with pytest.raises(UnknownModel):
        find_source("llama-2-70b")
    with pytest.raises(ArgumentError, match="argument 'model' must be a .gguf file that exists, got 'nowhere.gguf'"):
        find_source("nowhere.gguf")
    (tmp_path / "UPPER.GGUF").write_text("no such file")
    with pytest.raises(ModelUnsupported, match="it is no GGUF file"):
        find_source(str(tmp_path / "UPPER.GGUF"))
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}, "eos_token_id": 7}))
    with pytest.raises(ModelUnsupported, match="its weights are quantised"):
        find_source(str(tmp_path))
    assert end_tokens(tmp_path) == {7}


def test_weights_of_a_folder(model: Any, folder: Path, tmp_path: Path) -> None:
    sizes = ModelConfig.from_hf(folder)
    seen: list[tuple[int, int]] = []
    found, converted = folder_weights(folder, sizes, "bf16", "cpu", lambda done, of: seen.append((done, of)))
    assert converted == ()
    assert seen[-1] == (len(found), len(found))
    state = model.state_dict()
    assert set(found) == set(state)
    assert all(found[name].equal(state[name]) for name in found)
    as_half, converted = folder_weights(folder, sizes, "f16")
    assert converted == ("bfloat16",)
    assert {tensor.dtype for tensor in as_half.values()} == {torch.float16}
    with pytest.raises(WeightsUnusable) as caught:
        folder_weights(folder, sizes.with_(layers=4))
    assert "model.layers.2.input_layernorm.weight is missing" in str(caught.value)
    assert "and 10 more" in str(caught.value)
    for reason in ("there is no *.safetensors file", "there is no *.safetensors file (pytorch_model.bin is not read: it may run code)"):
        with pytest.raises(WeightsUnusable) as caught:
            folder_weights(tmp_path, sizes)
        assert list(caught.value.reasons) == [reason]
        (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(WeightsUnusable, match="model-1.safetensors, which model.safetensors.index.json names, is missing"):
        folder_weights(tmp_path, sizes)


def test_files_beside_the_model_are_not_its_weights(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    sizes, weights = ModelConfig.from_hf(tmp_path), load_file(tmp_path / "model.safetensors")
    save_file({name: weight.half() * 0 for name, weight in weights.items()}, tmp_path / "other.safetensors")
    found, converted = folder_weights(tmp_path, sizes)
    assert converted == ()
    assert all(found[name].equal(weights[name]) for name in weights)
    (tmp_path / "model.safetensors").rename(tmp_path / "another.safetensors")  # which of the two is meant, nobody knows
    with pytest.raises(WeightsUnusable) as caught:
        folder_weights(tmp_path, sizes)
    assert caught.value.reasons[0] == f"{next(iter(weights))} is in other.safetensors and in another file"


@pytest.mark.parametrize("package", ["safetensors", "tokenizers", "gguf"])
def test_a_missing_package_is_named(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "model.gguf").touch()
    done = run("generate", "--model", str(tmp_path / "model.gguf" if package == "gguf" else folder), "--prompt", PROMPT, *ORACLE)
    assert done.code == 1
    assert f"pip install {package}." in done.err


def test_random_weights_are_the_same_each_time_and_of_the_right_size() -> None:
    sizes = PRESETS["smollm2-135m"].with_(layers=1, vocab=500)
    one, two, other = (random_weights(sizes, "bf16", "cpu", seed) for seed in (1, 1, 2))
    assert all(one[name].equal(two[name]) for name in one)
    assert not one["model.norm.weight"].equal(other["model.norm.weight"])
    assert "lm_head.weight" not in one
    assert float(one["model.layers.0.mlp.down_proj.weight"].float().std()) == pytest.approx(1536**-0.5, rel=0.02)
    assert float(one["model.norm.weight"].float().mean()) == pytest.approx(1.0, abs=0.02)


def test_a_piece_of_text_waits_for_its_last_character() -> None:
    class Utf8:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, tokens: list[int]) -> str:
            return bytes(tokens).decode(errors="replace")

    text = "aé€b"
    pieces = list(stream(Utf8(), Utf8().encode(text)))
    assert pieces == ["a", "é", "€", "b"]
    assert "".join(stream(Utf8(), [*b"a", 0xC3])) == "a\ufffd"
    assert list(stream(Bytes(), [5, 17])) == ["5 ", "17 "]


def test_a_stream_is_the_whole_text_and_takes_no_longer_for_a_long_one() -> None:
    """A tokenizer in the manner of SentencePiece: a word brings its space along, but for the first one of a text; 0 is no text."""
    words, decoded = ["", " the", " cat", "s", " sat"], []

    class Words:
        def encode(self, text: str) -> list[int]:
            raise NotImplementedError

        def decode(self, tokens: list[int]) -> str:
            decoded.append(len(tokens))
            return "".join(words[token] for token in tokens).removeprefix(" ")

    tokens = [0, 1, 2, 3, 0, 0, 4, 1, 2, 0] * 20
    assert "".join(stream(Words(), tokens)) == Words().decode(tokens)
    assert max(decoded[:-1]) < 8
