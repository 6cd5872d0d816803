"""Reading a model from a GGUF file, with the package `gguf`: its config, its weights under their Hugging Face names, its texts.

Needs the optional dependencies: pip install -c constraints.txt -e ".[text]".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike
from typing import Any

import torch
from torch import Tensor

import cfdsl as cf
from fusions.decoder.weights import ATTENTION, DTYPES, EMBEDDING, FFN, FINAL_NORM, HEAD, weight_errors

WHOLE = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
LAYER = {  # of blk.N, as llama.cpp calls them
    "attn_norm": ATTENTION["norm"], "attn_q": ATTENTION["wq"], "attn_k": ATTENTION["wk"], "attn_v": ATTENTION["wv"],
    "attn_output": ATTENTION["wo"], "ffn_norm": FFN["norm"], "ffn_gate": FFN["w_gate"], "ffn_up": FFN["w_up"], "ffn_down": FFN["w_down"],
}  # fmt: skip

NEUTRAL: dict[str, tuple[Any, ...]] = {  # metadata of llama.* that a decoder does not follow, with the values that change nothing
    "logit_scale": (0, 1), "embedding_scale": (0, 1), "residual_scale": (0, 1), "attention.output_scale": (0, 1),
    "rope.scaling.attn_factor": (0, 1), "attention.clamp_kqv": (0,), "attention.max_alibi_bias": (0,), "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,), "attention.causal": (True,), "use_parallel_residual": (False,), "swin_norm": (False,),
}  # fmt: skip


class GgufFile:
    """An open GGUF file of a Llama model.

    model      its config. llama.cpp stores the rows of the query and key projections in the order of interleaved rotary pairs, so
               rope_style is "interleaved", and the weights are used as they are stored.
    types      what the weights are stored as, by GGML's names, in alphabetical order: ("F16", "F32"), ("F32", "Q8_0")
    metadata   (key) -> a value of the file's metadata, or None

    Raises ModelUnsupported with all the reasons why this is no such model.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        import gguf

        self.path = str(path)
        try:
            self._reader = gguf.GGUFReader(self.path)
        except (ValueError, IndexError, KeyError, OverflowError) as error:  # what reading anything else ends in
            reason = f"it is no GGUF file, or only a part of one ({error})"
            raise cf.errors.ModelUnsupported(name=self.path, reasons=[reason]) from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._refuse(list(self._unsupported()))
        self.model = m = self._config()
        self._refuse(
            cf.models.problems(hidden=m.hidden, heads=m.heads, kv_heads=m.kv_heads, head_dim=m.head_dim, intermediate=m.intermediate)
        )
        used = (tensor for name, tensor in self._tensors.items() if _hugging_face_name(name) is not None)
        self.types: tuple[str, ...] = tuple(sorted({tensor.tensor_type.name for tensor in used}))

    def metadata(self, key: str) -> Any:
        """A value of the file's metadata: a number, text or list; None if it has none of that name."""
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def weights(self, dtype: str = "bf16", device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Every weight by its Hugging Face name, out of the file's quantisation (gguf's own functions) and rounded to `dtype`.

        Raises WeightsMismatch if one is missing, or of another shape than the config says; ModelUnsupported if one is stored as a type
        that the package gguf does not read.
        """
        from gguf.quants import dequantize

        found, unread = {}, []
        for name, tensor in self._tensors.items():
            known = _hugging_face_name(name)
            if known is None:
                continue
            try:
                whole = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
            except NotImplementedError:
                unread.append(f"{name} is stored as {tensor.tensor_type.name}, which this version of gguf does not read")
            else:
                found[known] = whole.to(DTYPES[dtype]).to(device)
        self._refuse(unread)
        cf.errors.raise_all(weight_errors(self.model, found, dtype, None))
        return found

    def _refuse(self, reasons: list[str]) -> None:
        if reasons:
            raise cf.errors.ModelUnsupported(name=self.path, reasons=reasons)

    def _config(self) -> cf.ModelConfig:
        heads, hidden = self._of("attention.head_count"), self._of("embedding_length")
        name = str(self.metadata("general.name") or self.path)
        return cf.ModelConfig(
            name, hidden, heads, self._of("attention.head_count_kv") or heads, self._of("attention.key_length") or self._head_dim(),
            norm_eps=self._of("attention.layer_norm_rms_epsilon"), rope_theta=self._of("rope.freq_base") or 10000.0,
            rotary_dim=self._of("rope.dimension_count") or 0, rope_style="interleaved", layers=self._of("block_count"),
            intermediate=self._of("feed_forward_length"), vocab=int(self._tensors["token_embd.weight"].shape[-1]),
            tied_embeddings="output.weight" not in self._tensors, max_positions=self._of("context_length"),
            rope_scaling=self._rope_scaling(),
        )  # fmt: skip

    def _rope_scaling(self) -> cf.RopeScaling | None:
        """Linear where a factor is given and no type, as llama.cpp reads it."""
        factor = self._of("rope.scaling.factor") or self._of("rope.scale_linear")
        return cf.RopeScaling("linear", float(factor)) if factor and self._of("rope.scaling.type") != "none" else None

    def _of(self, key: str) -> Any:
        return self.metadata(f"llama.{key}")

    def _unsupported(self) -> Iterator[str]:
        architecture = self.metadata("general.architecture")
        if architecture != "llama":
            yield f"its architecture is {architecture!r}; known is llama"
            return
        kind = self._of("rope.scaling.type")
        if kind not in (None, "none", "linear"):
            yield f"its rotary frequencies are scaled by {kind!r}; known is linear"
        if "rope_freqs.weight" in self._tensors:
            yield "its rotary frequencies are scaled by a table (rope_freqs.weight)"
        if self._of("expert_count"):
            yield f"it is a mixture of {self._of('expert_count')} experts"
        biased = [name for name in self._tensors if name.endswith(".bias")]
        if biased:
            yield f"its projections have biases ({biased[0]})"
        if "token_embd.weight" not in self._tensors:
            yield "it has no tensor token_embd.weight"
        needed = ("embedding_length", "block_count", "feed_forward_length", "context_length", "attention.head_count")
        for key in (*needed, "attention.layer_norm_rms_epsilon"):
            if self._of(key) is None:
                yield f"its metadata lacks llama.{key}"
        yield from self._unlike_llama()

    def _unlike_llama(self) -> Iterator[str]:
        """Metadata by which the model computes something that a decoder does not."""
        window, longest = self._of("attention.sliding_window"), self._of("context_length")
        if window and not (longest and window >= longest):
            yield f"its attention has a sliding window of {window} tokens"
        keys, values = self._of("attention.key_length"), self._of("attention.value_length")
        if values and values != (keys or self._head_dim()):
            yield f"its values have {values} dimensions per head, and its keys {keys or self._head_dim()}"
        scale = self._of("attention.scale")
        if scale and keys and abs(scale * keys**0.5 - 1) > 1e-5:
            yield f"llama.attention.scale is {scale:g}, not 1 / sqrt({keys})"
        for key, nothing in NEUTRAL.items():
            value = self._of(key)
            if value is not None and value not in nothing:
                yield f"llama.{key} is {value:g}" if isinstance(value, float) else f"llama.{key} is {value}"
        for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
            if isinstance(self._of(key), list):
                yield f"llama.{key} is another one in each layer"

    def _head_dim(self) -> int:
        hidden, heads = self._of("embedding_length"), self._of("attention.head_count")
        return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 0


def _hugging_face_name(name: str) -> str | None:
    """None for a tensor that a decoder does not take."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if layer is None:
        return WHOLE.get(name)
    known = LAYER.get(layer.group(2))
    return None if known is None else f"model.layers.{layer.group(1)}.{known}"
