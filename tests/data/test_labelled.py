"""Labelled rows: every form is read alike, and what cannot be used is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.core.errors import DataError
from intarsia.core.labelled import is_labelled
from intarsia.data.labelled import load_labelled, read_labelled, read_unlabelled

from ..labelled import texts, write_csv, write_numbers


def forms(folder: Path) -> dict[str, Path]:
    """Return the same texts in each form."""
    rows, labels = texts()
    files = {".csv": write_csv(folder / "a.csv")}
    tabs = [f"{text}\t{label}" for text, label in zip(rows, labels, strict=True)]
    (folder / "a.tsv").write_text("\n".join(["text\tlabel", *tabs]))
    lines = [json.dumps({"text": t, "label": n}) for t, n in zip(rows, labels, strict=True)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    files |= {kind: folder / f"a{kind}" for kind in (".tsv", ".jsonl")}
    semicolons = [f"{text};{label}" for text, label in zip(rows, labels, strict=True)]
    files["semicolons"] = folder / "b.csv"
    files["semicolons"].write_text("\n".join(["text;label", *semicolons]))
    return files


def test_each_form_has_the_same_rows(tmp_path: Path) -> None:
    rows, labels = texts()
    for file in forms(tmp_path).values():
        assert is_labelled(file)
        read = read_labelled(file)["all"]
        assert read.rows == rows
        assert [read.classes[n] for n in read.labels] == labels


def test_parquet_has_the_same_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows, labels = texts()
    parquet.write_table(pa.table({"review": rows, "class": labels}), tmp_path / "a.parquet")
    assert is_labelled(tmp_path / "a.parquet")
    assert read_labelled(tmp_path / "a.parquet")["all"].rows == rows


def test_a_folder_has_a_class_in_each_sub_folder(tmp_path: Path) -> None:
    rows, labels = texts()
    for part in ("train", "test"):
        for i, (text, name) in enumerate(zip(rows, labels, strict=True)):
            place = tmp_path / "published" / part / name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:03}.txt").write_text(text)
    assert is_labelled(tmp_path / "published")
    parts = read_labelled(tmp_path / "published")
    assert parts.keys() == {"train", "test"}
    assert sorted(parts["train"].rows) == sorted(rows)
    assert set(read_labelled(tmp_path / "published" / "train")) == {"all"}


def test_a_published_test_part_is_taken(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "test.csv", each=2)
    for data in (tmp_path, tmp_path / "train.csv"):
        splits = load_labelled(data)
        assert (len(splits.train), len(splits.test), splits.published) == (36, 6, True)


def test_a_fifth_of_each_class_is_the_test_part(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "a.csv", each=15)
    splits = load_labelled(data, seed=1)
    assert np.bincount(splits.test.labels).tolist() == [3, 3, 3]
    again = load_labelled(data, seed=1)
    assert again.test.digest == splits.test.digest != load_labelled(data, seed=2).test.digest
    assert len(load_labelled(data, seed=1, train=12).train) == 12


def test_numbers_come_from_a_table_or_arrays(tmp_path: Path) -> None:
    table = read_labelled(write_numbers(tmp_path / "a.csv"), label="kind")["all"]
    assert table.columns == ("width", "height")
    x, y = np.asarray(table.rows), np.array(table.labels)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    assert is_labelled(tmp_path / "a.npz")
    arrays = read_labelled(tmp_path / "a.npz")["all"]
    assert np.array_equal(arrays.rows, x)
    assert arrays.classes == ("0", "1")


def test_rows_to_classify_are_lines_or_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert read_unlabelled(tmp_path / "a.txt", None, ()) == ["one", "two"]
    write_csv(tmp_path / "a.csv", each=1, columns=("review", "x"))
    assert len(read_unlabelled(tmp_path / "a.csv", None, ())) == 3


PICTURES = "image,label\na.png,x\n"
CHAT = '{"prompt": "a", "response": "b", "label": "c"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", PICTURES), ("a.jsonl", CHAT), ("a.jsonl", '{"text": "a"}\n'), ("a.txt", "text")],
)
def test_other_data_are_not_labelled_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert not is_labelled(tmp_path / name)


def table(*rows: str, head: str = "text,label") -> str:
    return "\n".join([head, *rows])


GOOD = [f"word{i},{'ab'[i % 2]}" for i in range(12)]
BAD: list[tuple[str, dict[str, Any], str]] = [
    (table(*(f"t{i},a" for i in range(12))), {}, "one class, 'a'"),
    (table(*GOOD, "odd,c"), {}, "a single row of 'c'"),
    (table(*GOOD, "odd,c", "even,c"), {}, "2 rows of 'c', want 3 rows"),
    (table(*GOOD[:6]), {}, "rows of"),
    (table(*(f"t{i},{i}.5" for i in range(12))), {}, "regression"),
    (table(*GOOD, ",a"), {}, "no text in row 13"),
    (table(*GOOD, "  ,a"), {}, "no text in row 13"),
    (table(*GOOD, "word,"), {}, "no label in row 13"),
    (table(*GOOD), {"text": "words", "label": "kinds"}, "'words' and 'kinds' not there"),
    (table(*GOOD), {"text": "Text", "label": "lable"}, "Did you mean text and label\\?"),
    (table(*GOOD, head="text,kind"), {}, "--label COLUMN"),
    (table(*GOOD, head="words,label"), {}, "no numbers in 'words'"),
    (table(*GOOD, "a,b,c"), {}, "cells in row 13"),
    ("a,a\n1,2\n", {"label": "a"}, "two columns named 'a'"),
    (table("1,a", ",b", head="x,label"), {}, "1 cells without a number, in 'x'"),
    (table(), {}, "no row"),
]


@pytest.mark.parametrize(("content", "options", "message"), BAD)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, content: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_labelled(tmp_path / "a.csv", **options)


def test_arrays_of_objects_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(DataError, match="arrays x and y"):
        read_labelled(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    with pytest.raises(DataError, match="x"):
        read_labelled(tmp_path / "a.npz")
