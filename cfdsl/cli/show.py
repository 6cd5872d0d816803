"""`show`: any stage of a compilation as text, or the whole plan as a picture."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cfdsl.cli.complaints import NothingToShow
from cfdsl.cli.console import console, print_code
from cfdsl.cli.files import file_errors, write
from cfdsl.cli.request import Request, takes_request
from cfdsl.errors import raise_all


class Stage(StrEnum):
    """What can be shown. All but the last two need no toolchain."""

    traced = "traced"
    config = "config"
    placed = "placed"
    plan = "plan"
    check = "check"
    source = "source"
    ptx = "ptx"
    sass = "sass"


LANGUAGES = {Stage.source: "python", Stage.ptx: "ptx", Stage.sass: "nasm"}


@takes_request()
def show(
    request: Request,
    stage: Annotated[Stage | None, typer.Option("--stage", "-s", help="Which stage to print.", show_default=False)] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw graph and plan into this .svg file.", show_default=False)] = None,
) -> None:
    """Print a stage of the compilation, or draw the placed graph with --picture OUT.svg."""
    if stage is None and picture is None:
        raise NothingToShow(stages=", ".join(Stage.__members__))
    raise_all(file_errors("--picture", picture, (".svg",)))
    if request.part_from in ("default", "fallback"):
        console(stderr=True).print(request.part_note, markup=False)
    if picture is not None:
        draw_to(request, picture)
    if stage is not None:
        print_code(stage_text(request, stage), LANGUAGES.get(stage, "text"))


def stage_text(request: Request, stage: Stage) -> str:
    """The text of one stage; compiles only for ptx and sass."""
    from cfdsl.cli.build import kernel_for, lower_for

    if stage in (Stage.ptx, Stage.sass):
        kernel = kernel_for(request)
        return kernel.ptx if stage is Stage.ptx else kernel.sass
    return lower_for(request).stages[stage.value]


def draw_to(request: Request, path: Path) -> None:
    """Write the picture to `path`, an .svg file."""
    from cfdsl.cli.build import lower_for
    from cfdsl.cli.picture import draw

    lowered = lower_for(request)
    text = draw(lowered.placed, lowered.plan, request.kv_len, request.part.hbm_gbps, request.part.name)
    write("--picture", path, text)
    console(stderr=True).print(f"wrote {path} ({len(text) // 1024 + 1} KB)", markup=False)
