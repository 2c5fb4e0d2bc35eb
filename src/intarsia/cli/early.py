"""What can be refused before torch is imported: names of data and methods, folders, lists."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from ..core.checks import above, at_least, rate_grid
from ..core.errors import ConfigError, DataError, MissingExtra, UnknownName
from ..core.files import JOINED
from ..core.folders import BLEND, describe_folder
from ..core.plugins import TASKS, plugins
from ..core.registry import find, index, listed, recommenders
from ..data import corpora
from ..data.corpora import MIXED, is_text
from ..data.language_names import check_language_model

SETS, BACKBONES, FORMATS, ARMS, QUANTS = map(listed, ("set", "backbone", "format", "arm", "quant"))
CORPORA = corpora.names()
RETRIEVAL = "sparse-retrieval"
RECOMMENDERS = recommenders()
RUN = ("adapter", "baseline", "recipe", "change")  # kinds of what can be trained


def check_data(spec: str) -> None:
    """Check that data are a name of the library or a path that exists.

    spec: as given on the command line.
    Raises: UnknownName; DataError.
    """
    spec = spec.removesuffix(JOINED)
    head, slash, _ = spec.partition("/")
    # A name of the library, or a task of an installed suite as SUITE/TASK.
    if spec in (*SETS, *CORPORA) or (slash and head in plugins(TASKS)):
        return
    if os.path.exists(place := os.path.expanduser(spec)):  # no error for a name that is too long
        if os.path.isdir(place) and not os.listdir(place):
            want, fix = "pictures, texts or a table in it", "Check the path."
            raise DataError(f"data {spec!r}", got="an empty folder", want=want, fix=fix)
        return
    # A single word without suffix was meant as a name: the error suggests the nearest names.
    if not slash and not Path(spec).suffix:
        names = (*SETS, *CORPORA, *(f"{name}/TASK" for name in plugins(TASKS)))
        subject = "data set (and no folder of that name is here)"
        raise UnknownName(subject, spec, names, "docs/how-to/command-line.md")
    # A path with a first part that looks like a suite's name: probably a slip in that name.
    if difflib.get_close_matches(head, plugins(TASKS), cutoff=0.7):
        raise UnknownName("suite (and no folder of that name is here)", head, plugins(TASKS))
    got, want = "nothing there", "a named set, a task, a folder, a table or a text file"
    raise DataError(f"data {spec!r}", got=got, want=want, fix="Check the path.")


def check_calibration(spec: str, rows: int) -> None:
    """Check that texts to calibrate on are known, and that each of them gets a row at least.

    spec: "mixed" (all corpora), or names of texts with commas; rows: of all texts together.
    Raises: as `check_data`, or ConfigError.
    """
    # each name is checked on its own, so that the error names it
    names = [name.strip() for name in spec.split(",")]
    for name in names:
        if name == MIXED:
            continue
        check_data(name)
        if not is_text(name):
            want = "mixed, a corpus, or a .txt, .md or .jsonl file; several with commas"
            fix = "For example: --calib mixed, or --calib mixed,notes.txt"
            raise ConfigError("--calib", got=name, want=want, fix=fix)
    # The mixture reads every corpus, and each text needs one row at least.
    texts = sum(len(CORPORA) if name == MIXED else 1 for name in names)
    at_least("--rows", rows, texts, fix=f"Give each of the {texts} texts one, or name fewer.")


def check_run(folder: Path, *, blends: bool = False) -> None:
    """Check that a folder has a run of `intarsia fit` that was started.

    blends: a blend of runs will do, too.
    Raises: ConfigError.
    """
    if (folder / "experiment.json").is_file() or (blends and (folder / BLEND).is_file()):
        return
    fix = "Check the path, or start the run with `intarsia fit DATA --out FOLDER`."
    want = "the folder of a run of `intarsia fit`"
    raise ConfigError(f"run {folder}", got=describe_folder(folder), want=want, fix=fix)


def check_file(option: str, path: Path | None) -> None:
    """Check that the file of an option is there, if one was given.  Raises: ConfigError."""
    if path is not None and not path.is_file():
        got = describe_folder(path) if path.exists() else "nothing there"
        raise ConfigError(f"{option} {path}", got=got, want="a file", fix="Check the path.")


def check_served(models: Iterable[str], adapters: Iterable[str] = ()) -> None:
    """Check that language models and what changes them may be opened.

    Each is a name, a folder, or NAME=FOLDER.
    Raises: AssetError; ConfigError for an adapter that is not there.
    """
    for word in models:
        check_language_model(_source(word))
    for word in (w for w in adapters if w[:1] != "="):  # without a name it is refused as such
        check_change("--adapter", Path(_source(word)))


def check_change(option: str, path: Path) -> None:
    """Check that there is something where a saved change of a model should be.

    Raises: ConfigError.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        want, fix = "what intarsia.save or PEFT wrote, or a run", "Check the path."
        got = describe_folder(path)
        raise ConfigError(f"{option} {path}", got=got, want=want, fix=fix)


def _source(word: str) -> str:
    """Return the folder of NAME=FOLDER, or a name or a folder that stands alone."""
    return word if Path(word).exists() else word.partition("=")[2] or word


def check_jobs(jobs: int, ray: bool) -> None:
    """Check --jobs, and that the package ray is installed if --ray was given.

    jobs: runs at a time.
    Raises: ConfigError; MissingExtra.
    """
    # looked for without importing it, which takes seconds
    if ray and find_spec("ray") is None:
        raise MissingExtra("ray", "ray")


def check_word(option: str, word: str | None, words: Iterable[str]) -> None:
    """Check that an option's value is one of its words, or was not given.

    option: with its dashes, for the error; word: the value, None = not given; words: those allowed.
    Raises: UnknownName.
    """
    if word is not None and word not in words:
        raise UnknownName(option, word, words)


def numbers(option: str, text: str, least: int = 0) -> tuple[int, ...]:
    """Parse whole numbers with commas, as a tuple.  Raises: ConfigError."""
    try:
        values = tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        # An empty list and a word are the same mistake, and get the same error.
        values = ()
    if not values or min(values) < least:
        want = f"a whole number from {least} on, or several with commas"
        raise ConfigError(
            option, got=repr(text), want=want, fix=f"For example: {option}={least},{least + 1}"
        )
    return values


def check_numbers(option: str, text: str) -> None:
    """Refuse a text that `numbers` does not parse, before its numbers are needed."""
    numbers(option, text)


def decimals(option: str, text: str, *, want: str, fix: str) -> list[float]:
    """Parse numbers with commas.  Raises: ConfigError."""
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise ConfigError(option, got=repr(text), want=want, fix=fix) from error


def learning_rates(text: str) -> tuple[float, ...]:
    """Parse the learning rates of --rates; return them in ascending order.  Raises: ConfigError."""
    want, fix = "numbers with commas", "For example: --rates 1e-3,3e-3,1e-2"
    return rate_grid("--rates", decimals("--rates", text, want=want, fix=fix))


def check_rates(lr: float | None, grid: str | None) -> None:
    """Check --lr and --rates: only one of them may be given.

    lr: one rate for all methods. grid: text with the rates among which each method's own is
    searched.
    Raises: ConfigError.
    """
    if lr is not None:
        above("--lr", lr, 0, fix="Try 1e-3, or leave it out: each method then gets its own.")
    if grid is None:
        return
    learning_rates(grid)
    if lr is not None:
        got, fix = f"it and --lr {lr:g}", "Leave one of them out."
        raise ConfigError("--rates", got=got, want="a search, or one rate for all", fix=fix)


def method_key(name: str, report: Callable[[str], None]) -> str:
    """Return the key of a method, given by its key or its paper's name.

    name: as on the command line; report: gets a line if the key differs from it.
    Raises: UnknownName.
    """
    key = find(name, *RUN)
    if key != name:
        report(f"Method {name!r} is {key}.")
    return key


def check_settings(key: str, settings: Iterable[str]) -> None:
    """Check that each name=value of --set is a setting of the method.  Raises: UnknownName."""
    entry = index()[key]
    if entry["family"] == "peft":  # what PEFT's config has is known to PEFT
        return
    names = [setting["name"] for setting in entry["settings"]]
    for text in settings:
        # A dotted name sets a field of a nested setting: the part before the dot is declared.
        name = text.partition("=")[0].partition(".")[0].strip()
        if names and name and name not in names:
            raise UnknownName(f"setting of {key!r}", name, names, f"intarsia show {key}")
