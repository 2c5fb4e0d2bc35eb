"""`intarsia reproduce`: run the experiment on a paper's headline."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intarsia.cli.completing import among
from intarsia.cli.declared import with_options
from intarsia.cli.early import numbers
from intarsia.cli.options import Json, Threads, use_threads, writes
from intarsia.cli.shell import note, say, show_json, show_table
from intarsia.core.errors import ConfigError
from intarsia.core.schema import setting

from .words import EXPERIMENTS, check_experiment

if TYPE_CHECKING:
    from ..experiments import Record
    from ..kit import Study

Name = Annotated[
    str | None,
    typer.Argument(
        help="Name of the experiment; without one, a list.", autocompletion=among(EXPERIMENTS)
    ),
]
Out = Annotated[
    Path,
    writes(
        "The page of all results to write; records go into a folder beside it, and a run "
        "overwrites the record of its experiment there."
    ),
]


@dataclass(frozen=True)
class Repeating:
    """How an experiment is run again."""

    seeds: str | None = setting(None, "Seeds of the run, with commas; its own if not given.")


@with_options()
def reproduce(
    repeating: Repeating,
    name: Name = None,
    out: Out = Path("docs/results.md"),
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a small experiment on a paper's headline, next to the paper's own effect.

    Example:  intarsia reproduce mosa
    """
    # records lie in a folder of the page's name without its suffix
    if not out.suffix:
        want = "a file, beside which the records lie"
        raise ConfigError("--out", got=out, want=want, fix=f"For example: {out}.md")
    seeds = None if repeating.seeds is None else numbers("--seeds", repeating.seeds)
    if name is None:
        _show_list(out.with_suffix(""), as_json)
        return
    check_experiment(name)
    use_threads(threads)
    from ..experiments import records
    from ..pages.results import squared, write_all

    study = records.study(name)
    note(f"{study.question} About {study.minutes} minutes on two cores.")
    stored = records.read_all(out.with_suffix(""))[0].get(name)
    record = records.run(study, seeds=seeds, report=note)
    # saved first: a page that cannot be written loses no run
    records.save(record, out.with_suffix(""))
    write_all(out)
    if as_json:
        show_json(dataclasses.asdict(record))
        return
    _say(study, record)
    # the first row has the names of the columns
    names, *cells = squared(record.table)
    if cells:
        show_table("", names, cells)
    say(records.compared(record, stored))
    say(f"Page: {out}")


def _say(study: Study, record: Record) -> None:
    """Print both effects in words."""
    from ..pages.results import number, word

    effect = study.effect
    if effect is not None:
        say(f"The paper: {effect.says}; {effect.where} ({effect.source})")
    words = word(study, record)
    say(f"Here: {number(record)} {study.unit}{f': {words}' if words else ''}")
    say(f"  {study.work}; compared with {study.baseline}")
    say(f"  {study.differs}\n  {record.note}".rstrip())


def _show_list(folder: Path, as_json: bool) -> None:
    """Print the experiments with what their records have."""
    from ..experiments import records
    from ..pages.results import number, word

    stored = records.read_all(folder)[0]
    rows = [
        {
            "name": study.key,
            "paper": study.system,
            "question": study.question,
            "minutes": study.minutes,
            "result": number(stored[study.key]) if study.key in stored else "not run",
            "word": word(study, stored.get(study.key)),
        }
        for study in records.studies()
    ]
    if as_json:
        show_json(rows)
        return
    cells = [tuple(map(str, row.values())) for row in rows]
    show_table("", tuple(rows[0]), cells, right="minutes")
