"""Tables that narrow to the width there is, and the frames around them: what every command prints with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table


class NarrowingTable(Table):
    """A table that leaves columns out, one after the other in the order of `spare`, until it fits the width that there is."""

    spare: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The rows, in as many of the columns as fit."""
        whole = self.columns
        try:
            for name in self.spare:
                if Measurement.get(console, options.update(max_width=10_000), self).maximum <= options.max_width:
                    break
                left = [column for column in self.columns if column.header != name]
                self.columns = [replace(column, _index=index) for index, column in enumerate(left)]
            yield from super().__rich_console__(console, options)
        finally:
            self.columns = whole


def table(*columns: str, title: str | None = None, spare: Sequence[str] = ()) -> NarrowingTable:
    """A plain table; a column whose name starts with `>` is set flush right. spare: names of columns to leave out where it is too wide."""
    made = NarrowingTable(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    made.spare = [escape(name) for name in spare]
    for column in columns:
        made.add_column(escape(column.lstrip(">")), justify="right" if column.startswith(">") else "left", overflow="fold")
    return made


def panel(title: str, *parts: RenderableType) -> Panel:
    """A titled frame around its parts, one below the other."""
    return Panel(Group(*parts), title=f"[bold]{title}[/bold]", title_align="left", border_style="dim", padding=(0, 1))
