"""Train, validation and test parts that share no picture, from a name or a path.

data = load_data("elpv", seed=0, train=1000)
data = load_data("photos/", seed=0)
data = load_data("vtab-1k/cifar100", seed=0)              # a benchmark's task in its own parts
data = load_data("mini/elpv", seed=0, fraction=0.1)       # a tenth of the training part
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any

from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.data import sets, suites
from intarsia.data.fingerprint import fingerprint, shared
from intarsia.data.folders import check_same_classes, read_folder
from intarsia.data.images import ImageSet, OnError, check_every_class, stratified, verify
from intarsia.data.packages import announce
from intarsia.data.subsets import Keep
from intarsia.data.tables import has_parquet, is_saved_dataset, read_csv, read_datasets

TEST_SHARE = 0.2  # of everything, when the source has no test part
VAL_SHARE = 0.15  # of what is left, when the source has no validation part


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts, their class names, and the JSON-ready record of how they were made."""

    train: ImageSet
    val: ImageSet | None  # None when asked for with val=0: the last epoch is then the result
    test: ImageSet
    classes: tuple[str, ...]
    record: dict[str, Any]


def load_data(
    spec: str,
    *,
    seed: int,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    fraction: float | None = None,
    shots: int | None = None,
    fewer: bool = False,
    on_error: OnError = "raise",
    progress: Callable[[str], None] = announce,
) -> Splits:
    """Return disjoint parts of a named set, image folder, CSV or Parquet file, saved dataset.

    Also of a benchmark's task as "suite/task", see `suites.find`; where its publisher cut a
    training part to `fraction`, that one takes the place of the training part and, with
    "@train+val", of the validation part; else the share is drawn of these. The record says which.
    See `make_splits` for what the numbers mean.
    Raises: UnknownName or DataError when `spec` is neither a name nor a path that can be read.
    """
    kept: dict[str, Any] = {}
    kept |= Keep(train, fraction, shots, fewer).record()  # before anything is read
    parts = read_data(spec, on_error=on_error, progress=progress)
    task = suites.find(spec) if spec not in sets.SETS else None
    if task and fraction is not None:
        whole = "train and val" if suites.joins(spec) else "train"
        if small := suites.published(spec, fraction):
            parts["train"], fraction = small, None
            kept |= {"published": True, "from": f"{small.source}, in place of {whole}"}
        else:
            kept["from"] = whole
    splits = make_splits(
        parts, seed=seed, train=train, val=val, test=test, fraction=fraction, shots=shots,
        fewer=fewer, every_class=not task,
    )  # fmt: skip
    for pair, n in splits.record["shared_pictures"].items():
        if n:
            progress(f"intarsia: {spec}: {pair} share {n} identical picture{'s' * (n > 1)}")
    record = {"spec": spec, **splits.record, "kept": kept}
    if task and task[1].group == suites.JOINT:
        record["tasks"] = suites.groups(splits.classes)
    return replace(splits, record=record)


def read_data(
    spec: str, *, on_error: OnError = "raise", progress: Callable[[str], None] = announce
) -> dict[str, ImageSet]:
    """Return what a name or path holds as its publisher divided it: `all`, or `train` ..."""
    if spec in sets.SETS:
        full = sets.load(spec, progress=progress)
        if sets.SETS[spec].published_train is None:
            return {"all": full}
        return {"train": sets.load(spec, part="train"), "test": sets.load(spec, part="test")}
    if suites.find(spec):
        parts = suites.read(spec)
        if on_error == "raise":  # what is kept of them is decoded, and checked, in make_splits
            return parts
        return {part: verify(images, on_error=on_error) for part, images in parts.items()}
    path = Path(spec).expanduser()
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        known = [*sets.SETS, *(f"{name}/TASK" for name in suites.MODULES)]
        raise UnknownName("data set (and no folder of that name is here)", spec, known)
    head = path.parts[0] if path.parts else ""
    if not path.exists() and get_close_matches(head, suites.MODULES, cutoff=0.7):
        raise UnknownName("suite (and no folder of that name is here)", head, suites.MODULES)
    table = path.suffix == ".parquet" and path.is_file()
    if table or is_saved_dataset(path) or has_parquet(path):
        return read_datasets(path, on_error=on_error)
    if path.suffix == ".csv" and path.is_file():
        return read_csv(path, on_error=on_error)
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

    Parts the source already has are kept apart. A missing test part is drawn first, so that it
    depends on `seed` and its size only; then validation, then training, each from what is left.
    Sizes: None takes all of an existing part, 20 % for a missing test, 15 % of the rest for a
    missing validation part, and the rest for training; val=0 means none. Instead of `train`, the
    training images may be a `fraction` of each class (`keep_fraction`) or a number of `shots`
    (`keep_shots`, which explains `fewer`); validation and test parts are the same for all of them.
    every_class=False: a published training part may lack classes, as VTAB-1k's SUN397 does.
    Raises: ConfigError for impossible sizes; DataError for classes that differ or have no training
    image.
    """
    kept = Keep(train, fraction, shots, fewer)
    _check_sizes(train=train, val=val, test=test)
    if "all" not in parts and "train" not in parts:
        raise DataError(
            "parts of the data",
            got=", ".join(parts) or "none",
            want="'all', or 'train' with 'val' or 'test'",
            fix="Name the part to train on 'train'.",
        )
    check_same_classes(parts)
    pool = parts["train"] if "train" in parts else parts["all"]
    default = round(len(pool) * TEST_SHARE)
    held, pool = _hold_out("test", parts.get("test"), pool, test, default, seed=seed)
    chosen: ImageSet | None = None
    if val != 0:
        default = round(len(pool) * VAL_SHARE)
        chosen, pool = _hold_out("val", parts.get("val"), pool, val, default, seed=seed)
    pool = _renamed(kept(pool, seed=seed), "train")
    if every_class:
        check_every_class(pool)
    named = {"train": pool, "val": chosen, "test": held}
    ready = {k: v if v.digests else verify(v) for k, v in named.items() if v is not None}
    record = _record(ready, parts, seed) | {"kept": kept.record()}
    return Splits(ready["train"], ready.get("val"), ready["test"], pool.classes, record)


def _check_sizes(**sizes: int | None) -> None:
    for what, n in sizes.items():
        if n is not None and (n < 0 or (n == 0 and what != "val")):
            want = "at least 0" if what == "val" else "at least 1"
            raise ConfigError(f"{what} images", got=n, want=want, fix="Give a larger number.")


def _hold_out(
    part: str, given: ImageSet | None, pool: ImageSet, n: int | None, default: int, *, seed: int
) -> tuple[ImageSet, ImageSet]:
    """(what is held out, what is left of the pool): the source's own part when it has one."""
    if given is not None:
        return _renamed(given if n is None else given.subset(n, seed=seed), part), pool
    size = max(default, len(pool.classes)) if n is None else n
    chosen, rest = stratified(pool.labels, size, seed=seed, classes=pool.classes)
    return _renamed(pool.select(chosen), part), pool.select(rest)


def _renamed(images: ImageSet, part: str) -> ImageSet:
    return replace(images, name=f"{images.name.split('/')[0]}/{part}")


def _record(ready: dict[str, ImageSet], parts: dict[str, ImageSet], seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "published_parts": sorted(set(parts) - {"all"}),
        "classes": list(ready["train"].classes),
        "parts": {part: fingerprint(images) for part, images in ready.items()},
        "shared_pictures": {
            f"{a} and {b}": len(shared(ready[a], ready[b])) for a, b in combinations(ready, 2)
        },
    }
