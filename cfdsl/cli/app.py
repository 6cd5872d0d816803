"""The command line: one file per command, collected here. `main` turns every mistake into a message and exit code 1."""

from __future__ import annotations

import sys
from typing import Any

import typer

from cfdsl.cli import bench, cache_cmd, compile_cmd, explain, generate, listings, show, tune
from cfdsl.cli.complaints import UnknownName
from cfdsl.cli.console import print_error
from cfdsl.cli.spec_failure import spec_failure
from cfdsl.errors import CfdslError


class Commands(typer.core.TyperGroup):
    """The commands; a name that is none of them is answered with all of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with. Raises UnknownName."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UnknownName(kind="command", name=name, known=", ".join(self.list_commands(ctx)), command="--help")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="cfdsl",
    cls=Commands,
    help="Cluster dataflow graphs, compiled to GPU kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command("compile")(compile_cmd.compile_)
app.command("show")(show.show)
app.command("explain")(explain.explain)
app.command("bench", cls=bench.BenchCommand)(bench.bench)
app.command("tune")(tune.tune)
app.command("generate")(generate.generate)

app.command("models")(listings.models)
app.command("parts")(listings.parts)
app.command("fusions")(listings.fusions)
app.command("cache")(cache_cmd.cache)


@app.callback()
def options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Cluster dataflow graphs, compiled to GPU kernels."""  # --debug is listed here, and `main` looks for it


def main(argv: list[str] | None = None) -> None:
    """Run one command line. A mistake is printed without a traceback, unless with --debug, and exits with code 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:  # also after the command's name
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    try:
        app(arguments, prog_name="python -m cfdsl")
    except CfdslError as error:
        if debug:
            raise
        print_error(error)
        sys.exit(1)
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        told = spec_failure(error)
        if debug or told is None:
            raise
        print_error(told)
        sys.exit(1)
