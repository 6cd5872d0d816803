"""What `cfdsl.hf` refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cfdsl.errors.base import CfdslError


@dataclass(eq=False, kw_only=True)
class PatchRefused(CfdslError):
    """A Hugging Face model whose decode cfdsl cannot take over."""

    model: str
    problem: str
    advice: str
    _says = "{model} cannot be patched: {problem}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class DecodeRefused(CfdslError):
    """A call of a patched model, with one new token, that the kernels cannot compute."""

    problem: str
    advice: str
    _says = "the patched model cannot decode this call: {problem}."
    _remedy = "{advice}; or unpatch(model), and Hugging Face computes it."


@dataclass(eq=False, kw_only=True)
class PeerUnsupported(CfdslError):
    """A model whose decode Hugging Face's LlamaForCausalLM cannot be measured for: it would compute something else."""

    model: str
    reasons: Sequence[str]
    _remedy = "measure without it (--no-peers), or a model without these."

    @property
    def message(self) -> str:  # one line: a benchmark's list of what was left out has one per peer
        return f"LlamaForCausalLM cannot be {self.model}: {'; '.join(self.reasons)}."


@dataclass(eq=False, kw_only=True)
class PatchedCopy(CfdslError):
    """A patched model was to be copied or pickled as it is."""

    model: str
    _says = "{model} is patched and cannot be copied or pickled: graphs and caches on the GPU, and the weights that they read, are its own."
    _remedy = "call cfdsl.hf.unpatch(model) first, and patch the copy if need be; model.state_dict() and save_pretrained work as they are."


@dataclass(eq=False, kw_only=True)
class NotPatched(CfdslError):
    """unpatch() or status() of a model that is not patched."""

    model: str
    _says = "{model} is not patched."
    _remedy = "give the model that patch was called on, before unpatch was."


@dataclass(eq=False, kw_only=True)
class PackageMissing(CfdslError):
    """An optional package is needed and not installed."""

    package: str
    needs: str
    _says = "{needs} needs the package {package}, which is not installed."
    _remedy = "pip install {package}."


@dataclass(eq=False, kw_only=True)
class WeightsUnusable(CfdslError):
    """A model folder does not hold the weights that its config.json speaks of. `reasons` lists everything that is wrong."""

    folder: str
    reasons: Sequence[str]
    _remedy = "give a folder with config.json, *.safetensors and tokenizer.json, as `save_pretrained` writes it."

    @property
    def message(self) -> str:
        return f"the weights in {self.folder} cannot be used:" + "".join(f"\n  - {reason}" for reason in self.reasons)
