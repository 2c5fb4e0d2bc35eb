"""`intarsia auto`: let it choose, within some minutes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.folders import data_name
from . import completing
from .early import ARMS, check_data, check_jobs, method_key
from .options import (
    Data,
    Jobs,
    Json,
    Ray,
    allow_pixels,
    given_in_words,
    row,
    use_threads,
    with_options,
    writes,
)
from .shell import note, say, show_json, show_rich
from .values import check_options

if TYPE_CHECKING:
    from ..choosing.auto import AutoRun

OPTIONS = (
    *(
        "images",
        "shots",
        "test",
        "split_seed",
        "skip_unreadable",
        "model",
        "size",
        "pretrained",
        "batch_size",
    ),
    *("weight_decay", "smoothing", "class_weights", "device", "precision", "threads"),
    "max_pixels",
    "seed",
)


@with_options(tuple(map(row, OPTIONS)))
def auto(
    ctx: typer.Context,
    data: Annotated[str | None, Data.__metadata__[0]] = None,  # pyright: ignore
    minutes: Annotated[float, typer.Option(help="Minutes that everything takes, at most.")] = 10,
    methods: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing.METHODS,
            help="Methods to choose among, with commas; the benchmarks' leaders if not given.",
        ),
    ] = None,
    out: Annotated[Path | None, writes("The folder to write; runs/auto-DATA if not given.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search in --out, as it was started.")
    ] = False,
    jobs: Jobs = 1,
    ray: Ray = False,
    as_json: Json = False,
    **arguments: Any,
) -> None:
    """Choose a method and its settings on held-out pictures, and train what was chosen.

    With few pictures each is held out once (cross-validation), with many a fifth is held out. What
    was chosen is then trained on all of them, within the minutes, and alone is scored on the test
    part. The table shows it and its runners-up, the page its curves and mistakes.

    Example:  intarsia auto photos --minutes 10
    """
    words = given_in_words(ctx)
    check_options(arguments)
    check_jobs(jobs, ray)
    if data is not None:
        # Names are checked before torch is imported, which takes seconds.
        check_data(data)
    names = [n.strip() for n in (methods or "").split(",") if n.strip()]
    for name in names:
        if name not in ARMS:  # arms of the benchmark, beside the methods
            method_key(name, note)
    if data is None and not resume:
        want, fix = "a folder of pictures, a named set or a table", "For example: auto elpv"
        raise ConfigError("DATA", got="nothing", want=want, fix=fix)
    from ..choosing.auto import auto as choose

    threads = arguments.pop("threads")
    use_threads(threads)
    allow_pixels(ctx, arguments.pop("max_pixels"))
    # These say where and how the search runs; all others describe the runs.
    device = arguments.pop("device")
    seed = arguments.pop("seed")
    # Only what stands on the command line is fixed; all other settings are the search's to choose.
    options = {name: value for name, value in arguments.items() if name in words}
    common: dict[str, Any] = {"out": out, "resume": resume, "device": device, "report": note}
    common |= {"jobs": jobs, "threads": threads, "ray": ray}
    try:
        search = choose(data, minutes=minutes, methods=names, seed=seed, **common, **options)
    except KeyboardInterrupt as stop:
        # Ctrl-C: the message is the command that goes on, with the folder the search has used.
        folder = shlex.quote(str(out or Path("runs") / f"auto-{data_name(str(data))}"))
        raise KeyboardInterrupt(f"Go on: intarsia auto --resume --out {folder}") from stop
    _show(search, as_json)


def _show(search: AutoRun, as_json: bool) -> None:
    """Print the ranking of a search and what it chose.

    search: the result of `intarsia.auto`; as_json: print all of it as JSON instead.
    """
    from ..reports.terminal import Terminal

    if as_json:
        rows = [
            {
                "command": row.experiment.command(),
                "seconds": row.seconds,
                "error": row.error,
                "parts": row.parts,
                "held_out": dict(row.val),
            }
            | row.experiment.flat()
            | {"method": row.name}
            for row in search.rows
        ]
        # the test part is scored once, by the choice alone
        scores = {"test": dict(search.test), "certainty": search.certainty.record()}
        show_json({"folder": str(search.folder), **scores, "rows": rows})
        return
    say("\n".join(search.certainty.sentences))
    show_rich(Terminal(search.table()))
    repeated = search.choice.changed(data=_seen_from_here(search.choice.pictures.data))
    say(f"Report: {search.report}\nRepeat: {repeated.command()}")
    say(f"Next:  intarsia predict {search.folder} PICTURES")


def _seen_from_here(data: str) -> str:
    """Return a path below the current folder without the part that leads to that folder."""
    path = Path(data)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else data
