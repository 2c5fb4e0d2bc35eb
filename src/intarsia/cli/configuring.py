"""`--config`: the options of a run out of a file, which the command line may override."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from ..core.errors import CheckpointError, ConfigError, UnknownName
from ..core.files import read_json
from .early import method_key
from .options import flag, shared

FILES = ("experiment.json", "run.json")
OF_FIT = {"data": str, "method": str, "seed": int}
INVERSE = {"untrained": "pretrained", "fraction": "images"}  # an option -> its name in the file


def read_config(path: Path) -> dict[str, Any]:
    """The values of a run folder, of its experiment.json or run.json, or of a file like the former.

    Raises: ConfigError for a file that is not there or not of a run, and for a value of another
    type; UnknownName for a name that is no option; CheckpointError for what is no JSON.
    """
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    if not file.is_file():
        got = "a folder without one" if path.is_dir() else "no such file"
        fix = "For example: --config runs/first/run.json"
        raise ConfigError(f"--config {path}", got=got, want=" or ".join(FILES), fix=fix)
    try:
        found = read_json(file)
    except (OSError, ValueError) as error:
        what, fix = f"--config {file}", "Restore it from a copy."
        raise CheckpointError(what, got=error, want="a JSON object", fix=fix) from error
    if isinstance(found, dict) and isinstance(found.get("record"), dict):  # run.json
        found = found["record"].get("experiment")
    if not isinstance(found, dict):
        got, want = "none in it", "the options of a run of `intarsia fit`"
        fix = "A run from Python has its settings in its program."
        raise ConfigError(f"--config {file}", got=got, want=want, fix=fix)
    _check(found, file)
    return found


def with_config(
    path: Path, asked: Mapping[str, Any], words: set[str], report: Callable[[str], None]
) -> tuple[dict[str, Any], set[str]]:
    """All parameters of `fit` as the file has them, but for those given; and all names set.

    asked: the parameters; words: names of those that stand on the command line.  What these
    override is reported, and what goes with them: settings of a method are left out for another.
    """
    found, given = read_config(path), dict(asked)
    named = {INVERSE.get(word, word) for word in words}
    theirs, own = found.get("method"), found.get("settings")
    another = "method" in words and method_key(given["method"], lambda _: None) != theirs
    if own and theirs and another and "settings" not in words:
        report(f"Without --set {' '.join(own)} of {path}, which is for {theirs}.")
        del found["settings"]
    for name, value in found.items():
        if name in named:
            word = next(w for w in words if INVERSE.get(w, w) == name)
            if (now := given[word]) != value and word not in INVERSE:
                report(f"{flag(word)} {now} in place of {value} of {path}.")
            elif word in INVERSE:
                report(f"{flag(word)} in place of {name}={value} of {path}.")
        elif name == "pretrained":
            given["untrained"] = not value
        elif name == "images" and isinstance(value, float):
            given["fraction"] = value
        else:
            given[name] = value
    return given, words | found.keys()


def _check(found: Mapping[str, Any], file: Path) -> None:
    types = OF_FIT | {p.name: get_args(p.annotation)[0] for p in shared()}
    types |= {"pretrained": bool, "images": int | float | None}
    for name, value in found.items():
        if name not in types.keys() - INVERSE.keys():
            known = types.keys() - INVERSE.keys()
            raise UnknownName(f"option in {file}", name, known, "intarsia fit --help")
        if not _fits(value, types[name]):
            want = str(getattr(types[name], "__name__", types[name]))
            fix = f"See `intarsia fit --help` for {flag(name)}."
            raise ConfigError(f"{name} in {file}", got=repr(value), want=want, fix=fix)


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if kind is type(None):
        return value is None
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind
