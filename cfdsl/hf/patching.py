"""patch and unpatch: one method of the model replaced, on the instance, and put back."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from cfdsl.errors import NotPatched, PatchedCopy, raise_all
from cfdsl.hf import call_checks, checks
from cfdsl.hf.alterations import Watch
from cfdsl.hf.caches import has_tokens, static_tensors, tokens_before
from cfdsl.hf.session import Session

STATE = "_cfdsl"
COMPILES = "_valid_auto_compile_criteria"


def patch(model: Any, *, dtype: str | None = None, backend: str | None = None) -> None:
    """See `cfdsl.hf.patch`."""
    raise_all(checks.patch_errors(model, dtype, backend))
    state = Patched(model, backend or "kernel")
    if state.backend == "kernel":
        with torch.cuda.device(next(model.parameters()).device):  # the current one may be another
            raise_all(checks.plan_errors(state.sizes, state.dtype))
    original = model.forward

    @functools.wraps(original)  # generate() looks at the signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        call = _bound(original, args, kwargs) if args else kwargs
        return state.decode(call) if is_decode(call) else original(*args, **kwargs)

    # generate() compiles a model with a StaticCache by itself: there is nothing left to compile, and tracing would only break on this.
    instead = {STATE: state, "forward": torch.compiler.disable(forward), COMPILES: lambda *args, **kwargs: False}
    state.before = {name: model.__dict__[name] for name in instead if name in model.__dict__}
    model.__dict__.update(instead)


def unpatch(model: nn.Module) -> None:
    """See `cfdsl.hf.unpatch`."""
    state = _state(model)
    for name in (STATE, "forward", COMPILES):
        model.__dict__.pop(name, None)
    model.__dict__.update(state.before)


def status(model: nn.Module, clear: bool = False) -> tuple[str, ...]:
    """See `cfdsl.hf.status`."""
    flagged = [session.decoder.status(clear) for session in _state(model).sessions.values()]
    return tuple(dict.fromkeys(text for texts in flagged for text in texts))


def _state(model: object) -> Patched:
    """What `patch` left on a model. Raises NotPatched for anything else."""
    state: Patched | None = getattr(model, "__dict__", {}).get(STATE)
    if state is None:
        raise NotPatched(model=f"the {type(model).__name__}")
    return state


def _bound(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name."""
    found = dict(inspect.signature(original).bind(*args, **kwargs).arguments)
    return {**found, **found.pop("kwargs", {})}


def is_decode(call: Mapping[str, Any]) -> bool:
    """Whether a call has one new token and continues a sequence; anything else is Hugging Face's."""
    given = call.get("input_ids")
    if given is None:
        given = call.get("inputs_embeds")
    one = isinstance(given, torch.Tensor) and given.dim() > 1 and given.shape[1] == 1
    return one and has_tokens(call.get("past_key_values"))


class Patched:
    """What a patched model knows: its sizes, its weights by name, and a session per cache, which lives as long as the cache."""

    def __init__(self, model: Any, backend: str) -> None:
        self._model = weakref.ref(model)  # the model holds this object
        self.sizes, self.watch = checks.model_config(model), Watch(model)
        self.backend = backend
        self.dtype = checks.DTYPES[next(model.parameters()).dtype]
        self.before: dict[str, Any] = {}  # attributes of the model that others took the place of
        self.sessions: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> NoReturn:
        """Copying and pickling a model come by here, through its attributes."""
        raise PatchedCopy(model=f"the {type(self.model).__name__}")

    @property
    def model(self) -> Any:
        """The model that this belongs to."""
        return self._model()

    @torch.no_grad()
    def decode(self, call: Mapping[str, Any]) -> Any:
        """One token: logits as Hugging Face returns them, the cache one token longer."""
        weight = next(self.model.parameters())
        with torch.cuda.device(weight.device) if weight.is_cuda else contextlib.nullcontext():  # the current one may be another
            return self._decode(self.model, call["past_key_values"], call)

    def _decode(self, model: Any, cache: Any, call: Mapping[str, Any]) -> Any:
        changed = not self.watch.holds()
        errors = [*(checks.changed_errors(model, self.dtype, self.backend) if changed else ()), *call_checks.call_errors(model, call)]
        session = None if isinstance(cache, tuple) else self.sessions.get(cache)  # a tuple, of an early version, is refused below
        if changed or session is None or not session.found.still_in(cache):
            session = None
            errors += call_checks.cache_errors(model, self.sizes, cache)
        raise_all(errors)
        if changed:
            self._look_anew(model)
        session = session or self._begin(model, cache)
        found = session.found
        mask = call_checks.single_mask(call.get("attention_mask"))
        session.begin(tokens_before(cache, found, call), mask, call.get("position_ids"))
        logits = session.step(call["input_ids"])
        found.advance()
        return _output(model, logits.to(model.dtype, copy=True)[:, None], cache, call)

    def _look_anew(self, model: Any) -> None:
        """Take the model as it is now, with nothing against it: what was captured may have read weights from where they no longer are."""
        self.sessions.clear()
        self.sizes, self.watch = checks.model_config(model), Watch(model)

    def _begin(self, model: Any, cache: Any) -> Session:
        """A session for a cache that has none, or other tensors than it had."""
        found = static_tensors(cache)
        assert found is not None
        with torch.inference_mode(False):  # what a session allocates outlives the caller's inference_mode
            self.sessions[cache] = Session(self.sizes, checks.weights(model), found, self.dtype, self.backend)
        return self.sessions[cache]


def _output(model: Any, logits: torch.Tensor, cache: Any, call: Mapping[str, Any]) -> Any:
    """The record that the model's own forward returns, or its tuple."""
    outputs = importable_output()
    made = outputs(logits=logits, past_key_values=cache)
    wanted = call.get("return_dict")
    return made if (wanted if wanted is not None else model.config.return_dict) else made.to_tuple()


@functools.cache
def importable_output() -> Any:
    """transformers' CausalLMOutputWithPast: whoever has a model to patch has it."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return CausalLMOutputWithPast
