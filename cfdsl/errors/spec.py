"""Mistakes in a spec: names, shapes, dtypes, options, text."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.errors.base import CfdslError


@dataclass(eq=False, kw_only=True)
class TraceError(CfdslError):
    """The language is used in a way that cannot be traced."""

    problem: str
    advice: str
    _says = "{problem}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class ArgumentError(CfdslError):
    """An argument of a call (of the language, or of a compiled kernel) is not what it must be."""

    argument: str
    expected: str
    got: str
    advice: str = ""
    _says = "argument {argument!r} must be {expected}, got {got}."

    @property
    def remedy(self) -> str:
        return f"{self.advice or f'pass {self.argument!r} as {self.expected}'}."


@dataclass(eq=False, kw_only=True)
class DuplicateName(CfdslError):
    """Two different inputs, weights, caches or outputs have one name."""

    name: str
    first: str
    second: str
    _says = "the name {name!r} is taken: first {first}, now {second}."
    _remedy = "give one of them another name; the names become the kernel's arguments."


@dataclass(eq=False, kw_only=True)
class UnknownOption(CfdslError):
    """A dataflow option that the fusion does not have, or a value that the option does not take."""

    fusion: str
    option: str
    value: str
    known: str
    _says = "the fusion {fusion} has no option {option}={value}."
    _remedy = "its options are: {known}."


@dataclass(eq=False, kw_only=True)
class ShapeMismatch(CfdslError):
    """The shapes of an op's arguments do not go together."""

    op: str
    expected: str
    got: str
    _says = "{op} expects {expected}, got {got}."
    _remedy = "check the declared shapes; weights are (out, in), as Hugging Face stores them."


@dataclass(eq=False, kw_only=True)
class DtypeMismatch(CfdslError):
    """An argument has a dtype that the op does not take."""

    op: str
    argument: str
    expected: str
    got: str
    _says = "{op} expects {argument} of dtype {expected}, got {got}."
    _remedy = "declare {argument} with such a dtype."


@dataclass(eq=False, kw_only=True)
class TextSyntax(CfdslError):
    """A line of a graph's text cannot be read."""

    line: int
    text: str
    problem: str
    _says = "line {line} of the graph's text cannot be read: {problem}: {text!r}."
    _remedy = "write one node per line, as to_text prints it: %name = op(%argument, attribute=value) : dtype[shape]."


@dataclass(eq=False, kw_only=True)
class InvalidGraph(CfdslError):
    """A node of a graph breaks the rule of its op (a rewrite or an edited text made it so)."""

    op: str
    problem: str
    _says = "the graph is not valid at {op}: {problem}."
    _remedy = "every node must follow the rule of its op; build graphs with a traced fusion."
