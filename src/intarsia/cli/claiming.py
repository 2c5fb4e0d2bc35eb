"""`intarsia claim`: run a paper's headline, and publish what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Json
from .shell import note, show_json, show_table

NEEDS = {"cpu": "", "gpu": "needs an accelerator", "long": "takes more than ten minutes"}


def claim(
    name: Annotated[str | None, typer.Argument(help="Of the claim; without one, a list.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all that this machine can.")] = False,
    long: Annotated[bool, typer.Option("--long", help="With --all: the long ones too.")] = False,
    seeds: Annotated[str | None, typer.Option(help="With commas; the claim's own if none.")] = None,
    page: Annotated[
        Path,
        typer.Option(
            help="Page of all results, below the current folder; records go into a folder beside "
            "it, and a run with other --seeds overwrites the record that is there."
        ),
    ] = Path("docs/claims.md"),
    as_json: Json = False,
) -> None:
    """Run the smallest honest experiment for a paper's headline; a claim that fails says so.

    Example:  intarsia claim mosa
    """
    from ..experiments.settings import value_of
    from .claim_steps import chosen, judge, listed

    if name is None and not every:
        _show_list(listed(), as_json)
        return
    numbers: Any = None if seeds is None else value_of("--seeds", seeds, tuple[int, ...])
    records = [
        judge(one, seeds=numbers, page=page, report=note)
        for one in chosen(name, every=every, long=long, report=note)
    ]
    if as_json:
        show_json(records)
        return
    for record in records:
        print(f"{record['key']}: {record['sentence']}")
        print(f"  against {record['baseline']}, bar {record['bar']}")
        print(
            f"  got {record['got']:.3f} (spread {record['spread']:.3f}, {len(record['seeds'])} "
            f"seeds): {'holds' if record['holds'] else 'FAILS'}"
        )
        print(f"  {record['seconds']:.0f} s; {record['machine']}\n  {record['note']}".rstrip())
        if table := record["table"]:
            cells = [tuple(str(v) for v in row.values()) for row in table]
            show_table("", tuple(table[0]), cells)
    print(f"Page: {page}")


def _show_list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        show_json(rows)
        return
    cells = [
        (r["name"], r["sentence"], f"{r['minutes']:g}", NEEDS.get(r["needs"], "")) for r in rows
    ]
    show_table("", ("claim", "what is claimed", "minutes", ""), cells, right="minutes")
