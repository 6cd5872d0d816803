"""Hugging Face models decoded by cfdsl's kernels: `cfdsl.hf.patch(model)`, `cfdsl.hf.status(model)`, `cfdsl.hf.unpatch(model)`.

Importing this loads neither torch nor transformers; `patch` does not import transformers either, it works on the model that it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

__all__ = ["patch", "status", "unpatch"]


def patch(model: nn.Module, *, dtype: str | None = None, backend: Literal["kernel", "oracle"] | None = None) -> None:
    """Let cfdsl compute every call of `model` that has one new token and a StaticCache; all other calls stay Hugging Face's.

    model    a LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM in bf16 or f16. Its weights are used where they are: nothing is
             copied, and they stay the model's parameters. Its type, its modules and its state dict do not change; `unpatch` undoes all
             there is.
    dtype    "bf16" or "f16", to insist on one; default: what the weights are
    backend  "kernel" (default; needs a Hopper GPU) or "oracle": the placed graphs on the CPU, for tests

    A decode step on a GPU is a CUDA graph, captured at the first decode call with a given cache and replayed from then on. The logits
    are (1, 1, vocab) in the model's dtype, as Hugging Face returns them. Kernels are planned here, and compiled at the
    first decode call.

    Raises PatchRefused, ModelUnsupported or NoTarget, or `Errors` with all of them; then what the compiler has against the model's sizes,
    such as NoLegalConfig. What only a call can show is raised by the call, as DecodeRefused, all of it at once: batch above 1, another
    cache than StaticCache, padding, hidden states asked for, and so on (docs/huggingface.md lists it).
    """
    from cfdsl.hf.patching import patch as patch_

    patch_(model, dtype=dtype, backend=backend)


def unpatch(model: nn.Module) -> None:
    """Undo `patch`: the model is what it was, to the attribute. Captured graphs are dropped. Raises NotPatched."""
    from cfdsl.hf.patching import unpatch as unpatch_

    unpatch_(model)


def status(model: nn.Module, clear: bool = False) -> tuple[str, ...]:
    """What the kernels of a patched model flagged since the flags were last cleared, in words; empty if nothing. Waits for the GPU.

    Flags are of what only the device sees: a token outside of the embedding table, which is clamped to it; a full cache; a grid barrier
    that timed out. Of the caches that are still there, with the fusion's name ahead. Models of the same sizes share kernels and flags.
    clear: forget them afterwards. Raises NotPatched.
    """
    from cfdsl.hf.patching import status as status_

    return status_(model, clear)
