"""What can be refused before torch is imported: names of data, methods, settings and choices.

The lists are those of the library, written out; a test holds them equal.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError, UnknownName
from ..core.registry import find, index

SETS = (
    "elpv",
    "elpv-type",
    "emoji",
    "fashion-mnist",
    "landsat",
    "mnist",
    "openclipart",
    "textile",
    "tuxpaint",
)
CORPORA = ("austen", "gcide", "python-docs", "wordnet")
SUITES = ("fgvc", "gicd", "mini", "vtab-1k")
TEXTS = (".txt", ".md", ".jsonl")
CHOICES = {
    "augment": ("none", "light", "crop"),
    "precision": ("fp32", "bf16", "fp16"),
    "objective": ("plain", "two_pass", "one_backward", "local_variance", "task_heads"),
    "suite": SUITES,
    "profile": ("full", "quick"),
    "protocol": ("honest", "tuned", "official"),
}
OF_ROUTERS = (
    *("data", "routers", "seeds", "budget", "steps", "sees_later", "jobs", "threads", "out"),
    *("baseline", "as_json", "ctx", "debug"),
)
ONLY_OF_ROUTERS = ("budget", "steps", "sees_later")
"""Options that mean something to a comparison of routers, and those that mean nothing without."""
OPTIONS = {"settings": "--set", "targets": "--target", "images": "-n"}
RUN = ("adapter", "baseline", "recipe", "change")  # kinds of what can be trained


def check_data(spec: str) -> None:
    """Raises: UnknownName or DataError unless it is a name of the library or a path that exists."""
    head, slash, _ = spec.partition("/")
    if spec in (*SETS, *CORPORA) or (slash and head in SUITES) or Path(spec).expanduser().exists():
        return
    if not slash and not Path(spec).suffix:
        known = (*SETS, *CORPORA, *(f"{name}/TASK" for name in SUITES))
        raise UnknownName("data set (and no folder of that name is here)", spec, known)
    if difflib.get_close_matches(head, SUITES, cutoff=0.7):
        raise UnknownName("suite (and no folder of that name is here)", head, SUITES)
    got, want = "nothing there", "a named set, a task, a folder, a table or a text file"
    raise DataError(f"data {spec!r}", got=got, want=want, fix="Check the path.")


def is_text(spec: str) -> bool:
    """Whether the data are a text: a corpus, or a file of text by its suffix."""
    return spec in CORPORA or Path(spec).suffix.lower() in TEXTS


def check_run(folder: Path) -> None:
    """Raises: ConfigError unless there is such a folder."""
    if not folder.is_dir():
        fix = "Check the path, or start the run with `intarsia fit DATA --out FOLDER`."
        want = "the folder of a run of `intarsia fit`"
        raise ConfigError(f"run {folder}", got="no such folder", want=want, fix=fix)


def check_choices(given: Mapping[str, Any]) -> None:
    """Raises: UnknownName for an option whose value is none of its words."""
    for name in CHOICES.keys() & given.keys():
        word = str(given[name]).partition(":")[0].partition("+")[0]  # an objective has settings
        if given[name] is not None and word not in CHOICES[name]:
            raise UnknownName(f"--{name}", word, CHOICES[name])


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
            raise UnknownName(f"setting of {key!r}", name, known)


def check_compared(given: set[str], routers: bool) -> None:
    """Raises: ConfigError for options of `compare` that say nothing about what it compares."""
    strange = sorted(given - set(OF_ROUTERS) if routers else given & set(ONLY_OF_ROUTERS))
    if not strange:
        return
    names = ", ".join(OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in strange)
    got = f"{names} {'with' if routers else 'without'} --routers"
    want, fix = "--routers with them", "For example: --routers top-k,switch --budget both"
    if routers:
        of_them = "--seeds, --budget, --steps, --sees-later, --baseline, --jobs, --threads, --out"
        want = f"with --routers: {of_them}"
        fix = "Leave them out: models, rates and pictures are one for all routers."
    raise ConfigError("options of compare", got=got, want=want, fix=fix)
