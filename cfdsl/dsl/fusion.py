"""`@fusion`: a spec with a name, its dataflow options, and optionally a plain reference and example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cfdsl.dsl.graph import Graph, Src
from cfdsl.dsl.source import source_at
from cfdsl.dsl.trace import trace, tracing
from cfdsl.errors import ArgumentError, CfdslError, TraceError, UnknownOption, attempt, is_whole, raise_all
from cfdsl.models import ModelConfig, resolve

DTYPES = {"bf16": "bf16", "bfloat16": "bf16", "f16": "f16", "fp16": "f16", "float16": "f16"}
Spec = Callable[..., Any]
MOST_DECORATORS = 20  # lines of them


@dataclass(frozen=True)
class Peer:
    """Something that a fusion's kernel is measured against, computing the same in another way.

    name, variant   what it stands for, and how; of several variants of a name the fastest counts
    compile         whether it is to be compiled by torch.compile
    make            (model, tensors, cached tokens, **options) -> (function, its arguments): from the kernel's own tensors by name, in which
                    weights may be put together anew, as the peer likes them best. The function is the same for every call, and returns
                    the outputs in their order: a tensor, or a tuple of several
    """

    name: str
    variant: str
    compile: bool
    make: Spec


def expect_fusion(given: object) -> None:
    """Raise ArgumentError for anything but a Fusion, such as a name of one or a function without `@fusion`."""
    if not isinstance(given, Fusion):
        got = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
        advice = "import the fusion, as in `from fusions.lm_head import lm_head`, or decorate the function of the spec with @cf.fusion"
        raise ArgumentError(argument="fusion", expected="a fusion", got=got, advice=advice)


class Fusion:
    """A spec that can be traced for any model, batch and dtype.

    name, file, doc   of the function
    options           its keyword-only parameters with their defaults: the dataflows of the fusion
    choices           the values that an option takes, where its annotation is a `Literal[...]` or bool
    peers             what `bench` measures it against, in the order in which they were registered
    """

    def __init__(self, fn: Spec) -> None:
        _expect_spec(fn)
        self.fn = fn
        self.name: str = fn.__name__
        self.file: str = inspect.getsourcefile(fn) or fn.__code__.co_filename
        self.doc: str = inspect.getdoc(fn) or ""
        parameters = inspect.signature(fn).parameters.values()
        self.options: dict[str, Any] = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.choices = _choices(fn, self.options)
        self.peers: list[Peer] = []
        self._reference: Spec | None = None
        self._example_inputs: Spec | None = None

    def trace(self, model: ModelConfig | str, batch: int = 1, dtype: str = "bf16", **options: Any) -> Graph:
        """The graph of this fusion for one model (a ModelConfig, a preset's name, or a config.json), batch size and 16-bit dtype.

        options: the fusion's own dataflow options. Raises the one mistake of the spec, or `Errors` with all of them.
        """
        errors = self.request_errors(batch, dtype, options)
        found = attempt(errors, resolve, model)
        raise_all(errors)
        return trace(self.name, DTYPES[dtype], lambda: self.fn(found, batch, **options), self.src)

    @property
    def src(self) -> Src:
        """The line of the function's `def`."""
        return def_line(self.fn) or Src(self.file, 0)

    def request_errors(self, batch: int, dtype: str, options: Mapping[str, Any]) -> list[CfdslError]:
        """What is wrong with a request before it is traced: each option that there is not, each value that an option does not take, ..."""
        errors: list[CfdslError] = [
            UnknownOption(fusion=self.name, option=option, value=repr(value), known=self._known())
            for option, value in options.items()
            if option not in self.options or (self.choices.get(option) and value not in self.choices[option])
        ]
        if not is_whole(batch, 1):
            errors.append(ArgumentError(argument="batch", expected="a positive number of sequences", got=repr(batch)))
        if not isinstance(dtype, str) or dtype not in DTYPES:
            errors.append(ArgumentError(argument="dtype", expected="'bf16' or 'f16'", got=repr(dtype)))
        return errors

    def _known(self) -> str:
        each = (f"{name} ({', '.join(map(repr, self.choices.get(name, (default,))))})" for name, default in self.options.items())
        return ", ".join(each) or "none"

    def __call__(self, model: ModelConfig, batch: int, **options: Any) -> Any:
        """Inside another spec: this fusion's ops, traced in place."""
        if not tracing():
            advice = f"use {self.name}.trace(model), cf.interpret or cf.compile({self.name}, model)"
            raise TraceError(problem=f"the fusion {self.name} was called like a function", advice=advice)
        return self.fn(model, batch, **options)

    @property
    def reference(self) -> Spec:
        """Before one is registered: the decorator that registers a plain PyTorch reference. After: that reference."""
        return self._reference or self._register("_reference")

    @property
    def example_inputs(self) -> Spec:
        """Before one is registered: the decorator that registers a maker of example inputs. After: that maker."""
        return self._example_inputs or self._register("_example_inputs")

    def peer(self, name: str, variant: str, *, compile: bool = False) -> Callable[[Spec], Spec]:
        """Decorator: register `make` of a Peer."""

        def register(make: Spec) -> Spec:
            self.peers.append(Peer(name, variant, compile, make))
            return make

        return register

    @property
    def has_reference(self) -> bool:
        return self._reference is not None

    @property
    def has_example_inputs(self) -> bool:
        return self._example_inputs is not None

    def _register(self, slot: str) -> Spec:
        def register(fn: Spec) -> Spec:
            setattr(self, slot, fn)
            return fn

        return register

    def __repr__(self) -> str:
        return f"<fusion {self.name}>"


def def_line(fn: Spec) -> Src | None:
    """The line of a function's `def`, which may stand below decorators; None for a callable that is no function."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    if code is None:
        return None
    file, first = inspect.getsourcefile(code) or code.co_filename, code.co_firstlineno
    lines = (source_at(file, line) for line in range(first, first + MOST_DECORATORS))
    return next((src for src in lines if src.code.startswith("def ")), source_at(file, first))


def fusion(fn: Spec) -> Fusion:
    """Decorator: make a spec `def name(m: ModelConfig, batch: int, *, option="default")` a Fusion."""
    return Fusion(fn)


def _expect_spec(fn: Spec) -> None:
    """A spec is a Python function that takes a model's config and a batch size, by position."""
    expected, advice = "a function of (model, batch), and options by keyword", "write it as `def name(m, batch, *, option=...)`"
    if not inspect.isfunction(fn):
        raise ArgumentError(argument="fn", expected=expected, got=f"a {type(fn).__name__}", advice=advice)
    try:
        inspect.signature(fn).bind(None, 1)
    except TypeError:
        got = f"{fn.__name__}{inspect.signature(fn)}"
        raise ArgumentError(argument="fn", expected=expected, got=got, advice=advice, src=def_line(fn)) from None


def _choices(fn: Spec, options: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    try:
        hints = get_type_hints(fn)
    except NameError:  # an annotation that only a type checker can resolve: the options are then open
        return {}
    literal = {name: get_args(hint) for name, hint in hints.items() if name in options and get_origin(hint) is Literal}
    return literal | {name: (True, False) for name, hint in hints.items() if name in options and hint is bool}
