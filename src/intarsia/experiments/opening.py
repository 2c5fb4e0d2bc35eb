"""A run folder as an object to evaluate and predict with."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError
from ..core.files import read_json
from ..core.sealing import check_settings
from ..data.corpora import is_text
from ..train.folder import RUN
from . import experiment as experiments
from .runs import PictureRun, Report, open_pictures
from .writing import TextRun, open_texts


def open_run(
    folder: str | Path,
    *,
    size: int | None = None,
    as_trained: bool = True,
    report: Report = lambda _: None,
) -> PictureRun | TextRun:
    """Open a finished run of `intarsia fit`: its trained model, to evaluate and predict with.

    The results for pictures and for texts both have `evaluate()` and `predict(...)`, `model`,
    `classes` (empty for texts), `experiment` and `record`, the contents of run.json. folder: of the
    run. size: side of the pictures in px, None = that of the training. as_trained: keep the frozen
    weights in the dtype of the training; False = float32. report: gets lines of progress.
    Raises: DataError or ConfigError for a folder that is no finished run, or a size that the model
    cannot take; CheckpointError for damaged files, or a pretrained model that is not that of the
    run.
    """
    folder = Path(folder)
    _check_record(folder / RUN)
    if is_text(experiments.read(folder).pictures.data):
        if size is not None:
            got, want = f"{size} for a run on texts", "a run on pictures"
            raise ConfigError("size", got=got, want=want, fix="Leave it out.")
        return open_texts(folder, as_trained=as_trained, report=report)
    return open_pictures(folder, size=size, as_trained=as_trained)


def _check_record(path: Path) -> None:
    """Check the record of a run by its own digest, before a word of it is used.

    Raises: CheckpointError for a record that changed after it was written, or has no digest.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return  # whoever reads it says what is wrong
    check_settings(path, content)
