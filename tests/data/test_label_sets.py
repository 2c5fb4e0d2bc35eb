"""Several labels a picture: read from tables and folders, split, and kept in proportion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from intarsia.core.errors import ConfigError, DataError
from intarsia.core.pictured import lists_pictures
from intarsia.data import ImageSet, load_data
from intarsia.data.corpora import is_text
from intarsia.data.fingerprints import fingerprint
from intarsia.data.images import stratified
from intarsia.data.label_sets import strata
from intarsia.data.loaders import Prepared, tensors
from intarsia.data.splits import read_data

from ..refusals import refused

SETS = ("red", "red;big", "big", "red;big;old")


def pictures(folder: Path, n: int = 8) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return [f"{i}.png" for i in range(n)]


def table(folder: Path, cells: list[str], name: str = "t.csv", column: str = "labels") -> Path:
    names = pictures(folder, len(cells))
    quoted = [cell.replace('"', '""') for cell in cells]
    rows = [f'{name},"{cell}"' for name, cell in zip(names, quoted, strict=True)]
    (folder / name).write_text("\n".join([f"image,{column}", *rows, ""]))
    return folder / name


def jsonl(folder: Path, cells: list[object], name: str = "t.jsonl") -> Path:
    both = zip(pictures(folder, len(cells)), cells, strict=True)
    rows = [{"image": image, "labels": cell} for image, cell in both]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_all_forms_give_the_same_rows(tmp_path: Path) -> None:
    lists = [text.split(";") for text in SETS]
    folder = table(tmp_path / "d", list(SETS), "labels.csv").parent
    sets = [
        read_data(str(spec))["all"]
        for spec in (
            table(tmp_path / "a", list(SETS)),
            table(tmp_path / "b", [json.dumps(item) for item in lists]),
            jsonl(tmp_path / "c", [*lists]),
            folder,
            jsonl(tmp_path / "e", [*lists], "labels.jsonl").parent,
        )
    ]
    want = [[0, 0, 1], [1, 0, 1], [1, 0, 0], [1, 1, 1]]
    for item in sets:
        assert item.classes == ("big", "old", "red") and item.labels.tolist() == want
        assert item.several and item.counts() == {"big": 3, "old": 1, "red": 3}
    assert len({fingerprint(item)["sha256"] for item in sets}) == 1
    assert fingerprint(sets[0].select([0, 2, 1, 3]))["sha256"] != fingerprint(sets[0])["sha256"]


@pytest.mark.parametrize(
    ("cells", "got"),
    [
        (["a;b", " ", "a"], "a row without labels"),
        (["a;b", ";", "a"], "a row without labels"),
        (["a|b", "a", "b"], "'a|b'"),
        (["a,b", "a", "b"], "'a,b'"),
        (['["a"]', '["b"]', '["a"]'], "one label in every row"),
        (["a;a", "a;a", "a;a"], "one label in every row"),
        (['["a", "b"', '["a"]', '["b"]'], '["a", "b"'),
        (['["a", ["b"]]', '["a"]', '["b"]'], "['a', ['b']]"),
    ],
)
def test_labels_that_cannot_be_told_apart(tmp_path: Path, cells: list[str], got: str) -> None:
    with refused(DataError, got=got):
        read_data(str(table(tmp_path, cells)))


def test_one_name_a_row_is_a_class(tmp_path: Path) -> None:
    single = read_data(str(table(tmp_path / "a", ["x", "y", "x"])))["all"]
    assert not single.several and single.labels.tolist() == [0, 1, 0]
    odd = read_data(str(table(tmp_path / "b", ["x;y", "z", "x;y"], column="label")))["all"]
    assert not odd.several and odd.classes == ("x;y", "z")


def test_a_jsonl_file_lists_pictures_if_its_first_row_has_one(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [["a", "b"], ["b"]])
    assert lists_pictures(file) and not is_text(str(file))
    for row in ('{"prompt": "a", "response": "b"}', '{"text": "a", "label": 1, "path": "x"}', "["):
        (tmp_path / "text.jsonl").write_text(row + "\n")
        assert not lists_pictures(tmp_path / "text.jsonl") and is_text(f"{tmp_path}/text.jsonl")
    assert is_text("nowhere.jsonl")
    with refused(DataError, got="[1]"):
        file.write_text(file.read_text() + "[1]\n")
        read_data(str(file))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=8, max_size=60), st.integers(0, 5), st.data())
def test_a_split_keeps_sets_of_labels_in_proportion(
    codes: list[int], seed: int, data: st.DataObject
) -> None:
    labels = np.array([[code >> bit & 1 for bit in range(3)] for code in codes], dtype=np.int64)
    n = data.draw(st.integers(1, len(codes) - 1))
    selected, rest = stratified(labels, n, seed=seed, classes=("a", "b", "c"))
    assert len(selected) == n and sorted([*selected, *rest]) == list(range(len(codes)))
    if (groups := strata(labels, n)) is not None:
        for group in np.unique(groups):
            exact = n * (groups == group).sum() / len(groups)
            assert abs((groups[selected] == group).sum() - exact) < 1.5


def test_splits_say_when_sets_are_too_many(tmp_path: Path) -> None:
    lines: list[str] = []
    few_sets = table(tmp_path / "a", [SETS[i % 3] for i in range(30)])
    splits = load_data(str(few_sets), progress=lines.append)
    assert splits.record["several_labels"] and splits.record["drawn_plainly"] == [] and not lines
    assert len(splits.train) + len(splits.test) == 30 - len(splits.val or ())
    cells = [";".join(f"l{b}" for b in range(5) if i >> b & 1 or b == 4) for i in range(16)]
    many_sets = table(tmp_path / "b", cells)
    splits = load_data(str(many_sets), progress=lines.append, test=3, val=0)
    assert splits.record["drawn_plainly"] == ["test"] and "at random" in lines[0]
    assert len(load_data(str(few_sets), fraction=0.5, progress=lines.append).train) in (10, 11)
    with refused(ConfigError, what="shots of 't'"):
        load_data(str(few_sets), shots=2)
    with refused(ConfigError, what="size of a split"):
        load_data(str(few_sets), test=30)


def test_rows_reach_the_tensors() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    images = np.zeros((3, 4, 4), np.uint8)
    image_set = ImageSet("x", images, labels, ("a", "b"))

    def look(_: Image.Image) -> torch.Tensor:
        return torch.zeros(3, 4, 4)

    assert tensors(image_set, look).tensors[1].tolist() == labels.tolist()
    assert Prepared(image_set, look)[1][1].tolist() == [1, 1] and image_set[0][1].tolist() == [1, 0]
    for bad in (labels * 2, labels[:, :1], labels.astype(float)):
        with refused(DataError, what="labels of 'x'"):
            ImageSet("x", images, bad, ("a", "b"))
