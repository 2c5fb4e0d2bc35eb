"""Folders of fitted estimators: card.json (key, settings, figures) and tensors.safetensors."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ..core.errors import CheckpointError, ConfigError, IntarsiaError
from ..core.files import (
    check_target,
    read_json,
    repaired,
    writing,
)
from ..core.folders import check_kind
from ..core.reading import read_tensors
from ..core.registry import card, keys, method_key, settings_from_dict, settings_to_dict
from ..core.sealing import check_sealed, is_format, seal_folder

CARD, TENSORS = "card.json", "tensors.safetensors"
NAMES = "feature_names_in_"  # names of a table's columns: text, which no tensor holds
FORMAT = 1
E = TypeVar("E")


def save_estimator(estimator: BaseEstimator, folder: str | Path) -> Path:
    """Write a fitted estimator that is in the catalogue; a folder of this kind is replaced.

    estimator: one of scikit-learn's form; folder: its files are card.json and tensors.safetensors.
      Raises: NotFittedError; ConfigError for a random_state that is no number, and for a folder
      with other files in it; TrainingError if it cannot be written.
    """
    check_is_fitted(estimator)
    folder = Path(folder)
    if isinstance(estimator.get_params().get("random_state"), np.random.RandomState):
        got, want = "a RandomState", "a number or None"
        fix = "Call set_params(random_state=0) before save."
        raise ConfigError("random_state", got=got, want=want, fix=fix)
    check_target(folder, own=(CARD, TENSORS))
    # fitted attributes by scikit-learn's convention: arrays to safetensors, the rest to JSON
    learned = {n: v for n, v in vars(estimator).items() if n.endswith("_") and n[0] != "_"}
    tensors = {n: v for n, v in learned.items() if isinstance(v, np.ndarray) and n != NAMES}
    # numbers and names of features, which JSON holds
    figures = {n: _plain(v) for n, v in learned.items() if n not in tensors}
    with writing(folder) as scratch:
        scratch.mkdir()
        contiguous = {n: np.ascontiguousarray(v) for n, v in tensors.items()}
        save_file(contiguous, scratch / TENSORS)
        record = {"format": FORMAT, "key": method_key(estimator), "version": version("intarsia")}
        settings = {n: _plain(v) for n, v in settings_to_dict(estimator).items()}
        record |= {"settings": settings, "figures": figures}
        seal_folder(scratch, CARD, record)
    return folder


def load_estimator(kind: type[E], folder: str | Path) -> E:
    """Load the estimator that `save_estimator` wrote.

    kind: the class that it has to be of, or a subclass. Raises: CheckpointError for a folder that
      is damaged, or of another kind.
    """
    # a kill while it was replaced may have left the new folder under another name
    folder = repaired(folder)
    want, fix = (
        "what the `save` of a fitted estimator wrote",
        "Copy it again, or fit and save anew.",
    )
    check_kind(folder, CARD, what=f"folder {folder}", want=want, fix="Check the path.")
    try:
        record = read_json(folder / CARD)
        if not is_format(record["format"], FORMAT) or record["key"] not in keys("model"):
            raise ValueError(f"format {record['format']!r}, key {record['key']!r}")
        record = check_sealed(folder / CARD, record, needs=(TENSORS,))
        # settings build the estimator; fitted attributes are set afterwards
        estimator: Any = settings_from_dict(card(record["key"]), record["settings"])
        learned = read_tensors(folder / TENSORS, "np") | dict(record["figures"])
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, IntarsiaError) as error:
        raise CheckpointError(f"folder {folder}", got=error, want=want, fix=fix) from error
    if not isinstance(estimator, kind):
        got, want = f"a {type(estimator).__name__}", f"a {kind.__name__}"
        fix = f"Load it with {type(estimator).__name__}.load."
        raise CheckpointError(f"folder {folder}", got=got, want=want, fix=fix)
    # a file must not set anything but fitted attributes, methods for instance
    if not all(n.endswith("_") and n[0] != "_" for n in learned):
        got, want = sorted(learned), "names of fitted attributes"
        raise CheckpointError(f"folder {folder}", got=got, want=want, fix="Save it anew.")
    for name, value in learned.items():
        setattr(estimator, name, np.asarray(value, dtype=object) if name == NAMES else value)
    return cast(E, estimator)


def _plain(value: Any) -> Any:
    """Convert a figure or a setting to JSON's types, an array to a list."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


class SavedEstimators:
    """Mixin for estimators that are saved as a folder."""

    def save(self, folder: str | Path) -> Path:
        """Write settings as JSON and fitted arrays as safetensors; return the folder's path.

        Raises: as `save_estimator` does.
        """
        return save_estimator(cast(Any, self), folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load what `save` wrote.  Raises: CheckpointError for another kind of folder."""
        return load_estimator(cls, folder)
