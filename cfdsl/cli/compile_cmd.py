"""`compile`: a fusion for a model, from the spec to machine code, with everything that was decided and checked on the way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cfdsl.cli import panels
from cfdsl.cli.console import console, print_json
from cfdsl.cli.report import choice_record, config_record, graph_record, request_record, traffic_record
from cfdsl.cli.request import Request, takes_request

if TYPE_CHECKING:
    from cfdsl.compiler.stages import Lowered


@takes_request()
def compile_(request: Request, json: Annotated[bool, typer.Option("--json", help="One JSON object instead of panels.")] = False) -> None:
    """Compile a fusion for a model, and show the graph, the config and why, bytes and time, the oracle's check, and the files made."""
    from cfdsl.cli.build import lower_for

    screen = None if json else console()
    record = request_record(request)
    _show(screen, panels.header, record, request.part_note)
    lowered = lower_for(request)
    record |= lowered_record(request, lowered)
    _show(screen, panels.graph_panel, record["graph"])
    _show(screen, panels.config_panel, record["config"], record["choice"])
    left_out = record["left_out"] = reasons(request)
    cached = any(arg.role == "cache" for arg in lowered.plan.args)
    _show(screen, panels.traffic_panel, record["traffic"], request.kv_len if cached else None)
    record["oracle"] = check(request, lowered)
    _show(screen, panels.oracle_panel, record["oracle"], left_out.get("oracle"))
    record["kernel"], kernel = build(request, lowered)
    _show(screen, panels.kernel_panel, record["kernel"])
    record["gpu"] = None if "gpu" in left_out else run(request, kernel)
    _show(screen, panels.gpu_panel, record["gpu"], left_out.get("gpu"))
    if json:
        print_json(record)
    if record["oracle"] is not None and not record["oracle"]["ok"]:
        raise typer.Exit(1)


def _show(screen: Console | None, draw: Any, *what: Any) -> None:
    """Each panel as soon as it is known: compiling and checking take seconds."""
    if screen is not None:
        screen.print(draw(*what))


def lowered_record(request: Request, lowered: Lowered) -> dict[str, Any]:
    """Graph, config, alternatives and traffic."""
    from cfdsl.dsl.interpret import count_traffic

    capacity = request.kv_len + 1
    sizes = {"tokens": capacity, "positions": capacity, "length": request.kv_len}
    return {
        "graph": graph_record(lowered.placed),
        "config": config_record(lowered.config, lowered.plan),
        "choice": choice_record(lowered.choice.rows, request.overrides),
        "traffic": traffic_record(count_traffic(lowered.placed, sizes), lowered.plan, lowered.choice, request.part),
    }


def check(request: Request, lowered: Lowered) -> dict[str, Any] | None:
    """The oracle's check, with how long it took."""
    from cfdsl.cli.selfcheck import oracle_check

    start = time.perf_counter()
    found = oracle_check(request, lowered.placed.mesh)
    if found is not None:
        found["seconds"] = time.perf_counter() - start
    return found


def build(request: Request, lowered: Lowered) -> tuple[dict[str, Any], Any]:
    """Compile, or load from the cache."""
    from cfdsl.cli.build import kernel_for, kernel_record

    start = time.perf_counter()
    kernel = kernel_for(request, lowered)
    return kernel_record(kernel, time.perf_counter() - start), kernel


def reasons(request: Request) -> dict[str, str]:
    """Why the oracle's check, or the run on the GPU, is left out; nothing of what is not."""
    from cfdsl.cli.companions import lacking
    from cfdsl.cli.gpu import gpu_part

    at_hand, lacks = gpu_part(), lacking(request.fusion)
    gpu = lacks if at_hand and at_hand.arch == request.part.arch else "there is no GPU here that this was compiled for"
    return {name: why for name, why in (("oracle", lacks), ("gpu", gpu)) if why}


def run(request: Request, kernel: Any) -> dict[str, Any]:
    """Run, check and time the kernel on the GPU at hand."""
    from cfdsl.runtime.benchmark import check_and_time

    return check_and_time(request.fusion, request.model, kernel, request.kv_len, request.options)
