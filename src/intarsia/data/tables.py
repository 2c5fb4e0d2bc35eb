"""Image sets from tables and dataset objects: CSV, Parquet, Hugging Face `datasets`, torchvision.

A CSV or .jsonl file has the columns `image` (or `file_name`; paths relative to the file), `label`
and optionally `part`. Several labels a picture stand in `labels`, as a;b or as a JSON list. Such a
file may stand in the folder of its pictures as `labels.csv` or `labels.jsonl`.
Parquet files and folders of `Dataset.save_to_disk` are read with the `datasets` package
(pip install 'intarsia[hf]').
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intarsia.core.errors import DataError, MissingExtra, some_of
from intarsia.core.files import parse_json
from intarsia.core.pictured import IMAGE_COLUMNS, LABEL_COLUMNS
from intarsia.core.reading import check_regular, read_lines, read_text
from intarsia.data.decode import LazyPictures, Picture
from intarsia.data.folders import check_same_classes
from intarsia.data.images import ImageSet, OnError, check_every_class, verify
from intarsia.data.label_sets import has_several, label_sets, rows_of
from intarsia.data.packages import cache_dir

from ..train.order import classes_of

LABELS = ("labels.csv", "labels.jsonl")  # in a folder of pictures
_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def labels_file(path: Path) -> Path | None:
    """Return the table at a path: a .csv, a .jsonl, or a folder's labels file; None if none is."""
    if path.is_file():
        return path if path.suffix.lower() in (".csv", ".jsonl") else None
    return next((path / name for name in LABELS if (path / name).is_file()), None)


def has_parquet(folder: Path) -> bool:
    """Decide whether a folder holds Parquet files, like a dataset downloaded from the Hub."""
    return any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))


def is_saved_dataset(folder: Path) -> bool:
    """Decide whether a folder was written by `datasets.Dataset.save_to_disk` (or `DatasetDict`)."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_table(file: Path, *, on_error: OnError = "raise") -> dict[str, ImageSet]:
    """Return the sets of a CSV or .jsonl file: `all`, or one for each value of its `part` column.

    file: with a column of paths of pictures and one of labels. on_error: "skip" leaves unreadable
    pictures out.
    Raises: DataError for missing columns, an empty table, a row without a picture or a label,
    labels in an unclear form (see `label_sets`), unreadable pictures (see `verify`).
    """
    lines, names, rows = (_read_jsonl if file.suffix.lower() == ".jsonl" else _read_csv)(file)
    image = _find_column(names, IMAGE_COLUMNS, file.name)
    label = _find_column(names, LABEL_COLUMNS, file.name)
    # Every row is checked before any picture is decoded.
    for number, row in zip(lines, rows, strict=True):
        if not isinstance(row.get(image), str) or not row[image] or row.get(label) is None:
            raise _incomplete_row(number, file)
    cells = [row[label] for row in rows]
    several = has_several(label, cells, file)
    for number, cell in zip(lines, cells, strict=True):
        if not (several or str(cell).strip()):
            raise _incomplete_row(number, file)
    label_names = label_sets(cells, file, lines) if several else [(str(cell),) for cell in cells]
    classes = sorted({name for names in label_names for name in names})
    # Names that are numbers are sorted as such: class 10 comes after class 9.
    if all(name.isdecimal() and len(name) < 19 for name in classes):
        classes.sort(key=int)
    labels = rows_of(label_names, classes)
    parts: dict[str, list[int]] = {}
    # rows without a part are of a single set
    for i, row in enumerate(rows):
        part = str(row.get("part") or "all")
        parts.setdefault(_PARTS.get(part, part), []).append(i)
    sets = {}
    for part, positions in parts.items():
        part_labels = labels[positions] if several else labels[positions].argmax(1)
        paths = [file.parent / rows[i][image] for i in positions]
        name = file.parent.name if file.name in LABELS else file.stem
        sets[part] = ImageSet(
            name, paths, part_labels, tuple(classes), source=file.suffix[1:].lower()
        )
    return _check_parts(sets, file, on_error)


def _incomplete_row(line: int, file: Path) -> DataError:
    got, want = "a row without a picture or a label", "both in every row"
    fix = "Complete the row, or delete it."
    return DataError(f"line {line} of {file}", got=got, want=want, fix=fix)


Rows = tuple[list[int], Sequence[str], list[dict[str, Any]]]


def _read_csv(file: Path) -> Rows:
    """Read a CSV file: the numbers of its lines, the column names, the rows.  Raises: DataError."""
    try:
        reader = csv.DictReader(read_lines(file, "utf-8-sig", newline=""), strict=True)
        names = list(reader.fieldnames or ())
        rows: list[dict[str, Any]] = list(reader)
    except UnicodeDecodeError as error:
        fix = "Save the file as UTF-8."
        raise DataError(f"table {file}", got=error, want="UTF-8", fix=fix) from error
    except (OSError, csv.Error) as error:
        fix = "Look for a quote that is opened and not closed, or save the table again."
        raise DataError(f"table {file}", got=error, want="a CSV file", fix=fix) from error
    return list(range(2, len(rows) + 2)), names, rows


def _read_jsonl(file: Path) -> Rows:
    """Read a .jsonl file: the numbers of its lines, the column names of the first row, the rows."""
    try:
        text = read_text(file, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"table {file}", got=error, want="UTF-8", fix="Save it again.") from error
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            got, fix = str(error), "Write one JSON object a line."
            want = "a JSON object"
            raise DataError(f"line {number} of {file}", got=got, want=want, fix=fix) from error
        if not isinstance(row, dict):
            fix = 'For example: {"image": "a.png", "labels": ["cat", "dog"]}'
            raise DataError(f"line {number} of {file}", got=line, want="a JSON object", fix=fix)
        numbers.append(number)
        rows.append(row)
    return numbers, list(rows[0]) if rows else (), rows


def read_datasets(path: Path, *, on_error: OnError = "raise") -> dict[str, ImageSet]:
    """Return the sets of a saved Hugging Face dataset, a Parquet file, or a folder of those.

    path: of it; in a folder, `train-00000-of-00002.parquet` belongs to the part `train`. on_error:
    "skip" leaves unreadable pictures out.
    Raises: MissingExtra without the `datasets` package; DataError for missing columns or unreadable
    pictures.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetGenerationError
    except ImportError as error:
        raise MissingExtra("datasets", "hf") from error
    try:
        check_regular(path)
        if is_saved_dataset(path):
            loaded = datasets.load_from_disk(str(path))
        else:
            cache = str(cache_dir() / "datasets")
            loaded = {
                part: datasets.Dataset.from_parquet(files, cache_dir=cache)
                for part, files in _parquet_files(path).items()
            }
    except (OSError, ValueError, DatasetGenerationError) as error:
        want = "a folder of save_to_disk, or Parquet files"
        fix = "Save it again."
        raise DataError(f"dataset {str(path)!r}", got=error, want=want, fix=fix) from error
    # A DatasetDict has a table for each part.
    tables = loaded if isinstance(loaded, dict) else {"all": loaded}
    named = {str(part): table for part, table in tables.items()}
    sets = {_PARTS.get(k, k): _table_set(table, path.stem) for k, table in named.items()}
    return _check_parts(sets, path, on_error)


def from_dataset(
    dataset: Any, *, name: str, classes: Sequence[str] | None = None, on_error: OnError = "raise"
) -> ImageSet:
    """Wrap a map-style dataset of (picture, label), such as torchvision's, without copying it.

    dataset: labels are read from its `targets` or `labels` if it has them. name: of the set.
    classes: names, None = the dataset's. on_error: "skip" leaves unreadable pictures out.
    Raises: DataError when its pictures are tensors (a transform is set) or cannot be read.
    """
    named = (getattr(dataset, name, None) for name in ("targets", "labels"))
    targets = next((labels for labels in named if labels is not None), None)
    # Without a list of labels each item must be read once.
    if targets is None:
        targets = [dataset[i][1] for i in range(len(dataset))]
    labels = np.asarray(targets)
    class_names = classes or classes_of(dataset)
    count = labels.shape[1] if labels.ndim == 2 else len(set(labels.ravel().tolist()))
    class_names = class_names or [str(i) for i in range(count)]
    pictures = LazyPictures(len(dataset), partial(_dataset_picture, dataset))
    images = ImageSet(name, pictures, labels, tuple(class_names), source=type(dataset).__name__)
    check_every_class(images)
    return verify(images, on_error=on_error)


def _dataset_picture(dataset: Any, index: int) -> Picture:
    picture = dataset[index][0]
    if isinstance(picture, Image.Image | np.ndarray | Path | bytes):
        return picture
    subject, got = f"picture {index} of {type(dataset).__name__}", type(picture).__name__
    fix = "Make the dataset without a transform: the model's own is applied later."
    raise DataError(subject, got=got, want="a Pillow image or a numpy array", fix=fix)


def _table_picture(table: Any, column: str, index: int) -> Picture:
    """Return the undecoded picture of a row: the bytes of a file, or a path."""
    cell = table[index][column]
    if cell is None:
        subject, fix = f"row {index + 1}", "Complete the row, or delete it."
        raise DataError(subject, got="no picture", want="one in every row", fix=fix)
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])


def _parquet_files(path: Path) -> dict[str, list[Any]]:
    """Group Parquet files by part, the text before the first hyphen of a file's name."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    parts: dict[str, list[Any]] = {}
    for file in files:
        part = file.stem.partition("-")[0]
        parts.setdefault(part if part in _PARTS else "all", []).append(str(file))
    return parts


def _table_set(table: Any, name: str) -> ImageSet:
    import datasets

    image = _find_column(table.column_names, IMAGE_COLUMNS, name)
    label = _find_column(table.column_names, LABEL_COLUMNS, name)
    values = list(table[label])
    feature = table.features[label]
    if None in values:
        raise _incomplete_row(values.index(None) + 1, Path(name))
    if has_several(label, values, Path(name)):
        label_names = label_sets(values, Path(name), range(1, len(values) + 1))
        inner: Any = getattr(feature, "feature", None)
        # Lists of class numbers have their names in the feature.
        if isinstance(inner, datasets.ClassLabel):
            class_names = list(inner.names)
            label_names = [tuple(class_names[int(i)] for i in names) for names in label_names]
        else:
            class_names = sorted({label_name for names in label_names for label_name in names})
        pictures = _lazy_pictures(table, image)
        return ImageSet(
            name, pictures, rows_of(label_names, class_names), tuple(class_names), source="datasets"
        )
    if isinstance(feature, datasets.ClassLabel):
        classes, labels = list(feature.names), values
    else:
        classes = sorted(set(values))
        labels = [classes.index(v) for v in values]
    pictures = _lazy_pictures(table, image)
    ids = np.asarray(labels, dtype=np.int64)
    return ImageSet(name, pictures, ids, tuple(str(c) for c in classes), source="datasets")


def _lazy_pictures(table: Any, image: str) -> LazyPictures:
    """Return the pictures of a column, read on access and not decoded."""
    import datasets

    undecoded = table.cast_column(image, datasets.Image(decode=False))
    return LazyPictures(len(table), partial(_table_picture, undecoded, image))


def _check_parts(sets: dict[str, ImageSet], path: Path, on_error: OnError) -> dict[str, ImageSet]:
    """Check names and classes of the parts of a data set, and decode every picture once."""
    unknown = set(sets) - {"all", "train", "val", "test"}
    if not sets or unknown or ("all" in sets and len(sets) > 1):
        subject, got = f"parts of {path.name}", ", ".join(sorted(sets)) or "an empty table"
        fix = "Correct the part column, or name the splits train, val and test."
        raise DataError(subject, got=got, want="train with val or test, or no parts", fix=fix)
    check_same_classes(sets)
    for images in sets.values():
        check_every_class(images)
    return {part: verify(images, on_error=on_error) for part, images in sets.items()}


def _find_column(columns: Sequence[str], allowed: Sequence[str], name: str) -> str:
    for column in allowed:
        if column in columns:
            return column
    want, fix = f"one of {list(allowed)}", "Rename the column."
    raise DataError(f"columns of {name}", got=some_of(columns), want=want, fix=fix)
