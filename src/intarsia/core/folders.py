"""Name the kind of a folder, for the error of a command that was given another kind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .errors import CheckpointError, ConfigError, DataError
from .files import JOINED, check_target

BLEND = "blend.json"  # the file that makes a folder a blend of runs
MARKS = {
    BLEND: "a blend of runs, of `intarsia blend` or `intarsia auto`",
    "seeing.json": "a run of `intarsia fit` that sees or hears",
    "labelled.json": "a run of `intarsia fit` on labelled texts or numbers",
    "auto.json": "a search of `intarsia auto` on pictures",
    "labelled-auto.json": "a search of `intarsia auto` on labelled texts or numbers",
    "classifier.json": "a classifier of texts or numbers",
    "experiment.json": "a run of `intarsia fit`",
    "experts.json": "experts on disk, of `intarsia offload`",
    "card.json": "an estimator, of its `save`",
    "prior.json": "a prior, of `intarsia codec train`",
    "meta.json": "an index, of `intarsia index`",
    "adapter_config.json": "an adapter, of `intarsia.save` or PEFT",
    "intarsia.json": "a changed model, of `intarsia.save`",
    "config.json": "a model, of `save_pretrained`",
}
"""The file that only folders of one kind have, the most special kind first."""
RECOMMENDER, CARD, INDEX, SEARCH = "recommender", "card.json", "meta.json", "auto.json"
AN_INDEX = "the folder of an index", "For one: intarsia index docs.jsonl --out idx"
"""What an error about an index wants, and its fix."""
METRICS, RUN, ADAPTER, STATE = "metrics.jsonl", "run.json", "adapter", "state"
PHASES, FAILED, TENSORBOARD = "phases", "failed.json", "tensorboard"
BEGUN = (METRICS, RUN, STATE)
"""Files of which a folder with a run has one."""
RUN_FILES = frozenset(
    {*BEGUN, ADAPTER, PHASES, FAILED, TENSORBOARD, "README.txt", "predictions.safetensors"}
    | {"experiment.json", "recommender.json", "seeing.json"}
)
"""What a run that was stopped or diverged may have left in its folder."""


def describe_folder(folder: Path) -> str:
    """Describe the content of a path in words, such as "a run of `intarsia fit`", for an error."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    # hidden files are the system's
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if (kind := next((MARKS[mark] for mark in MARKS if mark in names), None)) is not None:
        return kind
    suffixes = Counter(suffix for name in names if (suffix := Path(name).suffix))
    # nothing with a suffix: folders, or nothing at all
    if not suffixes:
        return "a folder of folders" if names else "an empty folder"
    # a folder of no known kind: the commonest suffix says most about it
    suffix, count = suffixes.most_common(1)[0]
    return f"a folder with {count} {suffix} file{'' if count == 1 else 's'}"


def data_name(data: str | Path) -> str:
    """Return the name of data for a run's folder: of a file without its suffix."""
    path = Path(data).expanduser()
    return path.stem if path.is_file() else path.name


def check_kind(folder: Path, mark: str, *, what: str, want: str, fix: str) -> None:
    """Check that a folder is of some kind, by the file that only such folders have.

    mark: the name of that file.
    Raises: CheckpointError, which says of what kind it is instead.
    """
    if not (folder / mark).is_file():
        raise CheckpointError(what, got=describe_folder(folder), want=want, fix=fix)


def check_recommender(folder: Path) -> Path:
    """Return the folder that has a recommender: the one given, or a run's own below it.

    Raises: ConfigError where there is none.
    """
    place = folder / RECOMMENDER if (folder / RECOMMENDER).is_dir() else folder
    if not (place / CARD).is_file():
        got = "a folder without one" if place.is_dir() else "no such folder"
        fix = "Check the path, or train one: intarsia fit ml-100k --task sessions --method m2trec"
        raise ConfigError(f"recommender in {place}", got=got, want="a finished run", fix=fix)
    return place


def check_index(folder: Path) -> None:
    """Check that a folder has an index.  Raises: CheckpointError."""
    want, fix = AN_INDEX
    check_kind(folder, INDEX, what=f"folder {folder}", want=want, fix=fix)


def check_begun(folder: Path | None, mark: str) -> None:
    """Check that a folder has a search to go on with.  Raises: ConfigError."""
    if folder is None or not (folder / mark).is_file():
        got = "no folder" if folder is None else describe_folder(folder)
        want, fix = f"a search that was begun, with {mark}", "Name its folder: --out FOLDER."
        raise ConfigError(f"folder {folder or 'to go on in'}", got=got, want=want, fix=fix)


def runs_in(folder: Path) -> list[Path]:
    """Return the folder itself if it has a finished run, else the folders in it that have one.

    Raises: DataError if there are none.
    """
    if (folder / RUN).is_file():
        return [folder]
    # a folder of runs, one level deep
    if below := [path.parent for path in folder.glob(f"*/{RUN}")] if folder.is_dir() else []:
        return below
    if not folder.exists():
        got, fix = "nothing there", "Check the path."
    elif (folder / METRICS).exists():
        got, fix = f"a run without {RUN}", "Finish it: intarsia fit --resume."
    else:
        got = f"{describe_folder(folder)}; no {RUN} in it or one level below"
        fix = "Name a folder that intarsia fit wrote."
    raise DataError(f"run folder {str(folder)!r}", got=got, want="a finished run", fix=fix)


def check_outside(out: Path, data: str | Path | None) -> None:
    """Check that the folder to write is no file, and neither the data that are read nor in them.

    data: a name or a path: a folder of pictures would read what is in it as one more class.
    Raises: ConfigError.
    """
    subject, place = f"run folder {out}", out.resolve()
    source = Path(str(data or "").removesuffix(JOINED)).expanduser().resolve()
    if data and source.is_dir() and source in (place, *place.parents):
        got, want = f"the folder of the data, {data}, or one in it", "a folder outside"
        raise ConfigError(subject, got=got, want=want, fix="For example: --out runs/first")
    if out.exists() and not out.is_dir():
        fix = "For example: --out runs/first"
        raise ConfigError(subject, got="a file", want="a folder, which is new", fix=fix)


def check_empty(
    out: Path, data: str | Path | None = None, fix: str = "Choose another --out."
) -> None:
    """Check that a folder may be written: outside the data, new or empty.  Raises: ConfigError."""
    check_outside(out, data)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"run folder {out}", got=describe_folder(out), want="a new one", fix=fix)


def check_new_run(out: Path, data: str = "") -> None:
    """Check, before long work, that a new run may be written into a folder.

    It is new or empty, or holds a run that diverged.
    Raises: ConfigError.
    """
    subject = f"run folder {out}"
    check_outside(out, data)
    if not out.exists():
        return
    diverged = (out / FAILED).is_file() and not (out / RUN).exists()
    if not diverged and any((out / name).exists() for name in BEGUN):
        got, want = "a folder with a run in it", "a new one"
        fix = "Choose another folder, or go on with that run: resume=True."
        raise ConfigError(subject, got=got, want=want, fix=fix)
    if diverged:  # it is replaced, whatever its user has put next to it
        return
    hidden = {path.name for path in out.iterdir() if path.name.startswith(".")}
    check_target(out, own=RUN_FILES | hidden)
