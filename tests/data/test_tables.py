"""CSV, Parquet, saved datasets and dataset objects give the same sets as folders."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intarsia.core.errors import DataError, MissingExtra
from intarsia.data.tables import (
    from_dataset,
    has_parquet,
    is_saved_dataset,
    read_datasets,
    read_table,
)

from ..refusals import refused

Make = Callable[..., Path]
Picture = Callable[..., Image.Image]


def _csv(folder: Path, rows: list[str], head: str = "image,label") -> Path:
    file = folder / "index.csv"
    file.write_text("\n".join([head, *rows]) + "\n")
    return file


def test_csv_with_names(make_folder: Make, picture: Picture) -> None:
    folder = make_folder({"x": 4})
    sets = read_table(_csv(folder, ["x/00.png,dog", "x/01.png,cat", "x/03.png,dog"]))
    assert sets["all"].counts() == {"cat": 1, "dog": 2}
    assert sets["all"].image(2).tobytes() == picture(3).tobytes()


def test_csv_with_parts_and_numbers(make_folder: Make) -> None:
    folder = make_folder({"x": 4})
    rows = ["x/00.png,10,train", "x/01.png,9,train", "x/02.png,9,test", "x/03.png,10,test"]
    sets = read_table(_csv(folder, rows, "file_name,label,part"))
    assert sets["train"].classes == ("9", "10")
    assert sets["test"].labels.tolist() == [0, 1]


def test_a_label_of_many_digits(make_folder: Make) -> None:
    make_folder({"x": 4})
    digits = "1" * 5000
    sets = read_table(_csv(make_folder({"y": 2}), [f"y/00.png,{digits}", "y/01.png,2"]))
    assert sorted(sets["all"].classes) == [digits, "2"]


@pytest.mark.parametrize(
    ("head", "rows", "says"),
    [
        ("image,label", ['"x/00.png,a', "x/01.png,b"], "quote that is opened and not closed"),
        ("image,label", ['"x' + "y" * 140_000, "x/01.png,b"], "quote that is opened"),
        ("image,label", ["x/00.png,a", "x" * 5000 + ".png,b"], "too long"),
        ("image,label", ["x/00.png,a", "a\0b.png,b"], "null byte|NUL"),
        ("picture,label", ["a,b"], "columns"),
        ("image,kind", ["a,b"], "columns"),
        ("image,label", [], "an empty table"),
        ("image,label", ["x/00.png,a", "x/01.png,a"], "only a"),
        ("image,label", ["x/00.png,a", "x/09.png,b"], "09.png"),
        ("image,label", ["x/00.png,a", "x/01.png,"], "line 3 .*a row without a picture or a label"),
        ("image,label,part", ["x/00.png,a,fold1", "x/01.png,b,fold1"], "fold1"),
        ("image,label,part", ["x/00.png,a,train", "x/01.png,b,test"], "no picture of b"),
    ],
    ids=[
        "quote",
        "long quote",
        "long name",
        "zero byte",
        "no image",
        "no label",
        "empty",
        "one class",
        "missing file",
        "no label in a row",
        "unknown part",
        "no class",
    ],
)
def test_bad_csv(make_folder: Make, head: str, rows: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_table(_csv(make_folder({"x": 2}), rows, head))


def _table(picture: Picture, n: int = 6) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    columns = {"image": [picture(i) for i in range(n)], "label": [i % 2 for i in range(n)]}
    return datasets.Dataset.from_dict(columns, features=features)


def test_a_saved_dataset_with_splits(tmp_path: Path, picture: Picture) -> None:
    datasets = pytest.importorskip("datasets")
    table = _table(picture)
    parts = {"train": table, "validation": table.select([0, 1]), "test": table.select([2, 3])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert is_saved_dataset(tmp_path / "saved") and not is_saved_dataset(tmp_path)
    sets = read_datasets(tmp_path / "saved")
    assert {k: len(v) for k, v in sets.items()} == {"train": 6, "val": 2, "test": 2}
    assert sets["test"].classes == ("no", "yes")
    assert sets["test"].image(1).tobytes() == picture(3).tobytes()


def test_parquet_and_an_unreadable_cell(tmp_path: Path, picture: Picture) -> None:
    datasets = pytest.importorskip("datasets")
    _table(picture).to_parquet(str(tmp_path / "t.parquet"))
    assert read_datasets(tmp_path / "t.parquet")["all"].counts() == {"no": 3, "yes": 3}
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    cells = [{"bytes": b, "path": None} for b in (buffer.getvalue(), b"junk", buffer.getvalue())]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset.from_dict({"image": cells}, features=features)
    table.add_column("label", ["a", "b", "b"]).to_parquet(str(tmp_path / "u.parquet"))
    with refused(DataError, what="1 of 3 pictures of 'u' cannot be read"):
        read_datasets(tmp_path / "u.parquet")


@pytest.mark.parametrize("label", [[0, None, 1], ["a", None, "b"]])
def test_parquet_rows_without_a_label_or_a_picture(
    tmp_path: Path, picture: Picture, label: list[Any]
) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["a", "b"])
    kind = names if label[0] == 0 else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    pictures: list[Any] = [picture(i) for i in range(3)]
    for columns, says in (
        ({"image": pictures, "label": label}, "line 2 .*without a picture or a label"),
        ({"image": [*pictures[:2], None], "label": [*label[:1], *label[::2]]}, "got no picture"),
    ):
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(str(tmp_path / "t.parquet"))
        with pytest.raises(DataError, match=says):
            read_datasets(tmp_path / "t.parquet")


def test_a_folder_of_parquet_files(tmp_path: Path, picture: Picture) -> None:
    table = _table(picture)
    (tmp_path / "data").mkdir()
    for name, rows in (("train-00000-of-00002", [0, 1]), ("train-00001-of-00002", [2, 3])):
        table.select(rows).to_parquet(str(tmp_path / "data" / f"{name}.parquet"))
    table.select([4, 5]).to_parquet(str(tmp_path / "data" / "validation-00000-of-00001.parquet"))
    assert has_parquet(tmp_path) and not has_parquet(tmp_path / "nowhere")
    sets = read_datasets(tmp_path)
    assert {part: len(images) for part, images in sets.items()} == {"train": 4, "val": 2}
    assert sets["train"].image(3).tobytes() == picture(3).tobytes()


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="Save it again"):
        read_datasets(tmp_path / "t.parquet")


def test_a_folder_that_is_not_a_dataset(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="Save it again"):
        read_datasets(tmp_path)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused(MissingExtra, what="optional dependency 'datasets'"):
        read_datasets(tmp_path)


class _Pairs:
    """A dataset like torchvision's."""

    def __init__(self, items: list[tuple[object, int]], **attributes: object) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.items[index]


def test_a_torchvision_dataset(make_folder: Make) -> None:
    from torchvision.datasets import FakeData, ImageFolder

    folder = make_folder({"cat": 2, "dog": 3})
    images = from_dataset(ImageFolder(str(folder)), name="pets")
    assert images.counts() == {"cat": 2, "dog": 3} and images.source == "ImageFolder"
    fake = from_dataset(FakeData(size=8, image_size=(3, 8, 8), num_classes=2), name="fake")
    assert len(fake) == 8 and fake.classes == ("0", "1")


def test_targets_are_used_before_items_are_decoded(picture: Picture) -> None:
    data = _Pairs([(picture(0), 9), (picture(1), 9)], targets=torch.tensor([1, 0]))
    assert from_dataset(data, name="d").labels.tolist() == [1, 0]


def test_given_class_names_are_preferred(picture: Picture) -> None:
    data = _Pairs([(picture(0), 0), (picture(1), 1)], classes=["x", "y"])
    assert from_dataset(data, name="d", classes=["no", "yes"]).classes == ("no", "yes")


def test_a_dataset_of_tensors_is_refused() -> None:
    data = _Pairs([(torch.zeros(3, 4, 4), i % 2) for i in range(4)])
    with refused(DataError, what="picture 0 of _Pairs", got="Tensor") as caught:
        from_dataset(data, name="d")
    assert "without a transform" in str(caught.value)


def test_labels_that_skip_a_number_are_refused(picture: Picture) -> None:
    data = _Pairs([(picture(0), 0), (picture(1), 2)])
    with refused(DataError, what="labels of 'd'"):
        from_dataset(data, name="d")


def test_numpy_pictures(picture: Picture) -> None:
    data = _Pairs([(np.asarray(picture(i)), i) for i in range(2)])
    assert from_dataset(data, name="d").image(1).tobytes() == picture(1).tobytes()


@pytest.mark.parametrize(
    ("content", 'want'),
    [(b"image,label\na.png\n", "both in every row"), (b"image,label\n,x\n", "both in every row"),
     ("image,label\na.png,\u00e9\n".encode("latin-1"), "UTF-8")],
)  # fmt: skip
def test_errors_in_tables_name_the_line(tmp_path: Path, content: bytes, want: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with refused(DataError, want=want):
        read_table(tmp_path / "t.csv")
