"""Image folders: one sub-folder per class, optionally inside `train`, `val` and `test`.

parts = read_folder(Path("photos"))        # {"all": ...} or {"train": ..., "val": ..., "test": ...}
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from intarsia.core.errors import DataError
from intarsia.data.decode import SUFFIXES
from intarsia.data.images import ImageSet, OnError, check_every_class, verify

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def read_folder(root: Path, *, on_error: OnError = "raise") -> dict[str, ImageSet]:
    """Read the pictures of a folder: `all`, or the parts `train`, `val` and `test` that exist.

    Every picture is decoded once, so that damaged files are found before training. on_error: "skip"
    leaves unreadable pictures out and records them.
    Raises: DataError for a path that is not a folder, a class without pictures, different classes
    in the parts, and unreadable pictures (all in one error).
    """
    # Without a train folder every sub-folder is a class.
    parts = _part_folders(_checked_directory(root))
    if not parts:
        return {"all": verify(_read_classes(root), on_error=on_error)}
    sets = {part: _read_classes(folder) for part, folder in parts.items()}
    check_same_classes(sets)
    return {part: verify(images, on_error=on_error) for part, images in sets.items()}


def check_same_classes(sets: dict[str, ImageSet]) -> None:
    """Raise DataError unless all parts have the same class names in the same order."""
    first, *other_parts = sets
    for part in other_parts:
        expected, present = set(sets[first].classes), set(sets[part].classes)
        if sets[first].classes == sets[part].classes:
            continue
        only = [f"only in {first}: {sorted(expected - present)}"] if expected - present else []
        only += [f"only in {part}: {sorted(present - expected)}"] if present - expected else []
        subject = f"classes of {first} and {part}"
        got = "; ".join(only) or "the same names in another order"
        fix = "Rename, add or remove class folders until they agree."
        raise DataError(subject, got=got, want="the same classes in every part", fix=fix)


def _checked_directory(root: Path) -> Path:
    if root.is_dir():
        return root
    got = "a file" if root.exists() else "nothing there"
    want = "a folder with one sub-folder per class, or with train/ and test/"
    raise DataError(f"image folder {str(root)!r}", got=got, want=want, fix="Check the path.")


def _part_folders(root: Path) -> dict[str, Path]:
    """Return part -> folder for train, val and test; {} if there is no train folder."""
    inside = sorted(path for path in root.iterdir() if path.is_dir())
    folders_of_parts = {
        part: [folder for folder in inside if _is_part(folder, names)]
        for part, names in PARTS.items()
    }
    if not folders_of_parts["train"]:
        return {}
    for part, folders in folders_of_parts.items():
        if len(folders) > 1:
            got, fix = " and ".join(folder.name for folder in folders), "Merge them or rename one."
            raise DataError(f"part {part!r} of {str(root)!r}", got=got, want="one folder", fix=fix)
    return {part: folders[0] for part, folders in folders_of_parts.items() if folders}


def _is_part(folder: Path, names: tuple[str, ...]) -> bool:
    """Decide whether a folder is a part: "Train" is one only if it holds classes."""
    if folder.name in names:
        return True
    return folder.name.lower() in names and any(path.is_dir() for path in folder.iterdir())


def _read_classes(root: Path) -> ImageSet:
    """Read a folder as a set with a class for each of its folders; pictures are not decoded."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        # Pictures without class folders are the usual mistake: say how many there are.
        loose = sum(p.suffix.lower() in SUFFIXES for p in root.iterdir())
        got, want = f"no sub-folder ({loose} pictures directly in it)", "one sub-folder per class"
        fix = "Sort the pictures into folders named after their classes."
        raise DataError(f"image folder {str(root)!r}", got=got, want=want, fix=fix)
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        try:
            files = (p for p in folder.rglob("*") if not p.name.startswith(".") and p.is_file())
            pictures = sorted(p for p in files if p.suffix.lower() in SUFFIXES)
        except OSError as error:
            want, fix = "a folder that can be read", "Name the folder of the pictures."
            raise DataError(
                f"image folder {str(folder)!r}", got=error, want=want, fix=fix
            ) from error
        paths += pictures
        labels += [label] * len(pictures)
    # labels are positions among the sorted class names
    images = ImageSet(
        name=root.name,
        images=paths,
        labels=np.asarray(labels, dtype=np.int64),
        classes=tuple(folder.name for folder in folders),
        source="folder",
    )
    check_every_class(images)
    return images
