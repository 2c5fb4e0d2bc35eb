"""`intarsia compare-routers`: the same small model under several routers, as a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intarsia.cli import completing
from intarsia.cli.declared import with_options
from intarsia.cli.early import check_numbers, check_word
from intarsia.cli.options import Jobs, Json, Seeds, Threads, writes
from intarsia.cli.shell import note, say, show_json, show_rich
from intarsia.core.schema import setting

from .words import ROUTERS, names_in, router_names

if TYPE_CHECKING:
    from ..routing.report.findings import RouterSheet


@dataclass(frozen=True)
class RouterContest:
    """Budget and baseline of a comparison of routers."""

    budget: str = setting("steps", "Budget that is equal for all: steps, flops, or both.")
    steps: int | None = setting(
        None, "Steps of the training; 1500 on texts, 1000 on pictures if not given.", least=1
    )
    sees_later: bool = setting(False, "Let in routers that see later tokens of a text.")
    baseline: str | None = setting(
        None, "Router that the others are compared with; topk if not given."
    )


@with_options()
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
            help="Routers with commas, such as topk,switch; or all.",
            autocompletion=completing.several(completing.among(("all", *ROUTERS))),
        ),
    ],
    contest: RouterContest,
    seeds: Seeds = "0,1,2",
    out: Annotated[
        Path | None, writes("The folder of the runs; runs/routers-DATA if not given.")
    ] = None,
    jobs: Jobs = 1,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train the same small model with several routers: one table for each data set, one page.

    Called again, it keeps the runs that are finished.

    Example:  intarsia compare-routers austen --routers topk,switch --seeds 0,1
    """
    # First of all, so that it has the parameters and nothing else.
    options = {**locals(), **vars(contest)}
    check_numbers("--seeds", seeds)
    options["routers"] = router_names(routers, note)
    # which routers are all depends on the data: `Contest.baseline` checks it then
    if options["routers"] != "all":
        check_word("--baseline", contest.baseline, names_in(options["routers"]))
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
    """Print the table of each sheet of results."""
    from intarsia.reports.terminal import Terminal

    from ..routing.report.tables import table_of

    # The notes of a table are printed below it.
    for sheet in sheets:
        table = table_of(sheet)
        show_rich(Terminal(table))
        for line in table.notes:
            say(line)
    say(f"Report: {page}")
