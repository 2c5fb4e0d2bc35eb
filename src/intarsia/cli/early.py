"""What can be refused before torch is imported: names of data, methods, settings and choices.

The lists are those of the library, as `make generate` wrote them to names.txt.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.checks import (
    BALANCED,
    above,
    at_least,
    below_one,
    between,
    check_device,
    named_numbers,
    one_of,
    rate_grid,
)
from ..core.errors import ConfigError, DataError, UnknownName
from ..core.files import JOINED
from ..core.folders import describe_folder
from ..core.pictured import lists_pictures
from ..core.plugins import TASKS, plugins
from ..core.registry import find, index

Words = Mapping[str, tuple[str, ...]]


def read_words(path: Path) -> Words:
    """Return the lists of a file that `names.text` wrote: the words of an option under its flag."""
    lists: dict[str, tuple[str, ...]] = {}
    for line in path.read_text().splitlines():
        kind, word = line.split(": ", 1)
        lists[kind] = (*lists.get(kind, ()), word)
    return lists


def choices(lists: Words) -> Words:
    """Return the words of each option, by its name without dashes."""
    return {kind[2:]: words for kind, words in lists.items() if kind.startswith("--")}


NAMES = Path(__file__).with_name("names.txt")
WORDS = read_words(NAMES)
SETS, CORPORA, TEXTS, BACKBONES = map(WORDS.__getitem__, ("set", "corpus", "text", "backbone"))
TRACKERS, FORMATS, ARMS = WORDS["tracker"], WORDS["format"], WORDS["arm"]
SELECTIONS, CALIBRATIONS = WORDS["selection"], WORDS["calibration"]
"""Words of `--calib` that stand for several texts."""
RETRIEVAL = "sparse-retrieval"
CHOICES = choices(WORDS)
RECOMMENDERS = {task: WORDS[f"{task} recommender"] for task in CHOICES["task"] if task != RETRIEVAL}
# numbers of a run that can be too small, and those that are shares below 1
LEAST = {"epochs": 1, "batch_size": 1, "accumulate": 1, "patience": 1, "lr": 0, "weight_decay": 0}
LEAST |= {"mixup": 0, "cutmix": 0, "workers": 0, "threads": 1, "jobs": 1}
SHARES = ("warmup", "smoothing")
OPTIONS = {"settings": "--set", "targets": "--target", "images": "-n"}
RUN = ("adapter", "baseline", "recipe", "change")  # kinds of what can be trained


def check_data(spec: str) -> None:
    """Raises: UnknownName or DataError unless it is a name of the library or a path that exists."""
    spec = spec.removesuffix(JOINED)
    head, slash, _ = spec.partition("/")
    if spec in (*SETS, *CORPORA) or (slash and head in plugins(TASKS)):
        return
    if os.path.exists(os.path.expanduser(spec)):  # no error for a name that is too long
        return
    if not slash and not Path(spec).suffix:
        known = (*SETS, *CORPORA, *(f"{name}/TASK" for name in plugins(TASKS)))
        what = "data set (and no folder of that name is here)"
        raise UnknownName(what, spec, known, "docs/how-to/command-line.md")
    if difflib.get_close_matches(head, plugins(TASKS), cutoff=0.7):
        raise UnknownName("suite (and no folder of that name is here)", head, plugins(TASKS))
    got, want = "nothing there", "a named set, a task, a folder, a table or a text file"
    raise DataError(f"data {spec!r}", got=got, want=want, fix="Check the path.")


def is_text(spec: str) -> bool:
    """Whether the data are a text: a corpus, or a file of text by its suffix and first row."""
    if spec in CORPORA:
        return True
    return Path(spec).suffix.lower() in TEXTS and not lists_pictures(Path(spec))


def check_calibration(spec: str, rows: int) -> None:
    """Raises: as `check_data`, or ConfigError, unless it is "mixed" or texts with commas, none of
    which is without a row.
    """
    names = [name.strip() for name in spec.split(",")]
    for name in names:
        if name in CALIBRATIONS:
            continue
        check_data(name)
        if not is_text(name):
            want = "mixed, a corpus, or a .txt, .md or .jsonl file; several with commas"
            fix = "For example: --calib mixed, or --calib mixed,notes.txt"
            raise ConfigError("--calib", got=name, want=want, fix=fix)
    texts = sum(len(CORPORA) if name in CALIBRATIONS else 1 for name in names)
    at_least("--rows", rows, texts, fix=f"Give each of the {texts} texts one, or name fewer.")


def check_run(folder: Path) -> None:
    """Raises: ConfigError unless there is such a folder, with a run that has been started."""
    if (folder / "experiment.json").is_file():
        return
    fix = "Check the path, or start the run with `intarsia fit DATA --out FOLDER`."
    want = "the folder of a run of `intarsia fit`"
    raise ConfigError(f"run {folder}", got=describe_folder(folder), want=want, fix=fix)


def check_choices(given: Mapping[str, Any], known: Words = CHOICES) -> None:
    """Raises: UnknownName for an option whose value is none of its words."""
    for name in known.keys() & given.keys():
        word = str(given[name]).partition(":")[0].partition("+")[0]  # an objective has settings
        if given[name] is not None and word not in known[name]:
            raise UnknownName(f"--{name}", word, known[name])


def check_numbers(given: Mapping[str, Any]) -> None:
    """Raises: ConfigError for what `Training`, `Recipe` and `Running` would refuse, too."""
    for name, least in LEAST.items():
        if given.get(name) is not None:
            fix = "Try 1e-3." if name == "lr" else ""
            at_least(f"--{name.replace('_', '-')}", given[name], least, fix)
    if given.get("seed") is not None:
        between("seed", given["seed"], 0, 2**63 - 1)
    for name in SHARES:
        if given.get(name) is not None:
            below_one(name, given[name])
    if given.get("clip") is not None:
        above("clip", given["clip"], 0, fix="Try 1.0, or no --clip.")
    if given.get("density") is not None:
        if given.get("schedule") in (None, "fixed-mask", "bdwp"):
            got = f"it with {given.get('schedule') or 'no --schedule'}"
            want, fix = "gradual, rigl, set or dsl with it", "Try --schedule rigl --density 0.25."
            if given.get("schedule") == "bdwp":
                fix = "Say how many of a group are kept: --schedule bdwp:pattern=2:8."
            raise ConfigError("--density", got=got, want=want, fix=fix)
        above("--density", given["density"], 0, fix="Try 0.25.")
    check_teacher(str(given.get("objective")), given.get("teacher"))
    if given.get("select") is not None:
        fix = "A test set is scored once, after training; it chooses nothing."
        one_of("select", given["select"], SELECTIONS, fix=fix)
    if given.get("device") is not None:
        check_device(given["device"])
    if given.get("class_weights") not in (None, BALANCED):
        for value in named_numbers("class_weights", given["class_weights"]).values():
            above("class_weights", value, 0, fix="Try 1.0 for a class that counts as usual.")
    for name in given.get("tracker") or ():
        if name not in TRACKERS:
            raise UnknownName("tracker", name, TRACKERS)
    if given.get("accumulate") and given["batch_size"] % given["accumulate"]:
        got = f"{given['accumulate']} parts of {given['batch_size']} samples"
        fix = "Choose a divisor of batch_size."
        raise ConfigError("accumulate", got=got, want="equal parts", fix=fix)


def check_teacher(objective: str, teacher: str | None) -> None:
    """Raises: ConfigError for a teacher without an objective that has one, or the reverse."""
    has, wants = teacher or "teacher=" in objective, objective.startswith("squarehead")
    if bool(has) != wants:
        got = f"{teacher or 'none'} with --objective {objective}"
        fix = "For example: --objective squarehead --teacher smollm2"
        want = "squarehead and the dense model, both or neither"
        raise ConfigError("--teacher", got=got, want=want, fix=fix)


def numbers(what: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas.  Raises: ConfigError."""
    try:
        found = tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        found = ()
    if not found:
        want = "a whole number, or several with commas"
        raise ConfigError(what, got=repr(text), want=want, fix=f"For example: {what}=0,1")
    return found


def learning_rates(text: str) -> tuple[float, ...]:
    """Return the learning rates of --rates, in ascending order.  Raises: ConfigError."""
    try:
        grid = [float(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        want, fix = "numbers with commas", "For example: --rates 1e-3,3e-3,1e-2"
        raise ConfigError("--rates", got=repr(text), want=want, fix=fix) from error
    return rate_grid("--rates", grid)


def check_rates(lr: float | None, grid: str | None) -> None:
    """Raises: ConfigError for a rate or a grid that cannot be, and for both.

    lr: one for all methods.  grid: of the search for one for each.
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
    """The key of what `--method` names, by its key or its paper's name; reported if it differs.

    Raises: UnknownName.
    """
    key = find(name, *RUN)
    if key != name:
        report(f"Method {name!r} is {key}.")
    return key


def check_settings(key: str, settings: Iterable[str]) -> None:
    """Raises: UnknownName for a name=value that is no setting of the method."""
    entry = index()[key]
    if entry["family"] == "peft":  # what PEFT's config has is known to PEFT
        return
    known = [setting["name"] for setting in entry["settings"]]
    for text in settings:
        name = text.partition("=")[0].partition(".")[0].strip()
        if known and name and name not in known:
            raise UnknownName(f"setting of {key!r}", name, known, f"intarsia show {key}")
