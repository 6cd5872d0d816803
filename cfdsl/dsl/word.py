"""What makes a function a word of the language: a call that does not fit its signature is a mistake of the spec, like any other."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from cfdsl.dsl.source import user_line
from cfdsl.errors import TraceError

F = TypeVar("F", bound=Callable[..., Any])


def word(fn: F) -> F:
    """Decorator: of a call with other arguments than those of `fn`, the trace notes the user's line and goes on with poison."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except TypeError:
            error = misfit(fn, args, kwargs)
            if error is None:
                raise
        from cfdsl.dsl.trace import current

        return current(fn.__name__).refuse(error)

    return call  # type: ignore[return-value]


def misfit(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> TraceError | None:
    """What is wrong with a call if these are not arguments of `fn`; None if they are."""
    signature = inspect.signature(fn)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        shown = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values() if p.name != "self"]
        advice = f"call it as {fn.__name__}{inspect.Signature(shown)}"
        return TraceError(problem=f"{fn.__name__}: {error}", advice=advice, src=user_line())
    return None
