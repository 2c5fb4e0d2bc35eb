"""A run folder as an object to evaluate and predict with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import read_json
from ..core.folders import BLEND, describe_folder
from ..core.sealing import check_settings
from ..data.corpora import is_text
from ..train.folder import RUN
from . import experiment as experiments
from .blending import BlendRun, open_blend
from .labelled import is_labelled_run, open_labelled
from .runs import PictureRun, Report, open_pictures
from .writing import TextRun, open_texts


def open_run(
    folder: str | Path,
    *,
    size: int | None = None,
    as_trained: bool = True,
    report: Report = lambda _: None,
) -> PictureRun | BlendRun | TextRun | Any:
    """Open a finished run of `intarsia fit`, or a blend of several, to evaluate and predict with.

    A run on labelled rows is a `LabelledRun`; its `predict` takes texts or numbers.

    The results for pictures and for texts both have `evaluate()` and `predict(...)`, `model`,
    `classes` (empty for texts), `experiment` and `record`, the contents of run.json. folder: of the
    run. size: side of the pictures in px, None = the training's. as_trained: keep the frozen
    weights in the dtype of the training; False = float32. report: gets lines of progress.
    Raises: DataError or ConfigError for a folder that is no finished run, or a size that the model
    cannot take; CheckpointError for damaged files, or a pretrained model that is not the run's.
    """
    folder = Path(folder)
    if is_labelled_run(folder):
        return open_labelled(folder)
    if not (folder / BLEND).is_file():
        return open_single(folder, size=size, as_trained=as_trained, report=report)
    if size is not None:
        want, fix = "a single run: a blend's members have sizes of their own", "Leave it out."
        raise ConfigError("size", got=f"{size} for a blend", want=want, fix=fix)
    return open_blend(folder, as_trained=as_trained)


def open_single(
    folder: str | Path,
    *,
    size: int | None = None,
    as_trained: bool = True,
    report: Report = lambda _: None,
) -> PictureRun | TextRun:
    """Open a finished run that is no blend: a model with weights that can be changed.

    folder, size, as_trained, report: see `open_run`.
    Raises: as `open_run`; ConfigError for a blend.
    """
    folder = Path(folder)
    if (folder / BLEND).is_file():
        want, fix = "a single run of `intarsia fit`", f"Name a member: {folder / 'members' / '0'}."
        raise ConfigError(f"run {folder}", got=describe_folder(folder), want=want, fix=fix)
    _check_record(folder / RUN)
    if is_text(experiments.read(folder).pictures.data):
        if size is not None:
            got, want = f"{size} for a run on texts", "a run on pictures"
            raise ConfigError("size", got=got, want=want, fix="Leave it out.")
        return open_texts(folder, as_trained=as_trained, report=report)
    return open_pictures(folder, size=size, as_trained=as_trained)


def _check_record(path: Path) -> None:
    """Check the record of a run by its own digest, before a word of it is used."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return  # whoever reads it reports the error
    check_settings(path, content)
