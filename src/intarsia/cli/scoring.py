"""`intarsia evaluate` and `intarsia predict`: a finished run on pictures, or on texts."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, DataError
from ..core.schema import setting
from .declared import with_options
from .early import check_data, check_run
from .labelled_steps import evaluate_rows, is_rows_run, predict_rows
from .options import (
    Device,
    Json,
    MaxPixels,
    RunFolder,
    Size,
    Threads,
    allow_pixels,
    use_threads,
    writes,
)
from .seeing import evaluate_seeing, is_seeing, predict_seeing
from .shell import note, say, show_json, show_table, warn
from .targets import page_target

if TYPE_CHECKING:
    from ..runs.runs import Prediction, RunOnPictures
    from ..runs.writing import TextRun

PARTS = ("train", "val", "test", "all")
SHOWN = 3  # classes of a picture in the table


@dataclass(frozen=True)
class Evaluating:
    """The data of a score."""

    part: str | None = setting(
        None,
        "Part of the data: train, val, test; or all, of texts and of other pictures "
        "without parts. If not given, test where there is one, and of other texts all.",
        choices=PARTS,
    )
    skip_unreadable: bool = setting(False, "Leave damaged pictures of other data out.")


@with_options()
def evaluate(
    ctx: typer.Context,
    run: RunFolder,
    evaluating: Evaluating,
    data: Annotated[
        str | None, typer.Argument(help="Data with the same classes, in place of the run's own.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    size: Size = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Score a finished run on a part of its data, or on other data with the same classes.

    Example:  intarsia evaluate runs/elpv-lora-0 --part val
    """
    use_threads(threads)
    part = evaluating.part
    if is_seeing(run):
        evaluate_seeing(run, data, part, device, as_json)
        return
    if evaluate_rows(run, data, part, as_json):
        return
    check_run(run, blends=True)
    if data is not None:
        check_data(data)
    allow_pixels(ctx, max_pixels)
    from ..runs.opening import open_run
    from ..runs.writing import TextRun
    from ..train.processes import device_named
    from .training import TEXT_COLUMNS, text_row

    # the kind of run decides which scores there are
    opened = open_run(run, size=size, report=note)
    opened.model.to(device_named(device))
    scores = _scored(opened, data, part, evaluating.skip_unreadable)
    if as_json:
        show_json(scores)
        return
    if isinstance(opened, TextRun):
        row = (scores["set"], *text_row(scores))
        show_table("", TEXT_COLUMNS, [row], right=",".join(TEXT_COLUMNS[1:]))
    elif "mean_average_precision" in scores:
        _show_labels(scores)
    else:
        _show_classes(scores)


def _show_classes(scores: Mapping[str, Any]) -> None:
    from ..reports.numbers import percent

    say(
        f"{scores['set']}: {scores['n']:,} pictures, accuracy {percent(scores['accuracy'])}, "
        f"balanced {percent(scores['balanced_accuracy'])}, loss {scores['loss']:.3f}"
    )
    rows = [(name, f"{c['n']:,}", percent(c["accuracy"])) for name, c in scores["classes"].items()]
    show_table("", ("class", "pictures", "right"), rows, right="pictures,right")


def _scored(opened: Any, data: str | None, part: str | None, skip: bool) -> dict[str, Any]:
    if not skip:
        return opened.evaluate(data, part, note)
    from ..runs.runs import RunOnPictures

    # Texts have no part that could be unreadable: the option would do nothing.
    if not isinstance(opened, RunOnPictures):
        got, want = "it for a run on texts", "a run on pictures"
        raise ConfigError("--skip-unreadable", got=got, want=want, fix="Leave it out.")
    return opened.evaluate(data, part, note, on_error="skip")


def _show_labels(scores: dict[str, Any]) -> None:
    """Print the scores of several labels a picture, and precision and recall of each."""
    from ..reports import numbers
    from .training import LABEL_COLUMNS, label_row

    row = (scores["set"], *label_row(scores))
    show_table("", LABEL_COLUMNS, [row], right=",".join(LABEL_COLUMNS[1:]))
    names = ("precision", "recall")
    # precision: right guesses of all guesses; recall: of all pictures with the label
    rows = [
        (name, f"{c['n']:,}", *(numbers.percent(c[share]) for share in names))
        for name, c in scores["classes"].items()
    ]
    columns = ("label", "pictures", *names)
    show_table("", columns, rows, right=",".join(columns[1:]))


Files = Annotated[
    list[str],
    typer.Argument(
        help="Picture files, or folders of them; for a run on texts .jsonl or text files of "
        "prompts, - for standard input; for a model that sees or hears, the question."
    ),
]
Out = Annotated[
    Path | None,
    writes(
        "The page to write, of pictures with the answers; for a union of experts with the "
        "patches that experts take."
    ),
]


@dataclass(frozen=True)
class Asking:
    """Pictures and sounds of a question, and the form of the answer."""

    image: tuple[Path, ...] = setting((), "Picture that the question is about; may be repeated.")
    audio: tuple[Path, ...] = setting((), "Sound that the question is about; may be repeated.")
    as_csv: bool = setting(False, "Print CSV instead of a table.", flag="--csv")
    tokens: int | None = setting(None, "Tokens of an answer, at most; 64 if not given.", least=1)


@with_options()
def predict(
    ctx: typer.Context,
    run: RunFolder,
    files: Files,
    asking: Asking,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    size: Size = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Classify pictures, or continue prompts with the likeliest tokens; print JSON lines.

    A picture that cannot be read is named, the others are done, and the exit code is 1. Of a
    .jsonl file prompts are read as in training; of other text files each line is one.

    Example:  intarsia predict runs/elpv-lora-0 new_photos/ --csv > answers.csv
    Example:  intarsia predict runs/pairs-uni_moe-0 "What is this?" --image a.png
    """
    page_target(out)
    use_threads(threads)
    tokens, as_csv = asking.tokens, asking.as_csv
    senses = {"image": list(asking.image), "audio": list(asking.audio), "page": out}
    if predict_seeing(run, files, senses, tokens=tokens, device=device, as_json=as_json):
        return
    if as_json and as_csv:
        raise ConfigError("--json and --csv", got="both", want="one of them", fix="Choose one.")
    _check_files(files)
    if is_rows_run(run):
        predict_rows(run, files, as_json=as_json, as_csv=as_csv)
        return
    check_run(run, blends=True)
    allow_pixels(ctx, max_pixels)
    from ..runs.opening import open_run
    from ..runs.writing import TextRun
    from ..train.processes import device_named

    opened = open_run(run, size=size, report=note)
    opened.model.to(device_named(device))
    if isinstance(opened, TextRun):
        _predict_texts(opened, [*map(Path, files)], out, as_csv=as_csv, tokens=tokens)
        return
    _check_no_tokens(tokens)
    _predict_pictures(opened, [*map(Path, files)], out, as_json=as_json, as_csv=as_csv)


def _check_files(files: Sequence[str]) -> None:
    """Refuse names of files if none is there; - is standard input.  Raises: DataError."""
    if not any(file == "-" or Path(file).exists() for file in files):
        want, fix = "a picture or a text, or a folder of pictures", "Check the path."
        raise DataError(" ".join(files), got="no such file", want=want, fix=fix)


def _check_no_tokens(tokens: int | None) -> None:
    """Refuse --tokens, a length of completions, for pictures.  Raises: ConfigError."""
    if tokens is not None:
        got, want = f"{tokens} for a run on pictures", "a run on texts"
        raise ConfigError("--tokens", got=got, want=want, fix="Leave it out.")


def _predict_pictures(
    opened: RunOnPictures, files: Sequence[Path], page: Path | None, *, as_json: bool, as_csv: bool
) -> None:
    predictions = opened.predict(files)
    bad = [p for p in predictions if p.error]
    # An answer without a file has no picture for the page.
    good = [p for p in predictions if p.file and not p.error]
    if page is not None and good:
        from ..runs.union_page import answers_page

        # a blend's members have sizes of their own: the page has the first one's
        first = opened.members[0]
        texts, keywords = [_shown(p) for p in good], {"inputs": first.inputs}
        pictures = [p.file for p in good if p.file]
        note(str(answers_page(first.model, pictures, page, answers=texts, **keywords)))
    if as_json:
        show_json([p.row() | {"classes": dict(p.classes)} for p in predictions])
    elif as_csv:
        # All rows have the same columns: the first one names them.
        writer = csv.DictWriter(sys.stdout, list(predictions[0].row()))
        writer.writeheader()
        writer.writerows(p.row() for p in predictions)
    else:
        rows = [(str(p.file), _shown(p)) for p in predictions if not p.error]
        show_table("", ("picture", "shows"), rows)
    for p in bad:
        warn(f"{p.file}: cannot be read: {p.error}")
    if bad:
        warn(f"{len(bad)} of {len(predictions)} pictures could not be read.")
        # Scripts see by the exit code that some answers are missing.
        raise typer.Exit(1)


def _shown(prediction: Prediction) -> str:
    """Return a prediction as text: the likeliest classes, or all labels above one half."""
    from ..reports import numbers

    # With several labels as many are shown as are above one half, and the likeliest if none is.
    count = SHOWN if prediction.labels is None else max(1, len(prediction.labels))
    # Classes are sorted by probability, so the first ones are the likeliest.
    text = ", ".join(f"{n} {numbers.percent(s)}" for n, s in prediction.classes[:count])
    return f"none above one half; the likeliest: {text}" if prediction.labels == () else text


def _predict_texts(
    opened: TextRun, files: Sequence[Path], page: Path | None, *, as_csv: bool, tokens: int | None
) -> None:
    """Print the completion of each prompt, as a line of JSON."""
    from ..runs.writing import TOKENS, complete, prompts_of

    if page is not None:
        got, want = "a run on texts", "one on pictures"
        raise ConfigError("--out", got=got, want=want, fix="Leave it out.")
    if as_csv:
        got, want = "a run on texts", "JSON lines, which they are"
        raise ConfigError("--csv", got=got, want=want, fix="Leave it out.")
    # A line is printed as soon as it is complete: completions take seconds each.
    prompts = prompts_of(opened, files)
    for line in complete(opened, prompts, TOKENS if tokens is None else tokens):
        say(json.dumps(line, ensure_ascii=False))
