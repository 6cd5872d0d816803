"""`explain`: every config that was weighed, and every reason against those that cannot run."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from cfdsl.cli.console import console, print_json
from cfdsl.cli.listings import Json
from cfdsl.cli.panels import candidates, header, refused_table
from cfdsl.cli.report import choice_record, refusals, request_record
from cfdsl.cli.request import Request, takes_request
from cfdsl.cli.tables import panel
from cfdsl.cli.units import plural
from cfdsl.errors import raise_all


@takes_request()
def explain(request: Request, json: Json = False) -> None:
    """Show the configs that were weighed, their estimated times, and why others cannot run.

    What `compile` refuses is said too, below the tables, and the exit status is 1 then.
    """
    from cfdsl.cli.build import weighed_for

    rows, errors = weighed_for(request)
    record = {**request_record(request), "choice": choice_record(rows, request.overrides)}
    if json and rows:
        print_json(record)
    elif rows:
        show(record, request.part_note)
    raise_all(errors)


def show(record: dict[str, Any], part_note: str) -> None:
    """The record as tables."""
    screen, choice = console(), record["choice"]
    screen.print(header(record, part_note))
    fit = len(choice["fit"])
    if fit:
        screen.print(panel(f"{plural(fit, 'config')} fit, best first", Text(choice["why"]), Text(), candidates(choice["fit"])))
    if choice["refused"]:
        reasons = Text(", ".join(f"{kind}: {count}" for kind, count in refusals(choice["refused"])))
        screen.print(panel(f"{plural(len(choice['refused']), 'config')} refused", reasons, Text(), refused_table(choice["refused"])))
