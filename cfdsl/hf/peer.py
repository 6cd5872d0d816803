"""Hugging Face's own decode, for comparison: LlamaForCausalLM with a StaticCache under torch.compile, on the very same weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cfdsl.errors import PackageMissing, PeerUnsupported
from cfdsl.hf.caches import static_tensors
from cfdsl.models import ModelConfig
from cfdsl.runtime.peers import compiled


def unlike(sizes: ModelConfig) -> list[str]:
    """What of a model LlamaForCausalLM cannot express."""
    reasons = []
    if sizes.qkv_bias:
        reasons.append("its query, key and value projections have biases and the output projection has none")
    if sizes.rotary_dim != sizes.head_dim:
        reasons.append(f"it rotates {sizes.rotary_dim} of the {sizes.head_dim} dimensions of a head")
    if sizes.rope_style != "half":
        reasons.append(f"its rotary pairs are {sizes.rope_style}")
    return reasons


def hf_config(sizes: ModelConfig) -> Any:
    """The LlamaConfig of these sizes. Raises PeerUnsupported for what it has no words for, PackageMissing."""
    if reasons := unlike(sizes):
        raise PeerUnsupported(model=sizes.name, reasons=reasons)
    try:
        from transformers import LlamaConfig
    except ImportError:
        raise PackageMissing(package="transformers", needs="Hugging Face's decode") from None
    scaling = sizes.rope_scaling
    rope: dict[str, Any] = {"rope_theta": sizes.rope_theta}
    if scaling is not None:
        rope["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }  # fmt: skip
    return LlamaConfig(
        hidden_size=sizes.hidden, intermediate_size=sizes.intermediate, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads, head_dim=sizes.head_dim, vocab_size=sizes.vocab, max_position_embeddings=sizes.max_positions,
        rms_norm_eps=sizes.norm_eps, hidden_act=sizes.activation, tie_word_embeddings=sizes.tied_embeddings,
        attn_implementation="sdpa", **rope,
    )  # fmt: skip


def hf_model(sizes: ModelConfig, weights: Mapping[str, Tensor]) -> Any:
    """A LlamaForCausalLM whose parameters are `weights` themselves, all of them. Raises PeerUnsupported where it cannot be that."""
    config = hf_config(sizes)
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    unknown = model.load_state_dict(dict(weights), strict=False, assign=True).unexpected_keys  # tied heads are missing, as below
    if unknown:
        raise PeerUnsupported(model=sizes.name, reasons=[f"it has no {name}" for name in unknown])
    if sizes.tied_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    with weights["model.norm.weight"].device:
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # its frequencies are no parameter
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, left
    return model.requires_grad_(False).eval()


def static_cache(model: Any, capacity: int) -> Any:
    """An empty StaticCache with its tensors made, whatever the version's constructor is called with."""
    from transformers import StaticCache

    weight = model.model.norm.weight
    wanted = {"config": model.config, "max_cache_len": capacity, "max_batch_size": 1, "device": weight.device, "dtype": weight.dtype}
    known = inspect.signature(StaticCache.__init__).parameters
    cache: Any = StaticCache(**{name: value for name, value in wanted.items() if name in known})
    first = torch.zeros(1, dtype=torch.long, device=weight.device)
    with torch.no_grad():
        model(input_ids=first[None], past_key_values=cache, use_cache=True, position_ids=first[None], **_position(model, first))
    return cache


def _position(model: Any, position: Tensor) -> dict[str, Tensor]:
    return {"cache_position": position} if "cache_position" in inspect.signature(type(model).forward).parameters else {}


class HfDecode:
    """Greedy decoding with Hugging Face's model and a StaticCache: everything on the device, so that a step can be captured.

    token (1, 1), position (1,): what the next step is fed with, int64. logits (1, vocab): of the last step.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self.model, self.cache = model, static_cache(model, capacity)
        found = static_tensors(self.cache)
        assert found is not None
        self.tensors = found
        device = model.model.norm.weight.device
        self.token = torch.zeros((1, 1), dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.logits = torch.zeros((1, model.config.vocab_size), dtype=model.model.norm.weight.dtype, device=device)
        self.forward: Callable[[Tensor, Tensor], Tensor] = self.uncompiled

    def uncompiled(self, token: Tensor, position: Tensor) -> Tensor:
        """The model's logits (1, vocab) of one token at a position, as `forward` is until a Way has compiled it."""
        out = self.model(
            input_ids=token, past_key_values=self.cache, use_cache=True, position_ids=position[None], **_position(self.model, position)
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def fill(self, caches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy another decoder's keys and values."""
        for ours, theirs in zip(self.tensors.layers, caches, strict=True):
            for mine, given in zip(ours, theirs, strict=True):
                mine.copy_(given)

    def reset(self, length: int) -> None:
        """Count the cache as holding `length` tokens."""
        self.position.fill_(length)
        for counter in self.tensors.counters:
            counter.fill_(length)

    @torch.no_grad()
    def step(self) -> None:
        """One token: logits, the next token, one position more."""
        self.logits.copy_(self.forward(self.token, self.position))
        self.token.copy_(self.logits.argmax(-1, keepdim=True))
        self.position.add_(1)


@dataclass(frozen=True)
class Way:
    """A way to compile and replay a step. own_graph: captured here, like ours; else inductor's CUDA graphs."""

    variant: str
    fullgraph: bool
    own_graph: bool

    def ready(self, decode: HfDecode) -> Callable[[], object]:
        """Compile the step, run it a few times, and give back what replays it."""
        decode.forward = compiled(decode.uncompiled, own_graph=self.own_graph, fullgraph=self.fullgraph)
        for _ in range(3):
            decode.step()
        if not self.own_graph:
            return decode.step
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            decode.step()
        return graph.replay


WAYS = (  # to try, the fastest first
    Way("max-autotune, full graph, in one CUDA graph", True, True),
    Way("max-autotune, in one CUDA graph", False, True),
    Way("max-autotune with its own CUDA graphs", False, False),
)
