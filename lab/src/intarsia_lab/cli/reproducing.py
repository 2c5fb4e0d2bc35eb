"""`intarsia reproduce`: run a paper's headline, and publish what comes out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic as clock
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intarsia.cli.completing import among
from intarsia.cli.declared import with_options
from intarsia.cli.early import numbers
from intarsia.cli.options import Json, Threads, use_threads, writes
from intarsia.cli.shell import note, say, show_json, show_table
from intarsia.core.errors import ConfigError, IntarsiaError
from intarsia.core.schema import setting

from .words import CLAIMS, check_claim

if TYPE_CHECKING:
    from ..claims.bars import Line
    from ..kit import Study

NEEDS = {"cpu": "", "gpu": "an accelerator", "long": "more than ten minutes"}


Name = Annotated[
    str | None,
    typer.Argument(help="Name of the claim; without one, a list.", autocompletion=among(CLAIMS)),
]
Out = Annotated[
    Path,
    writes(
        "The page of all results to write; records go into a folder beside it, and a run with "
        "other --seeds overwrites the record that is there."
    ),
]


@dataclass(frozen=True)
class Repeating:
    """Claims that are run, or confirmed, and their seeds."""

    every: bool = setting(False, "Run all that this machine can.", flag="--all")
    long: bool = setting(False, "Run the long ones, too, with --all.")
    seeds: str | None = setting(
        None, "Seeds of the runs, with commas; the claim's own if not given."
    )
    confirm: bool = setting(
        False,
        "Run one seed of the record again: if it is equal, the record counts for today's code. "
        "Without a name, list what waits for it, least seconds first.",
    )
    minutes: float | None = setting(
        None, "Confirm what --confirm lists, one by one, for so long.", above=0
    )


@with_options()
def reproduce(
    repeating: Repeating,
    name: Name = None,
    out: Out = Path("docs/claims.md"),
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a small, fair experiment on a paper's headline: it holds, fails or is not decided.

    Example:  intarsia reproduce mosa
    """
    seeds = repeating.seeds
    if repeating.every and name is not None:
        got = f"the name {name!r} with it"
        raise ConfigError("--all", got=got, want="one of them", fix="Leave one out.")
    # Records lie in a folder of the page's name without its suffix.
    if not out.suffix:
        want = "a file, beside which the records lie"
        raise ConfigError("--out", got=out, want=want, fix=f"For example: {out}.md")
    chosen_seeds = None if seeds is None else numbers("--seeds", seeds)
    if name is not None:
        check_claim(name)
    if repeating.minutes is not None and (name is not None or not repeating.confirm):
        got = "no --confirm" if name is None else f"the name {name!r} with it"
        want, fix = "--confirm without a name", "intarsia reproduce --confirm --minutes 60"
        raise ConfigError("--minutes", got=got, want=want, fix=fix)
    if repeating.confirm:
        if repeating.every:
            fix = "Say for how long: --confirm --minutes 60"
            raise ConfigError("--all", got="--confirm with it", want="one of them", fix=fix)
        use_threads(threads)
        _confirm(name, chosen_seeds, repeating.minutes, out, as_json)
        return
    if name is None and not repeating.every:
        from ..claims import claims

        _show_list(claims(), out.with_suffix(""), as_json)
        return
    use_threads(threads)
    records = [_judged(study, chosen_seeds, out) for study in _chosen(name, repeating.long)]
    if as_json:
        show_json(records)
        return
    from ..claims.ledger import squared

    for record in records:
        say(f"{record['key']}: {record['sentence']}")
        say(f"  against {record['baseline']}, target {record['target']}")
        say(
            f"  got {record['got']:.3f} (spread {record['spread']:.3f}, {len(record['seeds'])} "
            f"seeds): {record['verdict']}"
        )
        if record["reason"]:
            say(f"  {record['reason']}")
        say(f"  of commit {record['commit'] or 'unknown'}, code {record['code']}")
        say(f"  {record['seconds']:.0f} s; {record['machine']}\n  {record['note']}".rstrip())
        # The first row has the names of the columns.
        names, *cells = squared(record["table"])
        if cells:
            show_table("", names, cells)
    say(f"Page: {out}")


def _confirm(
    name: str | None, seeds: Sequence[int] | None, minutes: float | None, page: Path, as_json: bool
) -> None:
    """Confirm a record, or records for some minutes, or list those that wait; print the lines."""
    from ..claims import claim, claims, ledger
    from ..claims.bars import read_bars
    from ..claims.confirming import clean_commit, confirm, waiting
    from ..pages.claims import write_page
    from ..pages.confirmed import said

    folder = page.with_suffix("")
    records = ledger.read_all(folder)
    if name is None:
        listed = waiting(claims(), records, read_bars(folder))
        if minutes is None:
            _show_waiting(listed, as_json)
            return
        studies = [study for _, study in listed]
    elif name in records:
        studies = [claim(name)]
    else:
        fix = f"Run it: intarsia reproduce {name}"
        raise ConfigError(f"--confirm {name}", got="no record", want="a record", fix=fix)
    commit, until = clean_commit(page), math.inf if minutes is None else clock() + 60 * minutes
    lines: list[Line] = []
    for study in studies:
        if clock() > until:
            break
        try:
            line = confirm(study, records[study.key], folder, commit, seeds=seeds, report=note)
        except IntarsiaError as error:
            # one that cannot be confirmed stops no other
            if name is not None:
                raise
            note(f"{study.key}: {error}")
            continue
        lines.append(line)
        if not as_json:
            say(f"{study.key}: {said(line)}")
    write_page(folder, page)
    if as_json:
        show_json(lines)


def _show_waiting(listed: Sequence[tuple[float, Study]], as_json: bool) -> None:
    """Print the claims that a seed could confirm, with the seconds that it may take."""
    if as_json:
        show_json([{"name": study.key, "seconds": seconds} for seconds, study in listed])
        return
    cells = [(study.key, f"{seconds:.0f}") for seconds, study in listed]
    show_table("", ("claim", "seconds of a seed, about"), cells, right="seconds of a seed, about")


def _chosen(name: str | None, long: bool) -> list[Study]:
    """Return the claim of a name, or all that this machine can run."""
    import torch

    from ..claims import claim, claims

    if name is not None:
        return [claim(name)]
    # A claim needs one of cpu, gpu and long; long ones only run if allowed.
    can = {"cpu", "gpu" if torch.cuda.is_available() else "cpu", "long" if long else "cpu"}
    for omitted in (c for c in claims() if c.needs not in can):
        note(f"{omitted.key} is left out: it is marked {omitted.needs!r}.")
    return [c for c in claims() if c.needs in can]


def _judged(study: Study, seeds: Sequence[int] | None, page: Path) -> dict[str, Any]:
    """Run a claim, save its record next to the page, write the page again; return the record."""
    from ..claims import run_claim
    from ..claims.ledger import publish, read, refuse_uncommitted
    from ..pages.claims import write_page
    from ..pages.history import minutes_of

    folder = page.with_suffix("")
    before = folder / f"{study.key}.json"
    minutes = minutes_of(study, read(before) if before.is_file() else None)
    note(f"Claim {study.key}: about {minutes} minutes on two cores.")
    refuse_uncommitted(folder)
    record = run_claim(study, seeds=seeds, report=note)
    # Saved after each claim: a stop loses the one that runs, not those before.
    record = publish(study, record, folder)
    # The page is written from all records of the folder, including records of earlier calls.
    write_page(folder, page)
    return dataclasses.asdict(record)


def _show_list(studies: Sequence[Study], folder: Path, as_json: bool) -> None:
    """Print the claims with the verdicts of their records."""
    from ..claims.ledger import read_all, state
    from ..pages.history import minutes_of

    records = read_all(folder)
    # A claim without a record has not been tried.
    states = {c.key: state(records.get(c.key)) for c in studies}
    minutes = {c.key: minutes_of(c, records.get(c.key)) for c in studies}
    if as_json:
        names = ("sentence", "baseline", "needs")
        show_json(
            [
                {"name": c.key, "target": c.bound, "result": states[c.key]}
                | {"minutes": minutes[c.key]}
                | {n: getattr(c, n) for n in names}
                for c in studies
            ]
        )
        return
    # What a claim needs, so that nobody starts an hour of training unawares.
    columns = ("claim", "what is claimed", "minutes", "needs", "result")
    cells = [
        (c.key, c.sentence, f"{minutes[c.key]}", NEEDS.get(c.needs, ""), states[c.key])
        for c in studies
    ]
    show_table("", columns, cells, right="minutes")
