"""Whether a Hugging Face model computes what its class and its config say: the kernels compute that, whatever was done to its modules.

A model is compared with a fresh one of its class and config, made on torch's meta device. So this knows nothing of the versions of
transformers but which of a module's numbers a forward pass depends on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from cfdsl.models import ModelConfig, rope_inv_freq

NUMBERS = (
    "scaling", "head_dim", "num_key_value_groups", "layer_idx", "variance_epsilon", "attention_scaling", "max_norm", "sliding_window",
)  # fmt: skip
OF_CONFIG = ("num_hidden_layers", "sliding_window")  # what the modules look up in the config at every call
KNOWN_CODE = ("torch", "transformers")
GLOBAL_HOOKS = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)
Finding = tuple[str, str, str]  # a module (or what it has), what it is, and what to do

UNDO = "undo that, or load the model anew: the kernels compute what its class and its config say"
REPLACED = "load the model without quantisation, merge its adapters, or put back what was replaced"
UNHOOK = "remove the hook (its handle has remove()): the kernels call no module"


class Watch:
    """What could be altered about a patched model between two calls, looked at again before each: a model of 32 layers has 423 modules
    and 291 weights, for which `holds` takes about 70 us on a core of an AMD EPYC server.

    It sees hooks and attributes that were added or removed, modules and weights that were replaced or moved, other NUMBERS and another
    dtype. It does not read what tensors hold: weights that are written in place are simply used.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = list(model.modules())[1:]  # hooks of the model itself are called around its forward as ever
        hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in inner]
        self._growing: list[dict[Any, Any]] = [*chain(*hooks), *GLOBAL_HOOKS, *(vars(module) for module in inner)]
        self._children = [module._modules for module in model.modules() if module._modules]
        slots = [(held, name) for module in inner for held in (module._parameters, module._buffers) for name in held]
        self._tensors = _Slots((held, name) for held, name in slots if held[name] is not None)
        self._absent = _Slots((held, name) for held, name in slots if held[name] is None)  # a bias, where there is none
        numbers = [(vars(module), name) for module in inner for name in NUMBERS if name in vars(module)]
        self._numbers = _Slots([*numbers, *((vars(model.config), name) for name in OF_CONFIG)])
        self._then = self._look()

    def holds(self) -> bool:
        """Whether everything is as it was."""
        try:
            return self._look() == self._then
        except TypeError:  # a weight that is no tensor any more
            return False

    def _look(self) -> tuple[list[Any], ...]:
        return (
            [*map(len, self._growing)],
            [*chain.from_iterable(map(dict.values, self._children))],  # modules are equal if they are the same
            [*map(Tensor.data_ptr, self._tensors.values())],
            [*self._absent.values()],
            [*self._numbers.values()],
            [next(self._tensors.values()).dtype],  # a model that went to the CPU and back may find its old addresses, with another dtype
        )


class _Slots:
    """Entries of many dictionaries, looked up without a Python loop."""

    def __init__(self, slots: Iterable[tuple[dict[str, Any], str]]) -> None:
        found = list(slots)
        self._held, self._names = [held for held, _ in found], [name for _, name in found]

    def values(self) -> Iterator[Any]:
        """What the entries hold now, in order; None for one that is gone."""
        return map(dict.get, self._held, self._names)


def alterations(model: Any, sizes: ModelConfig | None) -> Iterator[tuple[str, str]]:
    """Every way in which `model` computes something else than a fresh one of its class and config would: (problem, advice), of all
    modules alike in one. sizes: those of its config, if it could be read; else its rotary frequencies are not judged."""
    try:
        fresh = _fresh(model)
    except Exception as error:  # whatever its constructor says
        yield f"no {type(model).__name__} can be made of its config: {error}", UNDO
        return
    alike: dict[tuple[str, str], list[str]] = {}
    for name, what, advice in _findings(dict(fresh.named_modules(remove_duplicate=False)), model):
        alike.setdefault((what, advice), []).append(name or "the model itself")
    for (what, advice), names in alike.items():
        yield f"{first_of(names)} {what}", advice
    if any(map(len, GLOBAL_HOOKS)):
        yield "a forward hook was registered for all modules there are", UNHOOK
    if sizes is not None and not _rotates(model, sizes):
        yield "its rotary frequencies are not those of its config", UNDO


def first_of(names: list[str]) -> str:
    """Names as the subject of a sentence, with its verb."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _fresh(model: Any) -> Any:
    config = copy.deepcopy(model.config)
    config.pad_token_id = None  # often set after loading, and no part of what is computed
    config._attn_implementation = "eager"  # all compute the same, and some ask for a package
    with torch.device("meta"):
        return type(model)(config)


def _findings(fresh: dict[str, nn.Module], model: nn.Module) -> Iterator[Finding]:
    """What is different about each module, outermost first; nothing of what is inside of a module that was replaced."""
    given = dict(model.named_modules(remove_duplicate=False))
    other: list[str] = []
    for name in [*fresh, *(name for name in given if name not in fresh)]:
        if any(name.startswith(f"{outer}.") for outer in other):
            continue
        plain, module = fresh.get(name), given.get(name)
        if plain is not None and module is not None and type(plain) is type(module):
            yield from _of_module(name, plain, module)
            continue
        other.append(name)
        if module is None:
            yield name, "missing", REPLACED
        elif plain is None:
            yield name, "more than its config speaks of", REPLACED
        else:
            yield name, f"of class {type(module).__name__}, not {type(plain).__name__}", REPLACED


def _of_module(name: str, plain: nn.Module, module: nn.Module) -> Iterator[Finding]:
    for code in (type(module), type(module).forward):
        package = code.__module__.partition(".")[0]
        if package not in KNOWN_CODE:
            yield name, f"computed by code of {package!r}, not of {' or '.join(KNOWN_CODE)}", UNDO
            break
    if name and "forward" in vars(module):
        yield name, "given a forward of its own", UNDO
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if name and any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks):  # its own only record
        yield name, "called with a forward hook", UNHOOK
    yield from _of_parameters(name, plain._parameters, module._parameters)
    for number in NUMBERS:
        wanted, found = vars(plain).get(number), vars(module).get(number)
        if wanted != found:
            yield f"{name}.{number}", f"{found!r}, not {wanted!r}", UNDO


def _of_parameters(name: str, plain: dict[str, Any], given: dict[str, Any]) -> Iterator[Finding]:
    for key in {**plain, **given}:
        wanted, found = plain.get(key), given.get(key)
        if wanted is None and found is None:
            continue
        if wanted is None or found is None:
            yield f"{name}.{key}", "missing" if found is None else "more than its config speaks of", UNDO
        elif type(found) not in (nn.Parameter, Tensor):
            yield f"{name}.{key}", f"a {type(found).__name__}, not a plain tensor", REPLACED
        elif found.shape != wanted.shape:
            yield f"{name}.{key}", f"of shape {tuple(found.shape)}, not {tuple(wanted.shape)}", UNDO


def _rotates(model: Any, sizes: ModelConfig) -> bool:
    """Whether the model turns by the frequencies of its config, up to the rounding of the dtype that it has them in."""
    found = getattr(getattr(model.model, "rotary_emb", None), "inv_freq", None)
    if found is None or found.is_meta:
        return True  # of a version that has them elsewhere; an offloaded model is refused for that
    wanted = torch.tensor(rope_inv_freq(sizes), dtype=torch.float64)
    kind = torch.finfo(found.dtype)  # model.to(torch.float16) rounds them too, the smallest ones to a few bits
    relative, absolute = max(1e-4, 2 * kind.eps), kind.smallest_normal * kind.eps
    return found.shape == wanted.shape and torch.allclose(found.double().cpu(), wanted, relative, absolute)
