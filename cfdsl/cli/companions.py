"""What the author of a spec registers beside it, called and looked at: its mistakes are said with the author's line.

What these functions raise themselves is said so too: `spec_failure` knows `_call`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cfdsl.cli.complaints import BadCompanion
from cfdsl.dsl.fusion import Fusion, def_line
from cfdsl.errors import ArgumentError, CfdslError, singles

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
EXAMPLES = "def example_inputs(m, batch=1, dtype='bf16', *, length, capacity, device='cpu', seed=0)"
REFERENCE = "def reference(m, tensors, precision='f64')"


def lacking(fusion: Fusion) -> str:
    """What is not registered of it, in words; empty if everything is."""
    there = {"reference": fusion.has_reference, "example inputs": fusion.has_example_inputs}
    missing = [what for what, is_there in there.items() if not is_there]
    return f"this fusion has no {' and no '.join(missing)}" if missing else ""


def companion_errors(fusion: Fusion) -> list[BadCompanion]:
    """What a fusion lacks to be run and measured: a reference, a maker of example inputs."""
    errors = []
    if not fusion.has_reference:
        advice = f"register one with @{fusion.name}.reference: {REFERENCE}"
        errors.append(_bad(fusion, fusion.fn, "reference", "is missing", advice))
    if not fusion.has_example_inputs:
        advice = f"register a maker of them with @{fusion.name}.example_inputs: {EXAMPLES}"
        errors.append(_bad(fusion, fusion.fn, "example inputs", "are missing", advice))
    return errors


def example_tensors(fusion: Fusion, *args: Any, **settings: Any) -> Tensors:
    """The example inputs, tensors by name; which there must be, the oracle knows. Raises BadCompanion."""
    advice = f"write it as {EXAMPLES}, and the fusion's options by keyword"
    return _named(fusion, fusion.example_inputs, "example inputs", advice, *args, **settings)


@contextmanager
def blamed_on_examples(fusion: Fusion) -> Iterator[None]:
    """Arguments that do not suit the oracle came from the example inputs: the error names their line."""
    try:
        yield
    except CfdslError as error:
        for each in singles(error):
            if isinstance(each, ArgumentError) and each.src is None:
                each.src = def_line(fusion.example_inputs)
        raise


def reference_tensors(fusion: Fusion, like: Tensors, *args: Any, **settings: Any) -> Tensors:
    """What the reference computes: at least what is in `like`, in the same shapes, and numbers. Raises BadCompanion."""
    fn = fusion.reference
    found = _named(fusion, fn, "reference", f"write it as {REFERENCE}, and the fusion's options by keyword", *args, **settings)
    missing = [name for name in like if name not in found]
    if missing:
        advice = f"return a dict with each output of the spec: {_quoted(like)}"
        raise _bad(fusion, fn, "reference", f"gives no {_quoted(missing)}", advice)
    for name, want in like.items():
        got = found[name]
        if got.shape != want.shape:
            problem = f"gives {name!r} in shape {tuple(got.shape)}, and the spec has {tuple(want.shape)}"
            raise _bad(fusion, fn, "reference", problem, "return every output in the shape that the spec declares")
        if got.is_floating_point() and not bool(got.isfinite().all()):
            advice = "mend it, or the example inputs; what must not be read may be NaN, what is computed from it may not"
            raise _bad(fusion, fn, "reference", f"gives a {name!r} with elements that are no finite numbers", advice)
    return found


def _named(fusion: Fusion, fn: Callable[..., Any], what: str, advice: str, *args: Any, **settings: Any) -> Tensors:
    """Call it. Raises BadCompanion if it cannot be called so, or does not give tensors by name."""
    try:
        inspect.signature(fn).bind(*args, **settings)
    except TypeError as error:
        raise _bad(fusion, fn, what, f"cannot be called: {error}", advice) from None
    found = _call(fn, *args, **settings)
    if not isinstance(found, Mapping) or not all(hasattr(value, "is_floating_point") for value in found.values()):  # tensors have it
        given = type(found).__name__
        raise _bad(fusion, fn, what, f"must give a dict of tensors by name, and not this {given}", "return {'name': tensor, ...}")
    return found


def _call(fn: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    return fn(*args, **settings)


def _bad(fusion: Fusion, fn: Callable[..., Any], what: str, problem: str, advice: str) -> BadCompanion:
    return BadCompanion(fusion=fusion.name, what=what, problem=problem, advice=advice, src=def_line(fn))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
