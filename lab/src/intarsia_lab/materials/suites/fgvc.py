"""FGVC: five fine-grained sets in the splits of VPT (arXiv:2203.12119), read from JSON files.

<suite's folder>/cub/{train,val,test}.json      {"001.Albatross/x.jpg": 1, ...}
<suite's folder>/cub/train_0.1.json             the published 10 %, optional
<suite's folder>/cub/images/...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from intarsia.data.images import ImageSet

from .lists import check_apart, read_json, to_set
from .task import Parts, Suite, SuiteTask

PARTS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class _Set:
    """A set: its classes and images, possible folder names, and the folder of its pictures."""

    classes: int
    counts: tuple[int, int, int]  # train, val, test
    others: tuple[str, ...]  # folder names besides NAME and FGVC-NAME
    images: str
    about: str


# the splits of VPT; train and val together are the original training part
_SETS = {
    "cub": _Set(
        200, (5394, 600, 5794), ("CUB", "CUB_200_2011"), "images", "CUB-200-2011: species of birds"
    ),
    "nabirds": _Set(
        555,
        (21536, 2393, 24633),
        ("NABirds",),
        "images",
        "NABirds: species of birds of North America",
    ),
    "flowers": _Set(
        102,
        (1020, 1020, 6149),
        ("Flowers", "OxfordFlowers"),
        ".",
        "Oxford Flowers: kinds of flowers",
    ),
    "dogs": _Set(
        120,
        (10800, 1200, 8580),
        ("Dogs", "StanfordDogs"),
        "Images",
        "Stanford Dogs: breeds of dogs",
    ),
    "cars": _Set(
        196, (7329, 815, 8041), ("Cars", "StanfordCars"), ".", "Stanford Cars: make, model and year"
    ),
}


def read(name: str, root: Path) -> Parts:
    """Read the training, validation and test part of a set from a suite's folder.

    name: of the set; root: the suite's folder. Labels are the class ids of train.json in order,
      numbered from 0.
    Raises: DataError for a label file that is missing or damaged (see `read_json`), an id in val or
      test that is not in train, or a picture in two parts.
    """
    folder = _folder(name, root)
    train = read_json(folder / "train.json")
    classes = _classes(train)
    rows = {"train": train}
    rows |= {p: read_json(folder / f"{p}.json", ids=classes) for p in PARTS[1:]}
    check_apart({folder / f"{part}.json": entries for part, entries in rows.items()})
    pictures = folder / _SETS[name].images
    return {p: to_set(name, rows[p], pictures, classes=classes, source="FGVC") for p in PARTS}


def published(name: str, root: Path, fraction: float) -> ImageSet | None:
    """Read the published small training part of a set; None if its file does not exist.

    name: of the set; root: the suite's folder; fraction: 0.1 reads train_0.1.json. Its pictures may
      also be in train and val, but not in test.
    Raises: DataError as `read` does.
    """
    folder = _folder(name, root)
    file = folder / f"train_{float(fraction)}.json"
    if not file.is_file():
        return None
    classes = _classes(read_json(folder / "train.json"))
    rows = read_json(file, ids=classes)
    check_apart({file: rows, folder / "test.json": read_json(folder / "test.json")})
    source = f"FGVC, {file.name}"
    return to_set(name, rows, folder / _SETS[name].images, classes=classes, source=source)


def _classes(rows: list[tuple[str, int]]) -> dict[int, int]:
    """Return class id -> label; the ids of NABirds are not contiguous."""
    return {i: label for label, i in enumerate(sorted({i for _, i in rows}))}


def _folder(name: str, root: Path) -> Path:
    """Return the set's folder under the first name that exists, or else where it should be."""
    places = [root / folder for folder in _folders(name)]
    return next((place for place in places if place.is_dir()), places[0])


def _folders(name: str) -> tuple[str, ...]:
    return name, *_SETS[name].others, f"FGVC-{name}"


def _task(name: str, entry: _Set) -> SuiteTask:
    """Build a task from the numbers of its classes and images, and the files it needs."""
    needs = [f"{part}.json" for part in PARTS] + [entry.images] * (entry.images != ".")
    return SuiteTask(
        name=name,
        group="fine-grained",
        classes=entry.classes,
        counts=dict(zip(PARTS, entry.counts, strict=True)),
        read=partial(read, name),
        needs=tuple("|".join(f"{folder}/{need}" for folder in _folders(name)) for need in needs),
        about=entry.about,
    )


SUITE = Suite(
    name="fgvc",
    about="fine-grained classification: CUB, NABirds, Oxford Flowers, Stanford Dogs and Cars",
    tasks=tuple(_task(name, entry) for name, entry in _SETS.items()),
    how="Get the pictures from each set's publisher and put the JSON splits of VPT beside them"
    " (github.com/KMnP/vpt links to both).",
    groups=("fine-grained",),
    published=published,
)
