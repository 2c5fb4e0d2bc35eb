"""A classifier of rows: linear maps of features, alone or as a mean of probabilities.

classifier = RowClassifier("tfidf").fit(texts, labels)
classifier.predict(texts)
classifier.save("folder")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ...core.checks import above
from ...core.errors import CheckpointError, ConfigError, DataError, IntarsiaError
from ...core.files import check_target, read_json, repaired, writing
from ...core.folders import check_kind
from ...core.reading import read_tensors
from ...core.sealing import check_sealed, seal_folder
from ...data.labelled import Rows
from ...train.folds import deal
from ...train.probe import FOLDS, Probe, converged_probe
from ...train.scores import comparing_temperature, tempered_loss
from .features import Feature, feature_of, opened_feature, states, text_model
from .standalone import SETTINGS, TENSORS
from .words import SPARSE, check_method, parse_method, split_adapter, split_word

FORMAT = 1
LAYERS = 8  # of a model that are compared, besides its embeddings, at most
MANY = 1000  # rows, from which one fold is enough to compare layers
Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Member:
    """A fitted probe on a feature: its logits are x W' + b, at the temperature of the folds.

    held_out: (n, classes), logits of each training row by the probe that was fitted without its
    fold; None for one that was opened.  strength: C of the penalty.
    """

    feature: Feature
    weight: Tensor
    bias: Tensor
    strength: float
    held_out: Tensor | None = None

    def logits(self, x: Any) -> Tensor:
        """Return the logits of features x, (n, classes), in float64."""
        return torch.from_numpy(np.asarray(x @ self.weight.double().numpy().T)) + self.bias

    def shares(self, rows: Rows) -> Tensor:
        """Return the probability of each class, (n, classes)."""
        return self.logits(self.feature(rows)).softmax(1)


def judged(labels: np.ndarray) -> np.ndarray:
    """Return which rows a fold can judge: rows of a class with another row.  (n,) of bool."""
    return np.bincount(labels)[labels] > 1


def fit_member(
    feature: Feature, x: Any, labels: np.ndarray, classes: int, fold: np.ndarray
) -> Member:
    """Fit the converged probe on features x, its strength and its temperature by the folds."""
    return tempered(feature, converged_probe(x, labels, classes, fold=fold), labels)


def tempered(feature: Feature, probe: Probe, labels: np.ndarray) -> Member:
    """Return the member of a probe, at the temperature that suits its held-out answers best."""
    rows = torch.from_numpy(judged(labels))
    temperature = comparing_temperature(probe.held_out[rows], torch.from_numpy(labels)[rows])
    tensors = (t / temperature for t in (probe.weight, probe.bias, probe.held_out))
    weight, bias, held_out = tensors
    return Member(feature, weight, bias, probe.strength, held_out)


def best_layer(
    model: str, tokens: int, rows: Rows, labels: np.ndarray, classes: int, fold: np.ndarray
) -> tuple[Feature, np.ndarray]:
    """Choose the layer of a model with the probe of smallest loss on the folds.

    model, tokens: as of `HiddenMean`. Returns its feature, and the features of the rows. With many
    rows one fold is enough to compare.
    """
    depth = text_model(model)[0].config.num_hidden_layers
    layers = sorted({round(i * depth / LAYERS) for i in range(LAYERS + 1)})
    by_layer = states(model, rows, layers, tokens)
    turns, losses = (1 if len(labels) > MANY else FOLDS), dict[int, float]()
    for layer, x in by_layer.items():
        probe = converged_probe(x, labels, classes, fold=fold, held=turns)
        inside = torch.from_numpy((fold < turns) & judged(labels))
        losses[layer] = tempered_loss(probe.held_out[inside], torch.from_numpy(labels)[inside])
    best = min(losses, key=lambda layer: losses[layer])
    return feature_of(f"{model}@{best}:{tokens}"), by_layer[best]


def member_of(
    word: str,
    rows: Rows,
    labels: np.ndarray,
    classes: int,
    fold: np.ndarray,
    columns: tuple[str, ...] = (),
) -> Member:
    """Fit the member of a word, see `feature_of`; of a model without a layer the best one.

    Raises: ConfigError for an adapter, which is trained; and as `feature_of`.
    """
    if not columns and split_adapter(word)[0] is not None:
        fix = f"For example: intarsia fit texts.csv --method {word}"
        raise ConfigError("method", got=word, want="a word of frozen features", fix=fix)
    if not columns and word not in SPARSE:
        model, layer, tokens = split_word(word)
        if layer is None and not word.startswith("numbers"):
            feature, x = best_layer(model, tokens, rows, labels, classes, fold)
            return fit_member(feature, x, labels, classes, fold)
    feature = feature_of(word, columns).fit(rows)
    return fit_member(feature, feature(rows), labels, classes, fold)


class RowClassifier(ClassifierMixin, BaseEstimator):
    """Classifier of texts, or of rows of numbers, by converged probes on frozen features.

    p = sum_k w_k softmax(x_k W_k' + b_k), with features x_k of a row by a word each: words and
    tfidf (TF-IDF), numbers (a table's own), or MODEL@LAYER, the mean hidden states of a model. The
    penalty of each probe, its temperature and a layer that is left out are chosen on five folds.
    method: words joined by +, each with its weight behind a *.  seed: of the folds.
    Not for texts by the hundred thousand: all features are in memory.
    """

    def __init__(self, method: str = "tfidf", seed: int = 0) -> None:
        """Set the parameters; nothing is computed before `fit`."""
        self.method, self.seed = method, seed

    def fit(self, rows: Any, labels: Any, columns: Sequence[str] = ()) -> Self:
        """Fit the probes to n texts, or to an array (n, d), and their n labels.

        columns: names of the d numbers; None = x0, x1 ...
        Raises: ConfigError; DataError for one class, or other numbers of rows and labels.
        """
        check_method(self.method)
        pairs = parse_method(self.method)
        rows, columns = _rows_of(rows, columns)
        self.classes_, numbers = np.unique(np.asarray(labels), return_inverse=True)
        if len(self.classes_) < 2 or len(rows) != len(numbers):
            got = f"{len(rows)} rows, {len(numbers)} labels of {len(self.classes_)} classes"
            want = "a label for each row, of two classes or more"
            raise DataError("training rows", got=got, want=want, fix="Add what is missing.")
        fold, count = deal(numbers, FOLDS, self.seed), len(self.classes_)
        self.members_ = [
            member_of(word, rows, numbers, count, fold, tuple(columns)) for word, _ in pairs
        ]
        self.shares_ = [share for _, share in pairs]
        return self

    @classmethod
    def of(
        cls, members: Sequence[Member], shares: Sequence[float], classes: Sequence[str], seed: int
    ) -> RowClassifier:
        """Return the classifier of members that are fitted.  shares: their weights, together 1."""
        words = [member.feature.word for member in members]
        classifier = cls(method_of(words, shares), seed)
        classifier.members_, classifier.shares_ = list(members), list(shares)
        classifier.classes_ = np.asarray(classes)
        return classifier

    def predict_proba(self, rows: Any) -> np.ndarray:
        """Return the probability of each class, (n, classes), in the order of `classes_`."""
        check_is_fitted(self)
        rows, _ = _rows_of(rows, ())
        pairs = zip(self.shares_, self.members_, strict=True)
        return np.sum([share * member.shares(rows).numpy() for share, member in pairs], axis=0)

    def predict(self, rows: Any) -> np.ndarray:
        """Return the likeliest class of each row, (n,)."""
        return self.classes_[self.predict_proba(rows).argmax(1)]

    @property
    def held_out_(self) -> np.ndarray:
        """Probabilities of the training rows, each by probes that were fitted without its fold."""
        check_is_fitted(self)
        answers = [m.held_out for m in self.members_ if m.held_out is not None]
        if len(answers) < len(self.members_):
            fix = "Fit it again; a folder does not keep them."
            raise ConfigError("held-out answers", got="none", want="a fitted one", fix=fix)
        pairs = zip(self.shares_, answers, strict=True)
        return np.sum([s * logits.double().softmax(1).numpy() for s, logits in pairs], axis=0)

    def save(self, folder: str | Path) -> Path:
        """Write classifier.json and classifier.safetensors into a folder of their own."""
        check_is_fitted(self)
        folder = Path(folder)
        check_target(folder, own=(SETTINGS, TENSORS))
        with writing(folder) as scratch:
            scratch.mkdir()
            write_files(self, scratch)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> RowClassifier:
        """Load what `save` wrote.  Raises: CheckpointError for anything else."""
        return read_files(repaired(folder))


def method_of(words: Sequence[str], shares: Sequence[float]) -> str:
    """Return the method of words and their weights, the inverse of `parse_method`."""
    least = min(shares)
    parts = [(word, share / least) for word, share in zip(words, shares, strict=True)]
    return "+".join(w if abs(n - 1) < 1e-6 else f"{w}*{round(n, 6):g}" for w, n in parts)


def _rows_of(rows: Any, columns: Sequence[str]) -> tuple[Rows, Sequence[str]]:
    """Return rows as a list of texts or an array, and the names of its columns."""
    first = next(iter(rows), None) if not isinstance(rows, np.ndarray) else None
    if isinstance(first, str) or (isinstance(rows, np.ndarray) and rows.dtype.kind in "UO"):
        return [str(row) for row in rows], ()
    if isinstance(rows, list) and not rows:
        return rows, ()
    names = columns or getattr(rows, "columns", ())
    wide = np.asarray(rows, dtype=np.float64)
    if wide.ndim != 2:
        raise DataError("rows", got=wide.shape, want="texts, or an array (n, d)", fix="Give those.")
    return wide, [str(n) for n in names] or [f"x{i}" for i in range(wide.shape[1])]


def write_files(
    classifier: RowClassifier, folder: Path, folders: Mapping[str, str] | None = None
) -> None:
    """Write a classifier's two files into a folder, sealed.

    folders: word of a feature -> folder of its model inside, where an export has one.
    """
    tensors, members = dict[str, np.ndarray](), list[dict[str, Any]]()
    for i, member in enumerate(classifier.members_):
        arrays = {"weight": member.weight.numpy(), "bias": member.bias.numpy()}
        feature = member.feature.settings
        if folders and (place := folders.get(member.feature.word)):
            # the model there has its changes already
            feature = feature | {"kind": "hidden", "folder": place}
        else:
            arrays |= member.feature.tensors
        tensors |= {f"{i}.{name}": np.ascontiguousarray(a) for name, a in arrays.items()}
        share = classifier.shares_[i]
        members.append({"feature": feature, "share": share, "strength": member.strength})
    save_file(tensors, folder / TENSORS)
    record = {"format": FORMAT, "version": version("intarsia"), "seed": classifier.seed}
    record |= {"classes": [str(name) for name in classifier.classes_], "members": members}
    seal_folder(folder, SETTINGS, record)


def read_files(folder: Path) -> RowClassifier:
    """Read a classifier from the files in a folder.  Raises: CheckpointError."""
    what, want = f"folder {folder}", "a classifier of texts or numbers"
    check_kind(folder, SETTINGS, what=what, want=want, fix="Check the path.")
    try:
        record = check_sealed(folder / SETTINGS, read_json(folder / SETTINGS), needs=(TENSORS,))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}")
        tensors = read_tensors(folder / TENSORS, "np")
        members = [_member(row, i, tensors) for i, row in enumerate(record["members"])]
        shares = [float(row["share"]) for row in record["members"]]
        for share in shares:
            above("share", share, 0)
        return RowClassifier.of(members, shares, record["classes"], int(record["seed"]))
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, IntarsiaError) as error:
        fix = "Copy it again, or fit it again."
        raise CheckpointError(what, got=error, want=want, fix=fix) from error


def _member(row: Mapping[str, Any], number: int, tensors: Mapping[str, np.ndarray]) -> Member:
    """Return a member of its settings and the tensors of all members."""
    first = f"{number}."
    inside = [name for name in tensors if name.startswith(first)]
    own = {name.removeprefix(first): tensors[name] for name in inside}
    weight, bias = (torch.from_numpy(own[name].copy()) for name in ("weight", "bias"))
    return Member(opened_feature(row["feature"], own), weight, bias, float(row["strength"]))
