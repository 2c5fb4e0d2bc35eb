"""`intarsia evaluate` and `intarsia predict`: a finished run on pictures."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, RunFolder
from .shell import note, show_json, show_table

SHOWN = 3  # classes of a picture in the table


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None, typer.Argument(help="Other data with the same classes; the run's own if none.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="train, val, test or all; the test part if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a finished run on a part of its data, or on other data with the same classes.

    Example:  intarsia evaluate runs/elpv-mosa-0 --part val
    """
    from ..report import numbers
    from .runs import open_run, pictures_to_score, score, score_texts, scores_of
    from .training import TEXT_COLUMNS, text_row

    if (texts := score_texts(run, data, part, note)) is not None:
        if as_json:
            show_json(texts)
        else:
            row = (texts["set"], *text_row(texts))
            show_table("", TEXT_COLUMNS, [row], right=",".join(TEXT_COLUMNS[1:]))
        return
    opened = open_run(run)
    images = pictures_to_score(opened, data, part, note)
    found = scores_of(images, score(opened, images))
    if as_json:
        show_json(found)
        return
    print(
        f"{found['set']}: {found['n']:,} pictures, accuracy {numbers.percent(found['accuracy'])}, "
        f"balanced {numbers.percent(found['balanced_accuracy'])}, loss {found['loss']:.3f}"
    )
    rows = [
        (name, f"{c['n']:,}", numbers.percent(c["accuracy"]))
        for name, c in found["classes"].items()
    ]
    show_table("", ("class", "pictures", "right"), rows, right="pictures,right")


def predict(
    run: RunFolder,
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.")],
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Say what pictures show. A picture that cannot be read is told apart; the others are done.

    Example:  intarsia predict runs/elpv-mosa-0 new_photos/ --csv > answers.csv
    """
    from ..core.errors import ConfigError
    from ..report import numbers
    from .runs import open_run, picture_files, predict

    if as_json and as_csv:
        raise ConfigError("--json and --csv", got="both", want="one of them", fix="Choose one.")
    files = picture_files(pictures)
    found = list(predict(open_run(run), files))
    bad = [p for p in found if p.error]
    if as_json:
        show_json([p.row() | {"classes": dict(p.classes)} for p in found])
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, list(found[0].row()))
        writer.writeheader()
        writer.writerows(p.row() for p in found)
    else:
        rows = [
            (str(p.file), ", ".join(f"{n} {numbers.percent(s)}" for n, s in p.classes[:SHOWN]))
            for p in found if not p.error
        ]  # fmt: skip
        show_table("", ("picture", "shows"), rows)
    for p in bad:
        note(f"{p.file}: cannot be read: {p.error}")
    if bad:
        note(f"{len(bad)} of {len(found)} pictures could not be read.")
        raise typer.Exit(1)
