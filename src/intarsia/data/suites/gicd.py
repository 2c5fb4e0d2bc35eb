"""GICD: CIFAR-100, FGVC-Aircraft and Food-101 as torchvision's own classes read them.

<suite's folder>/{cifar-100-python,fgvc-aircraft-2013b,food-101}/...    as their archives unpack
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR100, FGVCAircraft, Food101

from ...core.errors import DataError
from ..images import ImageSet
from .task import Parts, Suite, SuiteTask

# part -> torchvision's data set, given root and download
_OPENS: dict[str, dict[str, partial[Any]]] = {
    "cifar100": {"train": partial(CIFAR100, train=True), "test": partial(CIFAR100, train=False)},
    "aircraft": {part: partial(FGVCAircraft, split=part) for part in ("train", "val", "test")},
    "food101": {part: partial(Food101, split=part) for part in ("train", "test")},
}


def read(name: str, root: Path, *, download: bool = False) -> Parts:
    """The published parts of a set; `download` lets torchvision fetch what is not in `root`.

    Pictures of Aircraft and Food-101 are paths; those of CIFAR-100, 180 MB, are in memory.
    Raises: DataError when torchvision does not find the set, or not what its checksums say.
    """
    try:
        return {p: _to_set(name, open_(root=root, download=download))
                for p, open_ in _OPENS[name].items()}  # fmt: skip
    except (RuntimeError, OSError, LookupError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name} in {root}",
            got=f"{type(error).__name__}: {error}",
            want="the archive's files, unpacked and as they were published",
            fix="Unpack the archive there again, or run: python -c 'from intarsia.data.suites.gicd"
            f' import read; read("{name}", "{root}", download=True)\'',
        ) from error


def _to_set(name: str, found: Any) -> ImageSet:
    if name == "cifar100":
        pictures, labels = found.data, found.targets
    else:
        pictures, labels = [Path(p) for p in found._image_files], found._labels
    return ImageSet(
        name, pictures, np.asarray(labels, dtype=np.int64), tuple(found.classes),
        source=f"torchvision {type(found).__name__}",
    )  # fmt: skip


def _task(name: str, classes: int, counts: dict[str, int], needs: tuple[str, ...]) -> SuiteTask:
    about = f"torchvision.datasets.{_OPENS[name]['train'].func.__name__}"
    return SuiteTask(
        name, "general", classes, counts, partial(read, name), needs=needs, about=about
    )


_AIRCRAFT, _LISTS = "fgvc-aircraft-2013b/data", ("train", "val", "test")
SUITE = Suite(
    name="gicd",
    about="general image classification: CIFAR-100, FGVC-Aircraft, Food-101",
    tasks=(
        _task("cifar100", 100, {"train": 50_000, "test": 10_000},
              tuple(f"cifar-100-python/{file}" for file in ("train", "test", "meta"))),
        _task("aircraft", 100, {"train": 3_334, "val": 3_333, "test": 3_333},
              (f"{_AIRCRAFT}/variants.txt", f"{_AIRCRAFT}/images",
               *(f"{_AIRCRAFT}/images_variant_{part}.txt" for part in _LISTS))),
        _task("food101", 101, {"train": 75_750, "test": 25_250},
              ("food-101/meta/train.json", "food-101/meta/test.json", "food-101/images")),
    ),
    how="Unpack cifar-100-python.tar.gz, fgvc-aircraft-2013b.tar.gz and food-101.tar.gz into the"
    " suite's folder, as torchvision does with download=True.",
    groups=("general",),
)  # fmt: skip
