"""Mistakes on the command line itself; like every other mistake they say what is wrong and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.errors import CfdslError


@dataclass(eq=False, kw_only=True)
class UnknownName(CfdslError):
    """A command, fusion, model or part that does not exist."""

    kind: str
    name: str
    known: str
    command: str
    _says = "there is no {kind} named {name!r}."
    _remedy = "use one of {known}; `python -m cfdsl {command}` lists them."


@dataclass(eq=False, kw_only=True)
class NoSuchFusion(CfdslError):
    """FILE.py:NAME of a file, or of a name in it, that is not there."""

    spot: str
    problem: str
    advice: str
    _says = "there is no fusion {spot!r}: {problem}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class SpecFailed(CfdslError):
    """Python raised something in the user's own file: while it was imported, or while a spec in it was traced."""

    error: str
    _says = "the file of the spec raised {error}."
    _remedy = "mend that line; with --debug the whole traceback is shown."


@dataclass(eq=False, kw_only=True)
class BadCompanion(CfdslError):
    """A reference, or a maker of example inputs, with which a spec cannot be checked."""

    fusion: str
    what: str
    problem: str
    advice: str
    _says = "the {what} of {fusion} {problem}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class BadOption(CfdslError):
    """An option of the command line has a value that it cannot have."""

    option: str
    value: str
    expected: str
    because: str = ""
    _remedy = "give {option} {expected}."

    @property
    def message(self) -> str:
        because = f" ({self.because})" if self.because else ""
        return f"{self.option} got {self.value!r}, which is not {self.expected}{because}."


@dataclass(eq=False, kw_only=True)
class NothingToShow(CfdslError):
    """`show` without a stage and without a picture."""

    stages: str
    _says = "`show` was not told what of the compilation to show."
    _remedy = "add --stage STAGE (one of {stages}), or --picture OUT.svg."


@dataclass(eq=False, kw_only=True)
class OptionsConflict(CfdslError):
    """Two options of the command line that mean nothing together."""

    option: str
    other: str
    reason: str
    _says = "{option} cannot be given with {other}: {reason}."
    _remedy = "leave one of them out."


@dataclass(eq=False, kw_only=True)
class NeedsGpu(CfdslError):
    """A command that measures was started on a machine without a GPU."""

    command: str
    _says = "`{command}` measures on a GPU, and this machine has none that torch can use."
    _remedy = "run it on a machine with one; without one, `compile`, `show` and `explain` do everything up to the machine code."


@dataclass(eq=False, kw_only=True)
class GenerateNeedsGpu(CfdslError):
    """`generate` with kernels was started on a machine that cannot run them."""

    _says = "`python -m cfdsl generate` runs kernels on a Hopper GPU, and this machine has none that torch can use."
    _remedy = "run it on a machine with one, or add --backend oracle: the same graphs on the CPU, seconds per token for a small model."
