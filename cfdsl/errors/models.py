"""Models that cannot be read or computed, and weights that are not theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cfdsl.errors.base import CfdslError, listed


@dataclass(eq=False, kw_only=True)
class HeadDimUnsupported(CfdslError):
    """The kernels have no code for this head dimension."""

    head_dim: int
    supported: Sequence[int]
    _says = "head_dim {head_dim} is not supported."

    @property
    def remedy(self) -> str:
        return f"use a model with head_dim {listed(self.supported)}."


@dataclass(eq=False, kw_only=True)
class GroupUnsupported(CfdslError):
    """Too many query heads share a key/value head."""

    group: int
    limit: int
    _says = "{group} query heads per key/value head are not supported."
    _remedy = "use a model with at most {limit}."


@dataclass(eq=False, kw_only=True)
class RowUnsupported(CfdslError):
    """Rows of these weights do not fit the loads: bulk copies move 16 bytes at a time."""

    weights: Sequence[str]
    columns: int
    multiple: int

    @property
    def message(self) -> str:
        return f"rows of {self.columns} elements, as those of {listed(self.weights, 'and')}, are not supported."

    _remedy = "use a model whose hidden size, intermediate size and heads x head_dim are multiples of {multiple}."


@dataclass(eq=False, kw_only=True)
class ModelUnsupported(CfdslError):
    """A model config asks for things that cfdsl does not do. `reasons` lists all of them."""

    name: str
    reasons: Sequence[str]
    _remedy = "use a model without these; cfdsl computes llama, mistral and qwen2 attention (docs/concepts.md)."

    @property
    def message(self) -> str:
        return f"the model {self.name!r} is not supported:" + "".join(f"\n  - {reason}" for reason in self.reasons)


@dataclass(eq=False, kw_only=True)
class ModelUnreadable(CfdslError):
    """A file is no model config at all."""

    file: str
    problem: str
    _says = "{file} cannot be read as a model's config: {problem}."
    _remedy = "give a Hugging Face config.json, or the folder of one, as `save_pretrained` writes it."


@dataclass(eq=False, kw_only=True)
class WeightsMismatch(CfdslError):
    """The tensors given are not the weights of the model. `problems` lists every one that is missing or wrong."""

    model: str
    problems: Sequence[str]
    _shown = 24  # of hundreds in a whole model, of which a screen holds as many
    _remedy = "pass the tensors of the model's Hugging Face state_dict, in the decoder's dtype and all on its device."

    @property
    def message(self) -> str:
        shown = list(self.problems[: self._shown])
        if len(self.problems) > len(shown):
            shown.append(f"and {len(self.problems) - len(shown)} more; `problems` of this error has all")
        return f"these are not the weights of {self.model}:" + "".join(f"\n  - {problem}" for problem in shown)


@dataclass(eq=False, kw_only=True)
class UnknownModel(CfdslError):
    """No preset has this name, and no config.json lies there."""

    name: str
    known: Sequence[str]
    _says = "there is no model {name!r}: no preset has this name and no config.json lies there."

    @property
    def remedy(self) -> str:
        return f"use one of {', '.join(self.known)}, or the path of a Hugging Face config.json."
