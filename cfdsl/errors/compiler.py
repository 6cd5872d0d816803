"""What the compiler refuses: configs, plans, algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cfdsl.errors.base import CfdslError, listed


@dataclass(eq=False, kw_only=True)
class NotLowered(CfdslError):
    """The oracle runs this, the compiler does not (yet)."""

    op: str
    why: str = "the compiler has no lowering for it"
    advice: str = "interpret() runs it; for a kernel, write it with the ops of a shipped fusion"
    _says = "{op} cannot be compiled: {why}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class PlanError(CfdslError):
    """The protocol arithmetic of a plan does not add up. `sum` spells it out."""

    what: str
    sum: str
    advice: str = "this is a mistake in cfdsl unless you edited the plan; report it with `show --stage plan`"
    _says = "the plan is wrong: {what}: {sum}."
    _remedy = "{advice}."


@dataclass(eq=False, kw_only=True)
class ConfigError(CfdslError):
    """A field of the schedule has a value that no kernel can be made with."""

    name: str
    value: object
    expected: str
    _says = "the config has {name}={value!r}, it must be {expected}."
    _remedy = "leave {name} out and it is chosen for you, or give a value that is {expected}."


@dataclass(eq=False, kw_only=True)
class NoLegalConfig(CfdslError):
    """The cost model had to refuse every config. `reasons` has each reason once, with the configs that it speaks against."""

    fusion: str
    part: str
    given: str
    reasons: Sequence[str]

    @property
    def message(self) -> str:
        text = f"{self.fusion} has no config that runs on {self.part}{self.given}:"
        return text + "".join(f"\n  - {reason}" for reason in self.reasons)

    @property
    def remedy(self) -> str:
        change = "give fewer fields of the config" if self.given else "change what the reasons name"
        return f"{change}, or take another part; `explain` shows every config with its reasons."


@dataclass(eq=False, kw_only=True)
class CompileFailed(CfdslError):
    """The generated source was refused by the toolchain."""

    source: str
    detail: str
    _says = "the generated kernel {source} did not compile: {detail}."
    _remedy = "this is a mistake in cfdsl; report it with the generated source."


@dataclass(eq=False, kw_only=True)
class AlgorithmUnsupported(CfdslError):
    """No algorithm, or not the one that was asked for, can do a collective. `reasons` says why, of each that was looked at.

    grows   the result grows with the cluster, as that of a gather does
    """

    request: str
    algorithm: str | None
    reasons: Sequence[tuple[str, str]]
    possible: Sequence[str] = ()
    grows: bool = False

    @property
    def message(self) -> str:
        text = f"{self.request} cannot be done{f' by {self.algorithm!r}' if self.algorithm else ''}:"
        return text + "".join(f"\n  - {name}: {why}" for name, why in self.reasons)

    @property
    def remedy(self) -> str:
        if self.possible:
            return f"use {listed([repr(name) for name in self.possible])}, or leave the algorithm to the cost model."
        cluster = " or a smaller cluster, whose payloads together are the result" if self.grows else ""
        return f"use a smaller payload{cluster}; or do it in several calls, each with a part of the payload."
