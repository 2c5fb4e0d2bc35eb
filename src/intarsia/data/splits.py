"""Disjoint training, validation and test parts, from a name or a path.

data = load_data("elpv", seed=0, train=1000)
data = load_data("photos/", seed=0)
data = load_data("pictures.csv", seed=0)                  # several labels a picture: labels = a;b
data = load_data("vtab-1k/cifar100", seed=0)              # a benchmark task in its published parts
data = load_data("mini/elpv", seed=0, fraction=0.1)       # a tenth of the training part
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.core.checks import one_of, whole
from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.core.files import JOINED
from intarsia.data import sets, tasks
from intarsia.data.fingerprints import fingerprint, shared
from intarsia.data.folders import check_same_classes, read_folder
from intarsia.data.images import ImageSet, OnError, check_every_class, stratified, verify
from intarsia.data.joined import chained
from intarsia.data.label_sets import strata
from intarsia.data.packages import announce
from intarsia.data.subsets import TrainingSize
from intarsia.data.tables import (
    has_parquet,
    is_saved_dataset,
    labels_file,
    read_datasets,
    read_table,
)
from intarsia.train.folds import deal

TEST_SHARE = 0.2  # of all images, when the source has no test part
VAL_SHARE = 0.15  # of the remaining images, when the source has no validation part


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts, their class names, and a JSON-ready record of how they were made."""

    train: ImageSet
    val: ImageSet | None  # None for val=0: the result is then the last epoch's
    test: ImageSet
    classes: tuple[str, ...]
    record: dict[str, Any]


def load_data(
    spec: str | Path,
    *,
    seed: int = 0,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    fraction: float | None = None,
    shots: int | None = None,
    fewer: bool = False,
    on_error: OnError = "raise",
    progress: Callable[[str], None] = announce,
) -> Splits:
    """Return disjoint training, validation and test parts of an image data set.

    spec: a named set, an image folder, a saved dataset, or a table: a CSV, .jsonl or Parquet file,
    or labels.csv or labels.jsonl in a folder of pictures. With several labels a picture, as a;b or
    a list in its column `labels`, a split keeps the sets of labels in proportion; where there are
    too many of them it is drawn at random, which is reported and recorded as "drawn_plainly". Or a
    benchmark task, "suite/task": if the suite publishes a training part of the given `fraction`,
    that is used, else one is drawn; the record says which. "@train+val" after a name or path joins
    the training and the validation part. seed: of the split. train, val, test: numbers of pictures,
    None = the part's own, or a share of all; val=0 = no validation part. fraction: share of each
    class to train on; shots: pictures of each class; fewer: a class with fewer pictures than shots
    keeps all. on_error: "skip" leaves unreadable pictures out. progress: gets lines of progress.
    Raises: UnknownName or DataError when `spec` is neither a name nor a readable path; ConfigError
    for a size that cannot be.
    """
    spec = _checked_spec(spec)
    one_of("on_error", on_error, ("raise", "skip"))
    whole("seed of the split", seed, 0)
    size_record: dict[str, Any] = {}
    size_record |= TrainingSize(
        train, fraction, shots, fewer
    ).record()  # checks the sizes before reading
    parts = read_data(spec, on_error=on_error, progress=progress)
    task = tasks.find(spec) if spec not in sets.SETS else None
    if task and fraction is not None:
        drawn_from = "train and val" if task.joins else "train"
        # The suite's own subset wins over one drawn here, and the record says so.
        if published := task.published(fraction):
            parts["train"], fraction = published, None
            origin = f"{published.source}, in place of {drawn_from}"
            size_record |= {"published": True, "from": origin}
        else:
            size_record["from"] = drawn_from
    sizes: dict[str, Any] = {"train": train, "val": val, "test": test, "fraction": fraction}
    sizes |= {"shots": shots, "fewer": fewer}
    splits = make_splits(parts, seed=seed, every_class=not task, **sizes)
    if drawn_plainly := splits.record.get("drawn_plainly"):
        part_names = " and ".join(drawn_plainly)
        progress(
            f"intarsia: {spec}: {part_names} drawn at random: too many sets of labels to stratify"
        )
    for pair, n in splits.record["shared_pictures"].items():
        if n:
            progress(f"intarsia: {spec}: {pair} share {n} identical picture{'s' * (n > 1)}")
    record = {"spec": spec, **splits.record, "kept": size_record}
    if task and task.groups:
        record["tasks"] = task.groups(splits.classes)
    return replace(splits, record=record)


def _checked_spec(spec: str | Path) -> str:
    if not isinstance(spec, str | Path):
        fix = "A dataset is given to intarsia.fit itself: fit(model, train, val, test=test)."
        raise ConfigError("data", got=type(spec).__name__, want="a name or a path", fix=fix)
    return str(spec)


def read_data(
    spec: str | Path, *, on_error: OnError = "raise", progress: Callable[[str], None] = announce
) -> dict[str, ImageSet]:
    """Read the parts of an image data set as published: `all`, or `train` with `val` or `test`.

    spec: a named set, a benchmark's task, a folder or a table. on_error: "skip" leaves unreadable
    pictures out.
    """
    spec = _checked_spec(spec)
    task = tasks.find(spec)
    if spec.endswith(JOINED) and not task:
        parts = read_data(spec.removesuffix(JOINED), on_error=on_error, progress=progress)
        if "val" in parts:
            parts["train"] = chained(parts["train"], parts.pop("val"))
        return parts
    if spec in sets.SETS:
        full = sets.load(spec, progress=progress)
        if sets.SETS[spec].published_train is None:
            return {"all": full}
        return {"train": sets.load(spec, part="train"), "test": sets.load(spec, part="test")}
    if task:
        parts = task.read()
        if on_error == "raise":  # make_splits decodes and checks the images that it keeps
            return parts
        return {part: verify(images, on_error=on_error) for part, images in parts.items()}
    path = Path(spec).expanduser()
    exists = os.path.exists(path)  # unlike Path.exists, no error for a name that is too long
    if not exists and len(path.parts) == 1 and not path.suffix:
        known_names = [*sets.SETS, *(f"{name}/TASK" for name in tasks.suites())]
        subject = "data set (and no folder of that name is here)"
        raise UnknownName(subject, spec, known_names, "docs/how-to/command-line.md")
    # A mistyped suite name would otherwise be told as a missing path.
    head = path.parts[0] if path.parts else ""
    if not exists and get_close_matches(head, tasks.suites(), cutoff=0.7):
        raise UnknownName("suite (and no folder of that name is here)", head, tasks.suites())
    if not exists:
        want = "a named set, a task, a folder, a CSV, Parquet or .jsonl file"
        raise DataError(f"data {spec!r}", got="nothing there", want=want, fix="Check the path.")
    table = path.suffix == ".parquet" and path.is_file()
    if table or is_saved_dataset(path) or has_parquet(path):
        return read_datasets(path, on_error=on_error)
    if labels := labels_file(path):
        return read_table(labels, on_error=on_error)
    return read_folder(path, on_error=on_error)


def make_splits(
    parts: dict[str, ImageSet],
    *,
    seed: int,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    fraction: float | None = None,
    shots: int | None = None,
    fewer: bool = False,
    every_class: bool = True,
) -> Splits:
    """Cut `all`, or `train` with or without `val` and `test`, into three disjoint stratified parts.

    Existing parts are never mixed. A missing test part is drawn first, so it depends only on `seed`
    and its size. Validation and then training images are drawn from the remaining images.
    Sizes: None takes all of an existing part, 20 % for a missing test part, 15 % of the rest for a
    missing validation part, and the rest for training; val=0 means no validation part. Instead of
    `train`, give a `fraction` of each class (`keep_fraction`) or a number of `shots`
    (`keep_shots`, which explains `fewer`). Validation and test parts do not depend on these.
    every_class=False: a published training part may lack classes, as VTAB-1k's SUN397 does.
    Raises: ConfigError for impossible sizes; DataError for parts with different classes, or a class
    without training images.
    """
    whole("seed of the split", seed, 0)
    training_size = TrainingSize(train, fraction, shots, fewer)
    _check_sizes(train=train, val=val, test=test)
    if "all" not in parts and "train" not in parts:
        want, fix = "'all', or 'train' with 'val' or 'test'", "Name the part to train on 'train'."
        raise DataError("parts of the data", got=", ".join(parts) or "none", want=want, fix=fix)
    check_same_classes(parts)
    # Missing parts are drawn from the training pictures.
    pool = parts["train"] if "train" in parts else parts["all"]
    default = round(len(pool) * TEST_SHARE)
    drawn_plainly: list[str] = []
    # The test part first: no other setting may change it.
    test_part, pool = _draw_part(
        "test", parts.get("test"), pool, test, default, drawn_plainly, seed=seed
    )
    val_part: ImageSet | None = None
    if val != 0:
        default = round(len(pool) * VAL_SHARE)
        val_part, pool = _draw_part(
            "val", parts.get("val"), pool, val, default, drawn_plainly, seed=seed
        )
    pool = _rename_part(training_size(pool, seed=seed), "train")
    if every_class:
        check_every_class(pool)
    named = {"train": pool, "val": val_part, "test": test_part}
    # Only pictures that are used are decoded.
    ready = {k: v if v.digests else verify(v) for k, v in named.items() if v is not None}
    record = _split_record(ready, parts, seed) | {"kept": training_size.record()}
    record |= {"several_labels": True, "drawn_plainly": drawn_plainly} if pool.several else {}
    return Splits(ready["train"], ready.get("val"), ready["test"], pool.classes, record)


@dataclass(frozen=True)
class Fold:
    """A fold of the training pictures: its number from 0, of `folds`, dealt out by `seed`."""

    number: int
    folds: int
    seed: int = 0


def hold_out(splits: Splits, fold: Fold) -> Splits:
    """Return the splits with one fold of the training pictures as the validation part.

    fold: which one, and how pictures were dealt into folds.
    """
    in_fold = deal(splits.train.labels, fold.folds, fold.seed) == fold.number
    train, val = (splits.train.select(np.flatnonzero(part)) for part in (~in_fold, in_fold))
    # the record has the digests of the new parts
    ready = {"train": train, "val": _rename_part(val, "val"), "test": splits.test}
    record = splits.record | _describe_parts(ready) | {"fold": asdict(fold)}
    return replace(splits, train=train, val=ready["val"], record=record)


def _check_sizes(**sizes: int | None) -> None:
    """Refuse sizes that are no positive integer; val may be 0.  Raises: ConfigError."""
    for part, n in sizes.items():
        if n is not None:
            larger = "Give a larger number."
            fix = larger if isinstance(n, int) else "For example 100; a share is fraction=0.1."
            whole(f"{part} images", n, int(part != "val"), fix)


def _draw_part(
    part: str,
    published: ImageSet | None,
    pool: ImageSet,
    n: int | None,
    default: int,
    drawn_plainly: list[str],
    *,
    seed: int,
) -> tuple[ImageSet, ImageSet]:
    """Return a held-out part, drawn from a pool unless it is published, and the pool's rest."""
    if published is not None:
        return _rename_part(published if n is None else published.subset(n, seed=seed), part), pool
    # drawn: at least one picture of each class
    least = 1 if pool.several else len(pool.classes)
    size = max(default, least) if n is None else n
    if pool.several and strata(pool.labels, size) is None:
        # the sets of labels cannot be kept in proportion
        drawn_plainly.append(part)
    selected, rest = stratified(pool.labels, size, seed=seed, classes=pool.classes)
    return _rename_part(pool.select(selected), part), pool.select(rest)


def _rename_part(images: ImageSet, part: str) -> ImageSet:
    """Name a set after its source and its part, as "elpv/test"."""
    return replace(images, name=f"{images.name.split('/')[0]}/{part}")


def _split_record(
    ready: dict[str, ImageSet], parts: dict[str, ImageSet], seed: int
) -> dict[str, Any]:
    """Return a record of how the parts were made: seed, published parts, classes, fingerprints."""
    published = sorted(set(parts) - {"all"})
    classes = list(ready["train"].classes)
    return {
        "seed": seed,
        "published_parts": published,
        "classes": classes,
        **_describe_parts(ready),
    }


def _describe_parts(ready: dict[str, ImageSet]) -> dict[str, Any]:
    """Return the fingerprint of each part, and how many identical pictures each two parts share."""
    return {
        "parts": {part: fingerprint(images) for part, images in ready.items()},
        "shared_pictures": {
            f"{a} and {b}": len(shared(ready[a], ready[b])) for a, b in combinations(ready, 2)
        },
    }
