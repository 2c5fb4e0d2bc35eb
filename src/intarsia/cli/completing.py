"""What a shell completes: methods, models, data and words of options, without importing torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import typer

from ..core.plugins import TASKS, plugins
from ..core.registry import index
from ..core.schema import Setting, words
from ..data.corpora import MIXED
from .early import BACKBONES, CORPORA, RECOMMENDERS, RUN, SETS

Complete = Callable[[str], list[str]]
HELP = 60  # characters next to a word: one line
TIMM = re.compile(r"^@register_model\ndef (\w+)", re.M)


def among(words: Iterable[str]) -> Complete:
    """Return a completer among some words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def several(complete_word: Complete) -> Complete:
    """Return a function that completes the last word of a list with commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{word}" for word in complete_word(last)]

    return complete


def methods(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the value of `--method` for the shell, with a summary of each.

    ctx: the options typed so far; with --task the recommenders of that task are offered.
    incomplete: the beginning of the word.
    """
    keys = RECOMMENDERS.get(ctx.params.get("task") or "", method_names(""))
    return [row for row in cards(incomplete) if row[0] in keys]


def method_names(incomplete: str) -> list[str]:
    """Complete the methods that can be trained on labels or text."""
    return among(key for key, entry in index().items() if entry["kind"] in RUN)(incomplete)


def cards(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name that `intarsia show` takes."""
    # The index is a JSON file next to the code: completion must answer faster than torch imports.
    rows = ((key, shorten(entry["summary"], HELP)) for key, entry in index().items())
    return [row for row in rows if row[0].startswith(incomplete)]


def data(incomplete: str) -> Iterator[str]:
    """Complete DATA for the shell: named sets, corpora, suites of tasks, and files.

    incomplete: the beginning of the word.
    """
    # A trailing slash invites the shell to complete a task of the suite behind it.
    yield from among((*SETS, *CORPORA, *(f"{suite}/" for suite in plugins(TASKS))))(incomplete)
    folder, _, head = incomplete.rpartition("/")
    for path in sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).glob("*")):
        # Hidden files are left out, as shells leave them out.
        if path.name.startswith(head) and not path.name.startswith("."):
            yield f"{folder}/{path.name}" if folder else path.name


def models(incomplete: str) -> list[str]:
    """Complete the backbones of packages, and the models of the timm that is installed."""
    return among((*BACKBONES, *_timms()))(incomplete)


@lru_cache(maxsize=1)
def _timms() -> tuple[str, ...]:
    """Read the names of timm's models from its source files, without importing it."""
    # Its modules register their models when imported, which takes seconds: the names are read
    # instead.
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return ()
    files = sorted(Path(spec.origin).parent.glob("models/*.py"))
    return tuple(name for file in files for name in TIMM.findall(file.read_text()))


def settings(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the value of `--set` for the shell, with the help of each setting.

    ctx: the options typed so far: after --method the words are NAME=, after --methods METHOD.NAME=.
    incomplete: the beginning of the word.
    """
    # A verb with --method completes NAME=; one with --methods completes METHOD.NAME=.
    if (method := ctx.params.get("method")) is not None:
        rows = _settings_of(method)
    else:
        names = [m for m in (ctx.params.get("methods") or "").split(",") if m in index()]
        rows = [(f"{m}.{word}", help) for m in names for word, help in _settings_of(m)]
    return [(word, help) for word, help in rows if word.startswith(incomplete)]


def _settings_of(method: str) -> list[tuple[str, str]]:
    """Return "NAME=" and the help of each setting of a method, for the shell's completion."""
    entry: Any = index().get(method, {})
    return [
        (f"{setting['name']}=", shorten(setting["help"], HELP))
        for setting in entry.get("settings", ())
    ]


OF_OPTION: dict[str, Callable[..., Iterable[Any]]] = {
    "method": methods,
    "model": models,
    "settings": settings,
    "calib": several(among((MIXED, *CORPORA))),
    "data": data,
    "methods": several(method_names),
}


def of_setting(name: str, declared: Setting) -> Callable[..., Iterable[Any]] | None:
    """Return the function that completes an option's value in the shell; None if there is none.

    name: of the setting, for which OF_OPTION may have a function. declared: its declaration; its
    choices or offered words are completed otherwise.
    """
    if name in OF_OPTION and not (declared.choices or declared.offers):
        return OF_OPTION[name]
    offered = declared.choices or declared.offers
    # a lambda, so that the words are only made when a shell asks for them
    return (lambda incomplete: among(words(offered))(incomplete)) if offered else None
