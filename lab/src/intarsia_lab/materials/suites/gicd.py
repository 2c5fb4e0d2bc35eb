"""GICD: CIFAR-100, FGVC-Aircraft and Food-101, read by torchvision.

<suite's folder>/{cifar-100-python,fgvc-aircraft-2013b,food-101}/...    the unpacked archives
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR100, FGVCAircraft, Food101

from intarsia.core.errors import DataError
from intarsia.data.images import ImageSet

from .task import Parts, Suite, SuiteTask

# set -> part -> constructor, called with root and download
_OPENS: dict[str, dict[str, partial[Any]]] = {
    "cifar100": {"train": partial(CIFAR100, train=True), "test": partial(CIFAR100, train=False)},
    "aircraft": {part: partial(FGVCAircraft, split=part) for part in ("train", "val", "test")},
    "food101": {part: partial(Food101, split=part) for part in ("train", "test")},
}


def read(name: str, root: Path, *, download: bool = False) -> Parts:
    """Read the published parts of a set by torchvision.

    name: of the set; root: the suite's folder; download: let torchvision download missing files.
      Pictures of Aircraft and Food-101 are paths. CIFAR-100's (180 MB) are in memory.
    Raises: DataError when torchvision does not find the set, or its checksums differ.
    """
    try:
        opened = {p: make(root=root, download=download) for p, make in _OPENS[name].items()}
        return {p: _to_set(name, dataset) for p, dataset in opened.items()}
    except DataError:
        raise
    except (RuntimeError, OSError, LookupError, ValueError) as error:
        raise DataError(
            f"{name} in {root}",
            got=error,
            want="the unpacked files of the published archive",
            fix="Unpack the archive there again, or run: "
            "python -c 'from intarsia_lab.materials.suites.gicd"
            f' import read; read("{name}", "{root}", download=True)\'',
        ) from error


def _to_set(name: str, dataset: Any) -> ImageSet:
    """Convert a data set of torchvision to our type."""
    if name == "cifar100":
        pictures, labels = dataset.data, dataset.targets
    else:
        # the paths, which torchvision keeps in a private attribute
        pictures, labels = [Path(p) for p in dataset._image_files], dataset._labels
    source, label = f"torchvision {type(dataset).__name__}", np.asarray(labels, dtype=np.int64)
    return ImageSet(name, pictures, label, tuple(dataset.classes), source=source)


def _task(name: str, classes: int, counts: dict[str, int], needs: tuple[str, ...]) -> SuiteTask:
    """Build a task that torchvision reads."""
    about = f"torchvision.datasets.{_OPENS[name]['train'].func.__name__}"
    return SuiteTask(
        name, "general", classes, counts, partial(read, name), needs=needs, about=about
    )


_CIFAR100 = tuple(f"cifar-100-python/{file}" for file in ("train", "test", "meta"))
_AIRCRAFT = tuple(
    f"fgvc-aircraft-2013b/data/{file}"
    for file in ("variants.txt", "images", *(f"images_variant_{p}.txt" for p in _OPENS["aircraft"]))
)
_FOOD101 = tuple(f"food-101/{file}" for file in ("meta/train.json", "meta/test.json", "images"))
SUITE = Suite(
    name="gicd",
    about="general image classification: CIFAR-100, FGVC-Aircraft, Food-101",
    tasks=(
        _task("cifar100", 100, {"train": 50_000, "test": 10_000}, _CIFAR100),
        _task("aircraft", 100, {"train": 3_334, "val": 3_333, "test": 3_333}, _AIRCRAFT),
        _task("food101", 101, {"train": 75_750, "test": 25_250}, _FOOD101),
    ),
    how="Unpack cifar-100-python.tar.gz, fgvc-aircraft-2013b.tar.gz and food-101.tar.gz into the"
    " suite's folder, as torchvision does with download=True.",
    groups=("general",),
)
