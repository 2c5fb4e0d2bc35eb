"""`intarsia compare-routers`: the same small model under several routers, as a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intarsia.cli import completing
from intarsia.cli.early import numbers
from intarsia.cli.options import Json
from intarsia.cli.shell import note, say, show_json, show_rich

from .words import ROUTERS, router_names

if TYPE_CHECKING:
    from ..routing.report.findings import RouterSheet


def compare_routers(
    data: Annotated[
        str,
        typer.Argument(
            help="Corpora (austen, gcide, ...) and sets of pictures (fashion-mnist), with commas.",
            autocompletion=completing.several(lambda word: [*completing.data(word)]),
        ),
    ],
    routers: Annotated[
        str,
        typer.Option(
            help="With commas, as topk,switch; or all.",
            autocompletion=completing.several(completing.among(("all", *ROUTERS))),
        ),
    ],
    seeds: Annotated[str, typer.Option(help="With commas.")] = "0,1,2",
    budget: Annotated[str, typer.Option(help="Equal steps, or flops; or both.")] = "steps",
    steps: Annotated[
        int | None,
        typer.Option(help="Of training; 1500 on texts, 1000 on pictures if not given."),
    ] = None,
    sees_later: Annotated[
        bool, typer.Option("--sees-later", help="Let in routers that see later tokens of a text.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; runs/routers-DATA if not given.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The router that the others are held against; topk.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads of each run; 1.")] = None,
    as_json: Json = False,
) -> None:
    """Train the same small model under several routers: one table for each data set, one page.

    Called again, it keeps the runs that are finished.

    Example:  intarsia compare-routers austen --routers topk,switch --seeds 0,1
    """
    # First of all, so that it has the parameters and nothing else.
    options = {**locals()}
    numbers("--seeds", seeds)
    options["routers"] = router_names(routers, note)
    # Imports torch: after all that can be refused without it.
    from .router_steps import ask, carry

    try:
        sheets, record = carry(ask(options), options, note)
    except KeyboardInterrupt as stop:
        # Finished runs are kept.
        raise KeyboardInterrupt("Call the same command again to go on.") from stop
    if as_json:
        show_json(record)
    else:
        _show(sheets, record["report"])


def _show(sheets: Sequence[RouterSheet], page: str) -> None:
    from intarsia.reports.terminal import Terminal

    from ..routing.report.tables import table_of

    for sheet in sheets:
        table = table_of(sheet)
        show_rich(Terminal(table))
        for line in table.notes:
            say(line)
    say(f"Report: {page}")
