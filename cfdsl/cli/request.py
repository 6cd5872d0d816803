"""What the commands share: which fusion, for which model and part, with which fields of the schedule given by hand."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cfdsl.cli.complaints import BadOption
from cfdsl.dsl.fusion import DTYPES
from cfdsl.errors import CfdslError, attempt, raise_all

if TYPE_CHECKING:
    from cfdsl.compiler.parts import Part
    from cfdsl.dsl.fusion import Fusion
    from cfdsl.models import ModelConfig

DEFAULT_PART = "h100-sxm"
Dtype = Literal["bf16", "f16", "fp16"]


@dataclass(frozen=True)
class Request:
    """One command line, resolved.

    part_from   how the part was found: given, gpu, default (there is no GPU) or fallback (there is one that cannot be used)
    overrides   fields of `Config` given by hand
    options     options of the fusion: its dataflows
    asked       the words it was made of, as `resolve` takes them: another process can make the same of them
    """

    fusion: Fusion
    model: ModelConfig
    batch: int
    dtype: str
    part: Part
    part_from: str
    kv_len: int
    overrides: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def part_note(self) -> str:
        """Where the target came from, as a sentence."""
        if self.part_from == "default":
            return f"There is no GPU here: compiling for {self.part.name}, the default of --part."
        if self.part_from == "fallback":
            return (
                f"This machine's GPU cannot be compiled for, or torch cannot use it: compiling for {self.part.name}, the default of --part."
            )
        if self.part_from == "gpu":
            return f"Compiling for this machine's GPU, {self.part.name}."
        return f"Compiling for {self.part.name}, as --part says."


def _flag(names: str, text: str) -> Any:
    return Annotated[bool | None, typer.Option(names, help=text, rich_help_panel="Schedule", show_default=False)]


PARAMETERS: dict[str, Any] = {
    "fusion": Annotated[str, typer.Argument(help="A shipped fusion, or FILE.py:NAME of your own.", show_default=False)],
    "model": Annotated[str, typer.Option("--model", "-m", help="A preset, or the path of a Hugging Face config.json.", show_default=False)],
    "batch": Annotated[int, typer.Option(min=1, help="Sequences.")],
    "dtype": Annotated[Dtype, typer.Option(help="Of weights, caches, inputs and outputs; sums are float32.")],
    "part": Annotated[
        str | None, typer.Option(help=f"Target; the GPU at hand, or {DEFAULT_PART} where there is none.", show_default=False)
    ],
    "kv_len": Annotated[int, typer.Option(min=0, help="Cached tokens that estimates, pictures and runs are for.")],
    "option": Annotated[list[str] | None, typer.Option("--option", "-o", help="An option of the fusion, KEY=VALUE.", show_default=False)],
    "clusters": Annotated[int | None, typer.Option(min=1, help="Of the launch.", rich_help_panel="Schedule", show_default=False)],
    "cluster_size": Annotated[int | None, typer.Option(min=1, help="CTAs of a cluster.", rich_help_panel="Schedule", show_default=False)],
    "splits": Annotated[
        int | None, typer.Option(min=1, help="Clusters that share a unit's tokens.", rich_help_panel="Schedule", show_default=False)
    ],
    "stages": Annotated[int | None, typer.Option(min=0, help="Slots of the ring.", rich_help_panel="Schedule", show_default=False)],
    "stage_bytes": Annotated[int | None, typer.Option(min=16, help="Bytes of a slot.", rich_help_panel="Schedule", show_default=False)],
    "window": Annotated[
        int | None, typer.Option(min=0, help="Tiles in flight at most; 0: all slots.", rich_help_panel="Schedule", show_default=False)
    ],
    "early": Annotated[
        int | None,
        typer.Option(min=0, help="Of them, what a grid barrier must precede; 0: all.", rich_help_panel="Schedule", show_default=False),
    ],
    "warps": Annotated[int | None, typer.Option(min=1, help="Consumer warps.", rich_help_panel="Schedule", show_default=False)],
    "ctas_per_sm": Annotated[
        int | None, typer.Option(min=1, help="CTAs that must fit on an SM together.", rich_help_panel="Schedule", show_default=False)
    ],
    "pdl": _flag("--pdl/--no-pdl", "Begin while the launch before ends."),
    "multicast": _flag("--multicast/--no-multicast", "One load per cluster of what all ranks read."),
    "evict_first": _flag("--evict-first/--no-evict-first", "L2 evict-first on weights."),
    "stamp_cluster": _flag("--stamp-cluster/--no-stamp-cluster", "Tell ptxas the cluster size."),
}
DEFAULTS = {"batch": 1, "dtype": "bf16", "kv_len": 4096}


def takes_request(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make `command(request, ...)` a typer command that takes the shared options (except those `without`) and then its own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=annotation,
                default=inspect.Parameter.empty if name in ("fusion", "model") else DEFAULTS.get(name),
            )
            for name, annotation in PARAMETERS.items()
            if name not in without
        ]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            mine = {parameter.name: given.pop(parameter.name) for parameter in own}
            command(resolve(**given), **mine)

        parameters = [*shared, *own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__
        return run

    return decorate


def resolve(
    *, fusion: str, model: str, batch: int = 1, dtype: str = "bf16", part: str | None = None, kv_len: int = 4096,
    option: list[str] | None = None, **schedule: Any,
) -> Request:  # fmt: skip
    """Look everything up. Raises the one mistake of the names, options and fields, or `Errors` with all of them."""
    from cfdsl.cli.catalog import find_fusion, find_model
    from cfdsl.compiler.cost.overrides import override_errors

    overrides = {name: value for name, value in schedule.items() if value is not None}
    mistakes: list[CfdslError] = []
    found = attempt(mistakes, find_fusion, fusion)
    config = attempt(mistakes, find_model, model)
    target = attempt(mistakes, resolve_part, part)
    options = attempt(mistakes, parse_options, option or [])
    mistakes += override_errors(overrides)
    if found is not None:
        mistakes += found.request_errors(batch, dtype, options or {})
    raise_all(mistakes)
    to, came_from = target
    asked = {"fusion": fusion, "model": model, "batch": batch, "dtype": dtype, "kv_len": kv_len, "option": option, **schedule}
    return Request(found, config, batch, DTYPES[dtype], to, came_from, kv_len, overrides, options, asked)


def resolve_part(name: str | None) -> tuple[Part, str]:
    """The part that was asked for, else the GPU's, else the documented default; and which of these it was."""
    from cfdsl.cli.catalog import find_part
    from cfdsl.cli.gpu import gpu_part, gpu_present

    if name is not None:
        return find_part(name), "given"
    found = gpu_part()
    if found is not None:
        return found, "gpu"
    return find_part(DEFAULT_PART), "fallback" if gpu_present() else "default"


def parse_options(texts: list[str]) -> dict[str, Any]:
    """`["qkv=split_k", "n=2"]` as keywords; numbers and booleans become what they look like."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise BadOption(option="--option", value=text, expected="NAME=VALUE, such as qkv=split_k")
        found[name] = {"true": True, "false": False}.get(value.lower(), int(value) if value.lstrip("-").isdigit() else value)
    return found
