"""`--config`: the options of a run out of a file, which the command line may override."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, ConfigError, UnknownName
from ..core.files import read_json, read_toml
from ..core.schema import fits, in_words
from .early import method_key
from .options import FIELDS, OF_RUN, flag

FILES = ("experiment.json", "run.json")
TOML = ".toml"
YAML = (".yaml", ".yml")  # refused: its 1e-3 is a text and its `no` is false


def read_config(path: Path) -> dict[str, Any]:
    """Read the options of a run from a file, for --config.

    path: a run folder, its experiment.json or run.json, or a JSON or TOML file like the former.
    Raises: ConfigError for a file that is not there, not of a run or of another form, and for a
    value of another type; UnknownName for a name that is no option; CheckpointError for a file that
    cannot be parsed.
    """
    # A folder, or one of its two files, or any file like them.
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    if not file.is_file():
        got = "a folder without one" if path.is_dir() else "no such file"
        fix = "For example: --config runs/first/run.json"
        raise ConfigError(f"--config {path}", got=got, want=" or ".join(FILES), fix=fix)
    if (form := file.suffix.lower()) in YAML:
        fix = 'Write it as TOML, a line an option: method = "lora", lr = 1e-3.'
        raise ConfigError(f"--config {file}", got="YAML", want="JSON or TOML", fix=fix)
    try:
        values = read_toml(file) if form == TOML else read_json(file)
    except (OSError, ValueError) as error:
        want = "a TOML file" if form == TOML else "a JSON object"
        subject, fix = f"--config {file}", "Mend it, or restore it from a copy."
        raise CheckpointError(subject, got=error, want=want, fix=fix) from error
    # run.json holds the experiment inside its record; experiment.json is the experiment.
    if isinstance(values, dict) and isinstance(values.get("record"), dict):  # run.json
        values = values["record"].get("experiment")
    if not isinstance(values, dict):
        got, want = "none in it", "the options of a run of `intarsia fit`"
        fix = "A run from Python has its settings in its program."
        raise ConfigError(f"--config {file}", got=got, want=want, fix=fix)
    _check(values, file)
    return values


def with_config(
    path: Path, parameters: Mapping[str, Any], words: set[str], report: Callable[[str], None]
) -> tuple[dict[str, Any], set[str]]:
    """Return `fit`'s parameters, where a file's values fill those not given, and all their names.

    path: the file of --config. parameters: values by name; words: names of those given on the
    command line, which override the file's; that is reported, as are settings of another method,
    which are left out. report: gets the lines.
    """
    values, merged = read_config(path), dict(parameters)
    theirs, settings = values.get("method"), values.get("settings")
    # The file may have a paper's name or a key: both are compared as keys.
    another = "method" in words and method_key(merged["method"], lambda _: None) != theirs
    if settings and theirs and another and "settings" not in words:
        report(f"Without --set {' '.join(settings)} of {path}, which is for {theirs}.")
        del values["settings"]
    # an option that was not given takes the file's value
    for name, value in values.items():
        if name not in words:
            merged[name] = value
        # The command line wins over the file, and says so.
        elif (now := merged[name]) != value:
            report(f"{flag(name)} {now} in place of {value} of {path}.")
    return merged, words | values.keys()


def _check(values: Mapping[str, Any], file: Path) -> None:
    """Check the names and types of the options in a file, which may be written by hand."""
    # A file may be written by hand: names and types are checked as for options.
    names = ("data", *OF_RUN)
    for name, value in values.items():
        if name not in names:
            raise UnknownName(f"option in {file}", name, names, "intarsia fit --help")
        kind = FIELDS[name][0].type
        if not fits(value, kind):
            fix = f"See `intarsia fit --help` for {flag(name)}."
            raise ConfigError(f"{name} in {file}", got=repr(value), want=in_words(kind), fix=fix)
