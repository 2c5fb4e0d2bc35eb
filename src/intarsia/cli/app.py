"""The verbs by name, and the console's entry point."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from ..core.interrupts import never_lost
from ..core.quiet import kept_quiet
from . import searching
from .choosing import auto
from .codec import codec
from .combining import combine
from .comparing import compare, report
from .components import components
from .compressing import compress, doctor
from .cycles import cycles
from .decoding import generate, spans
from .demo import demo
from .exporting import export
from .groups import group_of, overview
from .listing import list_methods, show
from .merging import merge
from .offloading import offload
from .placing import place, trace
from .recommending import recommend
from .scoring import evaluate, predict
from .serving import serve
from .shell import Verbs, arguments, say
from .simulating import simulate
from .sparsifying import convert, sparsify
from .targets import holding
from .training import fit
from .unlearning import unlearn

app = typer.Typer(
    cls=Verbs,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sparse and modular adaptation of pretrained models.",
)


def version(requested: bool) -> None:
    """Print the version and stop."""
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
    """Sparse and modular adaptation of pretrained models."""
    # Paths that a verb writes stay locked until it ends, however it ends.
    ctx.with_resource(holding())
    if quiet:
        ctx.with_resource(kept_quiet())
    if ctx.invoked_subcommand is None:
        say(overview())


COMMANDS: Mapping[str, Callable[..., None]] = {"list": list_methods} | {
    command.__name__: command
    for command in (
        *(fit, compare, auto, predict, evaluate, report, export),
        *(sparsify, compress, convert, generate, merge, spans),
        *(trace, place, simulate, offload, serve, unlearn, combine),
        *(searching.index, searching.search, recommend),
        *(components, cycles, doctor, show, demo),
    )
}
for name, command in COMMANDS.items():
    app.command(name, rich_help_panel=group_of(name))(command)
app.add_typer(codec, name="codec", rich_help_panel=group_of("codec"))


def main() -> None:
    """Run the `intarsia` command on the words of the command line."""
    # Outermost, so that an error of typer itself is reported, too.
    with never_lost():
        app(arguments(sys.argv[1:]), prog_name="intarsia")
