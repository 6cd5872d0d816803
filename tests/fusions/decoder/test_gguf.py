"""Models, weights and texts out of GGUF files: of small ones, written here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_model import random_weights

import cfdsl as cf
from cfdsl.errors import ArgumentError, ModelUnsupported, WeightsMismatch
from cfdsl.hf.generation import GgufSource
from fusions.decoder import Decoder

gguf = pytest.importorskip("gguf", reason='reading GGUF files needs pip install -e ".[text]"')
from fusions.decoder.gguf_file import LAYER, WHOLE, GgufFile  # noqa: E402
from fusions.decoder.text import Text  # noqa: E402

MODEL = cf.ModelConfig(
    "tiny", 128, 4, 2, 64, layers=2, intermediate=192, vocab=300, rope_theta=500.0, rope_style="interleaved", norm_eps=1e-6
)  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
Write = Callable[..., Path]


def file_names(model: cf.ModelConfig) -> dict[str, str]:
    """Hugging Face's name -> the file's."""
    layers = {f"model.layers.{n}.{ours}": f"blk.{n}.{theirs}.weight" for n in range(model.layers) for theirs, ours in LAYER.items()}
    return layers | {ours: theirs for theirs, ours in WHOLE.items()}


def vocabulary() -> list[str]:
    """Two control tokens, the 256 bytes as GPT-2 spells them, and words."""
    from tokenizers import pre_tokenizers

    return ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "hell", "hello", "Ġhello"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a GGUF file of MODEL; keyword arguments say what is different about it."""

    def made(
        quantised: bool = False, drop: str = "", architecture: str = "llama", more: dict[str, Any] | None = None,
        leave: tuple[str, ...] = (), template: str = TEMPLATE, extra: str = "",
    ) -> Path:  # fmt: skip
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
        writer.add_name("a tiny model")
        writer.add_context_length(64)
        writer.add_embedding_length(MODEL.hidden)
        writer.add_block_count(MODEL.layers)
        writer.add_feed_forward_length(MODEL.intermediate)
        writer.add_head_count(MODEL.heads)
        if "attention.head_count_kv" not in leave:
            writer.add_head_count_kv(MODEL.kv_heads)
        if "attention.key_length" not in leave:
            writer.add_key_length(MODEL.head_dim)
        writer.add_rope_freq_base(MODEL.rope_theta)
        writer.add_layer_norm_rms_eps(MODEL.norm_eps)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        texts = vocabulary()
        writer.add_token_list(texts)
        writer.add_token_types([3, 3] + [1] * (len(texts) - 2))
        writer.add_token_merges(["h e", "l l", "he ll", "hell o", "Ġ hello"])
        writer.add_eos_token_id(1)
        writer.add_chat_template(template)
        for key, value in (more or {}).items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
            add.get(type(value), writer.add_string)(key, value)
        for ours, theirs in file_names(MODEL).items():
            if theirs != drop:
                values = random_weights(MODEL, "f16")[ours].float().numpy()
                if quantised and values.ndim == 2:
                    kind = gguf.GGMLQuantizationType.Q8_0
                    writer.add_tensor(theirs, gguf.quants.quantize(values, kind), raw_dtype=kind)
                else:
                    writer.add_tensor(theirs, values)
        if extra:
            writer.add_tensor(extra, torch.ones(32).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return made


def test_the_config_and_the_weights_are_those_of_the_file(write: Write) -> None:
    file = GgufFile(write())
    assert file.model == MODEL.with_(name="a tiny model", max_positions=64, norm_eps=file.model.norm_eps)
    assert file.model.norm_eps == pytest.approx(1e-6, rel=1e-6)
    want, got = random_weights(MODEL, "f16"), file.weights("f16")
    assert set(got) == set(want)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_quantised_weights_are_taken_out_of_their_blocks(write: Write) -> None:
    want, got = random_weights(MODEL, "f16"), GgufFile(write(quantised=True)).weights("bf16")
    assert set(got) == set(want)
    for name, tensor in got.items():
        assert tensor.dtype == torch.bfloat16
        assert 0 < (tensor.float() - want[name].float()).norm() < 1e-2 * want[name].float().norm(), name


def test_types_that_cannot_be_read_are_named_with_all_their_tensors(write: Write) -> None:
    file = GgufFile(write())
    file._tensors = {
        name: tensor._replace(tensor_type=gguf.GGMLQuantizationType.I8) if name.startswith("blk.1.ffn") else tensor
        for name, tensor in file._tensors.items()
    }
    with pytest.raises(ModelUnsupported) as caught:
        file.weights("f16")
    assert sorted(caught.value.reasons) == [
        f"blk.1.ffn_{name}.weight is stored as I8, which this version of gguf does not read" for name in ("down", "gate", "norm", "up")
    ]


def test_a_file_without_a_head_has_tied_embeddings(write: Write) -> None:
    file = GgufFile(write(drop="output.weight"))
    assert file.model.tied_embeddings
    weights = file.weights("f16")
    assert "lm_head.weight" not in weights
    tokens = list(Decoder(file.model, weights, capacity=8, dtype="f16", backend="oracle").generate([3, 4], 3))
    assert len(tokens) == 3


def test_a_missing_tensor_is_named_as_hugging_face_names_it(write: Write) -> None:
    with pytest.raises(WeightsMismatch, match=r"model.layers.1.mlp.down_proj.weight: missing, of shape \(128, 192\)"):
        GgufFile(write(drop="blk.1.ffn_down.weight")).weights()


def test_another_architecture_is_refused(write: Write) -> None:
    with pytest.raises(ModelUnsupported, match="its architecture is 'gemma'; known is llama"):
        GgufFile(write(architecture="gemma"))


def test_scaled_frequencies_are_refused(write: Write) -> None:
    with pytest.raises(ModelUnsupported, match="its rotary frequencies are scaled by 'yarn'; known is linear"):
        GgufFile(write(more={"llama.rope.scaling.type": "yarn"}))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"extra": "rope_freqs.weight"}, "its rotary frequencies are scaled by a table (rope_freqs.weight)"),
        ({"extra": "blk.0.attn_q.bias"}, "its projections have biases (blk.0.attn_q.bias)"),
        ({"drop": "token_embd.weight"}, "it has no tensor token_embd.weight"),
        ({"more": {"llama.expert_count": 8}}, "it is a mixture of 8 experts"),
    ],
)
def test_tensors_that_a_decoder_does_not_have_are_refused(write: Write, how: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        GgufFile(write(**how))
    assert list(caught.value.reasons) == [reason]


@pytest.mark.parametrize(
    ("more", "factor"),
    [
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scale_linear": 2.0}, 2.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear"}, None),
    ],
)
def test_frequencies_divided_by_a_factor(write: Write, more: dict[str, Any], factor: float | None) -> None:
    """As llama.cpp reads it: linear, where a factor comes without a type."""
    found = GgufFile(write(more={f"llama.{key}": value for key, value in more.items()})).model.rope_scaling
    assert found == (None if factor is None else cf.RopeScaling("linear", factor))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"attention.sliding_window": 32}, "its attention has a sliding window of 32 tokens"),
        ({"attention.value_length": 128}, "its values have 128 dimensions per head, and its keys 64"),
        ({"attention.scale": 1.0}, "llama.attention.scale is 1, not 1 / sqrt(64)"),
        ({"logit_scale": 0.0625}, "llama.logit_scale is 0.0625"),
        ({"attention.causal": False}, "llama.attention.causal is False"),
        ({"attention.key_length": 32}, "head_dim is 32; the kernels have 64 and 128"),
        ({"attention.head_count_kv": [2, 1]}, "llama.attention.head_count_kv is another one in each layer"),
    ],
)
def test_metadata_that_a_decoder_does_not_follow_is_refused(write: Write, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        GgufFile(write(more={f"llama.{key}": value for key, value in more.items()}, leave=tuple(more)))
    assert list(caught.value.reasons) == [reason]


def test_metadata_that_changes_nothing(write: Write) -> None:
    more = {"attention.sliding_window": 64, "attention.value_length": 64, "attention.scale": 0.125, "logit_scale": 1.0}
    assert GgufFile(write(more={f"llama.{key}": value for key, value in more.items()})).model.rope_scaling is None


@pytest.mark.parametrize("content", [b"", b"no file of this kind", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 40])
def test_what_is_no_gguf_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelUnsupported, match="it is no GGUF file, or only a part of one"):
        GgufFile(tmp_path / "model.gguf")


def test_the_types_that_weights_are_stored_in(write: Write) -> None:
    assert GgufFile(write()).types == ("F32",)
    assert GgufFile(write(quantised=True)).types == ("F32", "Q8_0")


def test_generate_reports_what_it_converts(write: Write) -> None:
    for quantised, kinds in ((False, ("F32",)), (True, ("F32", "Q8_0"))):
        source = GgufSource(write(quantised=quantised))
        assert source.weights("f16", "cpu", 0, lambda done, of: None)[1] == kinds
    source._file.types = ("F16", "F32")
    assert source.weights("f16", "cpu", 0, lambda done, of: None)[1] == ("F32",)


def test_text_becomes_tokens_and_comes_back(write: Write) -> None:
    text, words = Text(GgufFile(write())), vocabulary()
    tokens = text.encode("hello hello 12é<|im_end|>")
    assert [words[token] for token in tokens] == ["hello", "Ġhello", "Ġ", "1", "2", "Ã", "©", "<|im_end|>"]
    assert text.decode(tokens) == "hello hello 12é"
    assert text.eos == {1}


def test_texts_begin_as_the_file_says(write: Write) -> None:
    begin = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0}
    text, hello = Text(GgufFile(write(more=begin))), vocabulary().index("hello")
    assert text.encode("hello") == [0, hello]
    assert text.encode("<|im_start|>hello") == [0, hello]  # it is there already
    assert text.chat([{"role": "user", "content": "hello"}]) == [0, hello, 1]
    assert Text(GgufFile(write(more={**begin, "tokenizer.ggml.add_bos_token": False}))).encode("hello") == [hello]
    with pytest.raises(ModelUnsupported) as caught:
        Text(GgufFile(write(more={"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})))
    assert list(caught.value.reasons) == [
        "its texts begin with a token (tokenizer.ggml.add_bos_token), and it does not say which",
        "its texts end with a token (tokenizer.ggml.add_eos_token), and a prompt must not",
    ]


def test_a_template_may_name_the_tokens_at_the_ends(write: Write) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    text = Text(GgufFile(write(more={"tokenizer.ggml.bos_token_id": 0}, template=template)))
    assert text.chat([{"role": "user", "content": "hello"}]) == [0, vocabulary().index("hello"), 1]


def test_a_chat_goes_through_the_files_template(write: Write) -> None:
    text = Text(GgufFile(write()))
    assert text.chat([{"role": "user", "content": "hello"}]) == [0, vocabulary().index("hello"), 1]


def test_a_stream_shows_a_character_when_it_is_whole(write: Write) -> None:
    text = Text(GgufFile(write()))
    tokens = text.encode("hello é!")
    assert list(text.stream(tokens)) == ["hello", " ", "é", "!"]
    assert list(text.stream(tokens[:-2])) == ["hello", " ", "\ufffd"]  # the answer ended within a character


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        ("pre", "llama-bpe", "its tokenizer cuts words by the rules of 'llama-bpe'; known are gpt-2, smollm"),
        ("model", "llama", "its tokenizer is 'llama'; known is gpt2 \\(byte-level BPE\\)"),
    ],
)
def test_an_unknown_tokenizer_is_refused(write: Write, entry: str, value: str, says: str) -> None:
    file = GgufFile(write())
    known = file.metadata
    file.metadata = lambda key: value if key == f"tokenizer.ggml.{entry}" else known(key)  # type: ignore[method-assign]
    with pytest.raises(ModelUnsupported, match=says):
        Text(file)


def test_a_chat_needs_a_template(write: Write) -> None:
    file = GgufFile(write())
    known = file.metadata
    file.metadata = lambda key: None if key == "tokenizer.chat_template" else known(key)  # type: ignore[method-assign]
    with pytest.raises(ArgumentError, match="the file has no template"):
        Text(file).chat([])
