"""What the verbs do for labelled texts and for tables of numbers."""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..core.files import check_target
from ..core.folders import check_begun, check_empty, check_outside, data_name
from ..core.labelled import AUTO, FILE, check_columns, is_labelled
from ..core.locks import alone
from ..models.classify.words import SPARSE, check_method, split_adapter, with_model
from .early import check_data, check_word, numbers
from .options import flag, use_threads
from .shell import note, say, show_json, show_rich, show_table

if TYPE_CHECKING:
    from ..runs.choosing.texts import AutoTexts
    from ..runs.labelled import LabelledFit, LabelledRun

OPTIONS = ("text", "label", "images", "test", "seed", "split_seed", "threads")
WRITTEN = ("ctx", "data", "out", "as_json")
METHODS = "words,tfidf,minilm"  # of `compare`, where nothing is said
SCRIPT = "predict.py"  # of an export
SHOWN = 60  # characters of a text in a table
LANGUAGE = "For a language model on these texts, leave the column of labels out of the file."


def takes_rows(data: str | None, arguments: Mapping[str, Any]) -> bool:
    """Decide whether a verb is about labelled rows.  arguments: its options, with text, label."""
    return is_labelled(data, arguments["text"], arguments["label"])


def is_rows_run(folder: str | Path) -> bool:
    """Decide whether a folder is a run on labelled rows."""
    return (Path(folder) / FILE).is_file()


def _check_words(words: set[str], further: Sequence[str]) -> None:
    """Refuse options that would be ignored.  Raises: ConfigError."""
    if strange := sorted(words - {*OPTIONS, *WRITTEN, *further}):
        got, want = (", ".join(map(flag, names)) for names in (strange, (*OPTIONS, *further)))
        subject = "options for labelled texts or numbers"
        raise ConfigError(subject, got=got, want=want, fix=f"Leave it out. {LANGUAGE}")


def _settings(arguments: Mapping[str, Any], method: str | None, seed: int) -> LabelledFit:
    from ..runs.labelled import LabelledFit

    names = ("text", "label", "split_seed", "test")
    options = {name: arguments[name] for name in names} | {"train": arguments["images"]}
    return LabelledFit(str(arguments["data"]), method=method, seed=seed, **options)


def fit_rows(arguments: Mapping[str, Any], words: set[str]) -> None:
    """Fit a classifier: `intarsia fit texts.csv`.

    arguments: all options of `fit` by name; words: names of those given on the command line.
    """
    _check_words(words, ("method", "model"))
    check_data(arguments["data"] or "")
    data, seed = arguments["data"], arguments["seed"]
    check_columns(data, arguments["text"], arguments["label"])
    method = with_model(
        *(arguments[name] if name in words else None for name in ("method", "model"))
    )
    check_method(method or "tfidf")
    name = (method or "classifier").replace("/", "-")
    out = arguments["out"] or Path("runs") / f"{data_name(data)}-{name}-{seed}"
    check_empty(out, data)
    note(f"{data} has labels: a classifier is fitted. {LANGUAGE}")
    from ..runs.labelled import fit_labelled

    use_threads(arguments["threads"])
    run = fit_labelled(_settings(arguments, method, seed), out, report=note)
    if arguments["as_json"]:
        show_json({"folder": str(out), **run.record["results"], "method": run.settings.method})
        return
    _show_scores(run)
    say(f"Repeat: {run.settings.command()}")
    _say_next(run)


def _show_scores(run: LabelledRun) -> None:
    """Print the scores of a run on held-out training rows and on test rows."""
    from ..reports.numbers import percent

    results = run.record["results"]
    rows = [
        (
            part,
            *(percent(results[key][s]) for s in ("accuracy", "balanced_accuracy")),
            f"{loss:.3f}",
        )
        for part, key in (("held out", "held_out"), ("test", "test"))
        for loss in (results[key]["loss"],)
    ]
    columns = ("part", "accuracy", "balanced", "loss")
    show_table("", columns, rows, right=",".join(columns[1:]))


def _say_next(run: LabelledRun) -> None:
    folder, file = shlex.quote(str(run.folder)), "ROWS.csv" if run.columns else "TEXTS.txt"
    say(f"Next:  intarsia predict {folder} {file}  |  intarsia export {folder}")


def compare_rows(request: Mapping[str, Any], words: set[str]) -> None:
    """Fit several methods on the same rows: `intarsia compare texts.csv`.

    request: all parameters of `compare` by name; words: names of those that were given.
    """
    _check_words(words, ("methods", "seeds", "baseline", "model"))
    data = request["data"]
    check_data(data)
    check_columns(data, request["text"], request["label"])
    model = request["model"] if "model" in words else None
    methods = _methods(request["methods"] if "methods" in words else None, model)
    for method in methods:
        check_method(method)
    check_word("--baseline", request["baseline"], methods)
    # a fit has no chance in it: further seeds are further splits of the rows
    seeds = numbers("--seeds", request["seeds"]) if "seeds" in words else (0,)
    folder = request["out"] or Path("runs") / f"compare-{data_name(data)}"
    check_outside(folder, data)
    from ..runs.labelled import fit_labelled

    use_threads(request["threads"])
    with alone(folder):
        folders = list[Path]()
        for method in methods:
            for seed in seeds:
                out = folder / f"{method.replace('/', '-')}-{seed}"
                folders.append(out)
                if not is_rows_run(out):
                    note(f"{method}, seed {seed}")
                    fit_labelled(_settings(request, method, seed), out, report=lambda _: None)
        baseline = request["baseline"] or methods[0]
        report_rows(folders, folder / "report.html", baseline, request["as_json"])


def _methods(named: str | None, model: str | None) -> list[str]:
    """Return the methods to compare; adapters are put on the model, if one is named."""
    default = METHODS if model is None else ",".join((*SPARSE, model, "lora"))
    words = [name.strip() for name in (named or default).split(",") if name.strip()]
    bare = [word for word in words if split_adapter(word)[0] == word]
    if model is not None and not bare:
        with_model(named, model)  # refuses the model
    return [with_model(word, model) or word if word in bare else word for word in words]


def report_rows(folders: Sequence[Path], page: Path, baseline: str | None, as_json: bool) -> None:
    """Write the page of runs on labelled rows, and print their table."""
    from ..reports.terminal import summary
    from ..reports.writing import write
    from ..runs.labelled_report import arms_of, comparison_report

    arms = arms_of(folders)
    report = comparison_report(arms, baseline)
    written = write(report, page)
    if as_json:
        rows = [
            {"method": arm.method, "seed": record["settings"]["seed"], **record["results"]}
            for arm in arms
            for record, _ in arm.runs.values()
        ]
        show_json({"report": str(written), "rows": rows})
        return
    show_rich(summary(report))
    say(f"Report: {written}")


def has_rows_runs(folders: Sequence[Path]) -> bool:
    """Decide whether folders hold runs on labelled rows."""
    return all(any(folder.rglob(FILE)) for folder in folders)


def evaluate_rows(run: Path, data: str | None, part: str | None, as_json: bool) -> bool:
    """Print the scores of a run on labelled rows: `intarsia evaluate RUN`.

    Returns False for a run of another kind, for which nothing is done.
    """
    if not is_rows_run(run):
        return False
    if data is not None:
        check_data(data)
    from ..reports.numbers import percent
    from ..runs.labelled import open_labelled

    opened = open_labelled(run)
    scores = opened.evaluate(data, part)
    if as_json:
        show_json(scores)
        return True
    say(
        f"{scores['set']}: {scores['n']:,} {opened.unit}, accuracy {percent(scores['accuracy'])}, "
        f"balanced {percent(scores['balanced_accuracy'])}, loss {scores['loss']:.3f}"
    )
    rows = [(name, f"{c['n']:,}", percent(c["accuracy"])) for name, c in scores["classes"].items()]
    show_table("", ("class", opened.unit, "right"), rows, right=f"{opened.unit},right")
    return True


def predict_rows(run: Path, files: Sequence[str], *, as_json: bool, as_csv: bool) -> None:
    """Print the class of each row of some files: `intarsia predict RUN texts.txt`."""
    from ..runs.labelled import open_labelled, rows_to_predict

    opened = open_labelled(run)
    answers: list[dict[str, Any]] = []
    for file, rows in rows_to_predict(opened, files):
        for number, answer in enumerate(opened.predict(rows), 1):
            text = "" if opened.columns else str(rows[number - 1])
            answers.append({"file": file, "row": number, "text": text, **answer})
    if as_json:
        show_json(answers)
        return
    lines = [
        (a["file"], a["row"], a["text"], a["class"], next(iter(a["classes"].values())))
        for a in answers
    ]
    columns = ("file", "row", "text", "class", "probability")
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)
        return
    from ..reports.numbers import percent

    shown = [(f"{row}", text[:SHOWN], name, percent(p)) for _, row, text, name, p in lines]
    show_table("", columns[1:], shown, right="row,probability")


def export_rows(run: Path, form: str | None, out: Path | None, as_json: bool) -> None:
    """Write a run on labelled rows as a folder with predict.py: `intarsia export RUN`."""
    if form is not None:
        fix = "Leave --format out."
        want = "a folder with predict.py, the one form of classifiers of texts and numbers"
        raise ConfigError("--format", got=form, want=want, fix=fix)
    place = out or run / "export"
    if not (place / SCRIPT).is_file():  # an earlier export
        check_target(place)
    from ..runs.labelled_release import release_labelled

    lines: list[str] = []
    path = release_labelled(run, place, result=lines.append)
    if as_json:
        show_json({"path": str(path), "format": "predict.py", "checks": lines})
        return
    for line in lines:
        say(line)


def auto_rows(request: Mapping[str, Any], words: set[str]) -> bool:
    """Choose a classifier: `intarsia auto texts.csv`.

    request: all parameters of `auto` by name; words: names of those that were given. Returns False
    for other data, for which nothing is done.
    """
    out, resume = request["out"], request["resume"]
    goes_on = resume and out is not None and (out / AUTO).is_file()
    if not (goes_on or takes_rows(request["data"], request)):
        return False
    _check_words(words, ("methods", "minutes", "resume", "one", "model"))
    methods = [n.strip() for n in (request["methods"] or "").split(",") if n.strip()]
    for method in methods:
        check_method(method)
    names = ("minutes", "out", "resume", "one", "seed", *OPTIONS[:4], "split_seed")
    options = {name: request[name] for name in names}
    options["model"] = request["model"] if "model" in words else None
    data, out = request["data"], out or Path("runs") / f"auto-{data_name(str(request['data']))}"
    if resume:
        check_begun(out, AUTO)
    else:
        check_columns(data, request["text"], request["label"])
        check_empty(out, data, "Go on with it (--resume), or choose another folder.")
    from ..runs.choosing.texts import auto_texts

    use_threads(request["threads"])
    try:
        outcome = auto_texts(request["data"], methods=methods, report=note, **options)
    except KeyboardInterrupt as stop:
        folder = shlex.quote(str(out))
        raise KeyboardInterrupt(f"Go on: intarsia auto --resume --out {folder}") from stop
    _show_choice(outcome, request["as_json"])
    return True


def _show_choice(outcome: AutoTexts, as_json: bool) -> None:
    """Print the choice, the candidates it was made among, and the commands that come next."""
    from ..reports.terminal import Terminal

    if as_json:
        rows = [
            {"method": c.word, "seconds": c.seconds, "held_out": dict(c.answers.totals)}
            for c in outcome.candidates
        ]
        choice = {"method": outcome.run.settings.method, "command": outcome.run.settings.command()}
        content = {"folder": str(outcome.folder), **choice, "test": dict(outcome.test)}
        show_json(content | {"sentences": list(outcome.sentences), "rows": rows})
        return
    say("\n".join(outcome.sentences))
    show_rich(Terminal(outcome.table()))
    say(f"Report: {outcome.report}\nRepeat: {outcome.run.settings.command()}")
    _say_next(outcome.run)
