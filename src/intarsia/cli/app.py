"""The command line: what stands before the verb, and the console's entry point."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..core.interrupts import never_lost
from ..core.quiet import kept_quiet
from .groups import overview
from .shell import Verbs, arguments, say
from .targets import holding

app = typer.Typer(
    cls=Verbs,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a pretrained PyTorch model smaller, sparser or more specialised.",
)


def version(requested: bool) -> None:
    """Print the version and end the program, if --version was given.

    requested: True if it was; typer calls this for every command.
    """
    if requested:
        from importlib.metadata import version as of

        say(of("intarsia"))
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Results and errors only, no progress.")
    ] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make a pretrained PyTorch model smaller, sparser or more specialised."""
    # Paths that a verb writes stay locked until it ends, however it ends.
    ctx.with_resource(holding())
    if quiet:
        ctx.with_resource(kept_quiet())
    if ctx.invoked_subcommand is None:
        say(overview())


def main() -> None:
    """Run the `intarsia` command on the words of the command line."""
    # Outermost, so that an error of typer itself is reported, too.
    with never_lost():
        app(arguments(sys.argv[1:]), prog_name="intarsia")
