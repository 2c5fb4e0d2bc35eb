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
    rows = [{"image": one, "labels": cell} for one, cell in both]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_all_forms_give_the_same_rows(tmp_path: Path) -> None:
    lists = [text.split(";") for text in SETS]
    folder = table(tmp_path / "d", list(SETS), "labels.csv").parent
    found = [
        read_data(str(spec))["all"]
        for spec in (
            table(tmp_path / "a", list(SETS)),
            table(tmp_path / "b", [json.dumps(one) for one in lists]),
            jsonl(tmp_path / "c", [*lists]),
            folder,
            jsonl(tmp_path / "e", [*lists], "labels.jsonl").parent,
        )
    ]
    want = [[0, 0, 1], [1, 0, 1], [1, 0, 0], [1, 1, 1]]
    for one in found:
        assert one.classes == ("big", "old", "red") and one.labels.tolist() == want
        assert one.several and one.counts() == {"big": 3, "old": 1, "red": 3}
    assert len({fingerprint(one)["sha256"] for one in found}) == 1
    assert fingerprint(found[0].select([0, 2, 1, 3]))["sha256"] != fingerprint(found[0])["sha256"]


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (["a;b", " ", "a"], "line 3 .*without labels.*at least one"),
        (["a;b", ";", "a"], "line 3 .*without labels"),
        (["a|b", "a", "b"], r"'a\|b', want names with ; between"),
        (["a,b", "a", "b"], "'a,b', want names with ; between.*'label'"),
        (['["a"]', '["b"]', '["a"]'], "one label in every row.*'label'"),
        (["a;a", "a;a", "a;a"], "one label in every row"),
        (['["a", "b"', '["a"]', '["b"]'], "a JSON list of labels"),
        (['["a", ["b"]]', '["a"]', '["b"]'], "names of labels"),
    ],
)
def test_labels_that_cannot_be_told_apart(tmp_path: Path, cells: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_data(str(table(tmp_path, cells)))


def test_one_name_a_row_is_a_class(tmp_path: Path) -> None:
    one = read_data(str(table(tmp_path / "a", ["x", "y", "x"])))["all"]
    assert not one.several and one.labels.tolist() == [0, 1, 0]
    odd = read_data(str(table(tmp_path / "b", ["x;y", "z", "x;y"], column="label")))["all"]
    assert not odd.several and odd.classes == ("x;y", "z")


def test_a_jsonl_file_lists_pictures_if_its_first_row_has_one(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [["a", "b"], ["b"]])
    assert lists_pictures(file) and not is_text(str(file))
    for row in ('{"prompt": "a", "response": "b"}', '{"text": "a", "label": 1, "path": "x"}', "["):
        (tmp_path / "text.jsonl").write_text(row + "\n")
        assert not lists_pictures(tmp_path / "text.jsonl") and is_text(f"{tmp_path}/text.jsonl")
    assert is_text("nowhere.jsonl")
    with pytest.raises(DataError, match="line 3 of .*a JSON object"):
        file.write_text(file.read_text() + "[1]\n")
        read_data(str(file))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=8, max_size=60), st.integers(0, 5), st.data())
def test_a_split_keeps_sets_of_labels_in_proportion(
    codes: list[int], seed: int, data: st.DataObject
) -> None:
    labels = np.array([[code >> bit & 1 for bit in range(3)] for code in codes], dtype=np.int64)
    n = data.draw(st.integers(1, len(codes) - 1))
    chosen, rest = stratified(labels, n, seed=seed, classes=("a", "b", "c"))
    assert len(chosen) == n and sorted([*chosen, *rest]) == list(range(len(codes)))
    if (by := strata(labels, n)) is not None:
        for group in np.unique(by):
            wanted = n * (by == group).sum() / len(by)
            assert abs((by[chosen] == group).sum() - wanted) < 1.5


def test_splits_say_when_sets_are_too_many(tmp_path: Path) -> None:
    told: list[str] = []
    few = table(tmp_path / "a", [SETS[i % 3] for i in range(30)])
    splits = load_data(str(few), progress=told.append)
    assert splits.record["several_labels"] and splits.record["drawn_plainly"] == [] and not told
    assert len(splits.train) + len(splits.test) == 30 - len(splits.val or ())
    cells = [";".join(f"l{b}" for b in range(5) if i >> b & 1 or b == 4) for i in range(16)]
    many = table(tmp_path / "b", cells)
    splits = load_data(str(many), progress=told.append, test=3, val=0)
    assert splits.record["drawn_plainly"] == ["test"] and "at random" in told[0]
    assert len(load_data(str(few), fraction=0.5, progress=told.append).train) in (10, 11)
    with pytest.raises(ConfigError, match="several labels a picture"):
        load_data(str(few), shots=2)
    with pytest.raises(ConfigError, match="between 1 and"):
        load_data(str(few), test=30)


def test_rows_reach_the_tensors() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    images = np.zeros((3, 4, 4), np.uint8)
    found = ImageSet("x", images, labels, ("a", "b"))

    def look(_: Image.Image) -> torch.Tensor:
        return torch.zeros(3, 4, 4)

    assert tensors(found, look).tensors[1].tolist() == labels.tolist()
    assert Prepared(found, look)[1][1].tolist() == [1, 1] and found[0][1].tolist() == [1, 0]
    for bad in (labels * 2, labels[:, :1], labels.astype(float)):
        with pytest.raises(DataError, match="labels of 'x'"):
            ImageSet("x", images, bad, ("a", "b"))
