"""The base of every error, groups of them, and how they are raised together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Protocol, TypeGuard


class SourceLine(Protocol):
    """What an error needs to know of a place in the user's code (`cfdsl.dsl.graph.Src` is one)."""

    @property
    def file(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def code(self) -> str: ...


@dataclass(eq=False, kw_only=True)
class CfdslError(Exception):
    """Base of every error that cfdsl raises on purpose. `src` is the user's line, where there is one."""

    src: SourceLine | None = None

    _says: ClassVar[str] = "something is wrong"
    _remedy: ClassVar[str] = ""

    @property
    def message(self) -> str:
        """What is wrong, in one sentence."""
        return self._says.format(**self._fields())

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self._remedy.format(**self._fields())

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        lines = [self.message]
        if self.src is not None:
            lines.append(f"  {self.src.file}:{self.src.line}: {self.src.code}".rstrip())
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._fields()), ()


@dataclass(eq=False, kw_only=True)
class Errors(CfdslError):
    """Several independent mistakes, reported at once. `errors` lists them."""

    errors: tuple[CfdslError, ...]

    @property
    def message(self) -> str:
        text = [f"{len(self.errors)} mistakes:"]
        for number, error in enumerate(self.errors, 1):
            text.append(f"{number}. {type(error).__name__}: {error}".replace("\n", "\n   "))
        return "\n".join(text)


def singles(error: CfdslError) -> tuple[CfdslError, ...]:
    """The mistakes of an error, one by one: all of an `Errors`, else the error itself."""
    return tuple(error.errors) if isinstance(error, Errors) else (error,)


def raise_all(errors: Iterable[CfdslError]) -> None:
    """Raise nothing, the one mistake, or one `Errors` with all of them (nested groups flattened, repeats dropped)."""
    flat: dict[str, CfdslError] = {}
    for error in errors:
        for single in singles(error):
            flat.setdefault(f"{type(single).__name__}: {single}", single)
    if len(flat) == 1:
        raise next(iter(flat.values()))
    if flat:
        raise Errors(errors=tuple(flat.values()))


def attempt(errors: list[CfdslError], call: Callable[..., Any], *args: Any) -> Any:
    """What `call(*args)` gives; or None, and its mistake is put to `errors`, which are raised before anybody looks at the None."""
    try:
        return call(*args)
    except CfdslError as error:
        errors.append(error)
        return None


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Whether an argument is a whole number, of at least `least`; True and False, which Python counts among them, are none."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def listed(values: Iterable[object], word: str = "or") -> str:
    """Values as a choice, in words: "1, 2 or 4"."""
    *head, last = map(str, values)
    return f"{', '.join(head)} {word} {last}" if head else last
