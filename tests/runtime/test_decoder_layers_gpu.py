"""The fusions of a decoder besides attention, on a GPU: right against float64, repeatable, and their outputs wholly written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from against import LIMIT, error

import cfdsl as cf
from cfdsl.errors import LengthOutOfRange
from cfdsl.runtime.flags import STATUS
from fusions.decoder_layer import decoder_layer
from fusions.embedding import embedding
from fusions.ffn_block import ffn_block
from fusions.lm_head import lm_head

pytestmark = pytest.mark.gpu

SMALL, LARGE = "smollm2-135m", "llama-2-7b"


def example(fusion: cf.Fusion, model: str | cf.ModelConfig, dtype: str = "bf16", **how: Any) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = fusion.example_inputs(cf.models.resolve(model), 1, dtype, device="cuda", **how)
    return made


def right_and_repeatable(
    fusion: cf.Fusion, model: str | cf.ModelConfig, dtype: str, runs: int = 10, options: dict[str, Any] | None = None, length: int = 128,
    **fields: Any,
) -> None:
    """Outputs start as NaN (indices: -1); every run writes all of them, and the same bits."""
    kernel = cf.compile(fusion, model, dtype=dtype, **(options or {}), **fields)
    tensors = example(fusion, model, dtype, length=length, **(options or {}))
    want = fusion.reference(cf.models.resolve(model), tensors, "f64", **(options or {}))
    outputs = [arg.name for arg in kernel.args if arg.role == "output"]
    poison = {name: tensors[name].clone() for name in outputs}
    first: dict[str, torch.Tensor] = {}
    for _ in range(runs):
        for name in outputs:
            tensors[name].copy_(poison[name])
        kernel(**tensors)
        torch.cuda.synchronize()
        for name in outputs:
            first.setdefault(name, tensors[name].clone())
            assert torch.equal(tensors[name], first[name]), name
    for name in outputs:
        if want[name].is_floating_point():
            assert error(first[name], want[name]) <= LIMIT[dtype], name
        else:
            assert torch.equal(first[name], want[name].to(first[name].dtype)), name
    assert kernel.status() == ()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("model", [SMALL, LARGE, "llama-3.1-8b"])
def test_ffn_block(model: str, dtype: str) -> None:
    right_and_repeatable(ffn_block, model, dtype)


@pytest.mark.parametrize("length", [0, 1, 333])
@pytest.mark.parametrize(("model", "options"), [(SMALL, {}), (SMALL, {"qkv": "rows"}), ("llama-3.2-1b", {}), (LARGE, {})], ids=str)
def test_decoder_layer(model: str, options: dict[str, Any], length: int) -> None:
    right_and_repeatable(decoder_layer, model, "bf16", options=options, length=length)


@pytest.mark.parametrize("qkv", ["grid", "rows"])
@pytest.mark.parametrize("kv_heads", [9, 3], ids=["alone", "grouped"])
def test_decoder_layer_with_biases(kv_heads: int, qkv: str) -> None:
    right_and_repeatable(decoder_layer, cf.PRESETS[SMALL].with_(qkv_bias=True, kv_heads=kv_heads), "bf16", options={"qkv": qkv})


SCHEDULES = ({"stage_bytes": 4096}, {"stage_bytes": 32768}, {"cluster_size": 2}, {"cluster_size": 8}, {"warps": 16})


@pytest.mark.parametrize("fields", SCHEDULES, ids=str)
def test_ffn_block_under_other_schedules(fields: dict[str, int]) -> None:
    """Rows in eight pieces, in none, dealt to ranks of clusters, and shared by sixteen warps."""
    right_and_repeatable(ffn_block, LARGE, "bf16", 2, **fields)


@pytest.mark.parametrize(("hidden", "intermediate"), [(3584, 18944), (8192, 28672), (1024, 53248)])
def test_ffn_block_in_turns(hidden: int, intermediate: int) -> None:
    """Vectors too long for the registers, in two and in four turns: Qwen2.5-7B's, Llama 70B's, Llama 405B's over fewer rows."""
    model = cf.PRESETS[LARGE].with_(hidden=hidden, intermediate=intermediate)
    right_and_repeatable(ffn_block, model, "bf16", 5)


@pytest.mark.parametrize("qkv", ["grid", "rows"])
def test_decoder_layer_in_turns(qkv: str) -> None:
    model = cf.ModelConfig("qwen2.5-7b", 3584, 28, 4, 128, intermediate=18944, qkv_bias=True)
    right_and_repeatable(decoder_layer, model, "bf16", 5, options={"qkv": qkv}, length=333)


def test_ffn_block_with_gelu() -> None:
    right_and_repeatable(ffn_block, cf.PRESETS[SMALL].with_(activation="gelu_pytorch_tanh"), "bf16", 2)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("out", ["token", "logits", "both"])
@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_lm_head(model: str, out: str, dtype: str) -> None:
    right_and_repeatable(lm_head, model, dtype, options={"out": out})


def test_logits_are_not_rounded() -> None:
    """Far closer to float64 than a 16-bit number can be."""
    kernel, tensors = cf.compile(lm_head, SMALL, out="logits"), example(lm_head, SMALL, out="logits")
    kernel(**tensors)
    want = lm_head.reference(cf.PRESETS[SMALL], tensors, out="logits")["logits"]
    assert error(tensors["logits"], want) < 1e-5


@pytest.mark.parametrize("cluster_size", [1, 8])
def test_the_lowest_index_of_equal_logits(cluster_size: int) -> None:
    """Rows of the vocabulary that are the same, in one CTA's share and in those of others; then all of them."""
    kernel, tensors = cf.compile(lm_head, SMALL, cluster_size=cluster_size), example(lm_head, SMALL)
    best = int(lm_head.reference(cf.PRESETS[SMALL], tensors)["token"][0])
    row = tensors["w_head"][best].clone()
    for copies in ([7, 8, 30000, 49151], [49151, 49150], [123, best], [0]):
        weights = tensors["w_head"].clone()
        weights[best] = 0
        weights[copies] = row
        kernel(**{**tensors, "w_head": weights})
        assert tensors["token"].tolist() == [min(copies)]
    weights[:] = row
    kernel(**{**tensors, "w_head": weights})
    assert tensors["token"].tolist() == [0]


def test_a_nan_counts_as_greatest() -> None:
    kernel, tensors = cf.compile(lm_head, SMALL, out="both"), example(lm_head, SMALL, out="both")
    tensors["w_head"][[40000, 777]] = float("nan")
    kernel(**tensors)
    assert tensors["token"].tolist() == [777]
    assert tensors["logits"][0].isnan().nonzero().flatten().tolist() == [777, 40000]


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_embedding(model: str, dtype: str) -> None:
    kernel = cf.compile(embedding, model, dtype=dtype)
    vocab = cf.PRESETS[model].vocab
    tensors = example(embedding, model, dtype)
    for token in (0, 1, vocab // 2, vocab - 1):
        tensors["token"].fill_(token)
        tensors["y"].fill_(float("nan"))
        kernel(**tensors)
        assert torch.equal(tensors["y"][0], tensors["table"][token])
    assert kernel.status() == ()


@pytest.mark.parametrize("token", [-1, -(2**31), 49152, 2**31 - 1])
def test_a_token_out_of_range_is_clamped_and_flagged(token: int) -> None:
    kernel, tensors = cf.compile(embedding, SMALL), example(embedding, SMALL, token=token)
    kernel(**tensors)
    assert torch.equal(tensors["y"][0], tensors["table"][0 if token < 0 else 49151])
    assert kernel.status(clear=True) == (STATUS[3],)
    with pytest.raises(LengthOutOfRange) as caught:
        kernel.check(**tensors)
    assert caught.value.message == f"argument 'token' is {token}, outside of 0 to 49151."


def test_a_row_for_each_of_several_sequences() -> None:
    kernel = cf.compile(embedding, SMALL, batch=3)
    tensors: dict[str, torch.Tensor] = embedding.example_inputs(cf.PRESETS[SMALL], 3, device="cuda", token=[5, 60000, 7])
    kernel(**tensors)
    assert torch.equal(tensors["y"], tensors["table"][[5, 49151, 7]])
    assert kernel.status(clear=True) == (STATUS[3],)


def test_a_step_of_all_of_them_in_a_graph() -> None:
    """embedding, ffn_block, lm_head, each started before the last one's end: the same bits as one by one."""
    model = cf.PRESETS[SMALL]
    kernels = [cf.compile(fusion, model) for fusion in (embedding, ffn_block, lm_head)]
    first, middle, last = (example(fusion, model) for fusion in (embedding, ffn_block, lm_head))
    middle["x"], last["x"] = first["y"], middle["y"]

    def step() -> None:
        for kernel, tensors in zip(kernels, (first, middle, last), strict=True):
            kernel(**tensors)
            torch.cuda.synchronize()

    tokens = []
    for token in range(0, 49152, 4999):
        first["token"].fill_(token)
        step()
        tokens.append(int(last["token"]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for kernel, tensors in zip(kernels, (first, middle, last), strict=True):
            kernel(**tensors)
    for token, want in zip(range(0, 49152, 4999), tokens, strict=True):
        first["token"].fill_(token)
        graph.replay()
        assert int(last["token"]) == want
