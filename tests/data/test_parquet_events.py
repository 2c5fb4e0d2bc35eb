"""Events from Parquet are those of the same rows in CSV, however they are cut into blocks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.core.errors import DataError
from intarsia.data import parquet_events
from intarsia.data.atomic_files import load_interactions
from intarsia.data.interactions import Interactions, events

from ..refusals import refused

pa = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")
ROWS = [
    *[("u1", "b", 30.0, 4.0), ("u2", "a", 10.0, None), ("u1", "c", 5.0, 1.0)],
    *[("u3", "b", 5.0, None), ("u1", "b", 31.0, 5.0), ("u2", "d", 11.0, 2.5)],
]


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def columns_of(rows: list[Any]) -> dict[str, Any]:
    user, item, time, rating = zip(*rows, strict=True)
    return {"user_id": user, "item_id": item, "timestamp": time, "rating": rating}


def same(one: Interactions, other: Interactions) -> None:
    assert one.user_ids == other.user_ids and one.item_ids == other.item_ids
    for name in ("users", "items", "times", "ratings"):
        assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)


@pytest.mark.parametrize("block", [1, 4, 100])
def test_parquet_is_what_csv_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(parquet_events, "ROWS", block)
    with (tmp_path / "a.csv").open("w", newline="") as out:
        rows = [[*row[:3], "" if row[3] is None else row[3]] for row in ROWS]
        csv.writer(out).writerows([["user", "item", "time", "rating"], *rows])
    whole = load_interactions(tmp_path / "a.csv")
    same(load_interactions(write(tmp_path / "a.parquet", **columns_of(ROWS))), whole)
    folder = tmp_path / "shop"  # several files, and what is known of items
    folder.mkdir()
    for part in (0, 1):
        write(folder / f"part-{part}.parquet", **columns_of(ROWS[4 * part : 4 * part + 4]))
    (folder / "shop.item").write_text("item_id:token\tcolour:token\na\tred\nz\tblue\n")
    found = load_interactions(folder)
    assert found.item_ids == ("a", "z", "b", "c", "d") and len(found) == len(whole)
    assert found.fields["colour"].values == (("red",), ("blue",), (), (), ())
    ids = [whole.item_ids[i] for i in whole.items]
    assert [found.item_ids[i] for i in found.items] == ids


def test_timestamps_are_seconds_and_without_times_rows_are_in_order(tmp_path: Path) -> None:
    when = np.array(["1970-01-01T00:00:10.5", "1970-01-01T00:00:02"], "datetime64[ms]")
    found = load_interactions(write(tmp_path / "a.parquet", user=[1, 1], item=[7, 8], time=when))
    assert found.times.tolist() == [2.0, 10.5] and found.item_ids == ("7", "8")
    for part in ("b", "c"):
        write(tmp_path / f"{part}.parquet", user=["u"], item=[part])
    (tmp_path / "a.parquet").unlink()
    assert load_interactions(tmp_path).times.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        ({"user": ["a", None], "item": ["x", "y"]}, "nothing"),
        ({"user": ["a"], "thing": ["x"]}, "['user', 'thing']"),
        ({"user": ["a", "b"], "item": ["x", "y"], "time": [1.0, None]}, "no time"),
        (
            {"user": ["a"], "item": ["x"], "time": ["soon"]},
            "ArrowInvalid: Failed to parse string: 'soon' as a scalar of type double",
        ),
        (
            {"user": pa.array([], pa.string()), "item": pa.array([], pa.string())},
            "no event in 1 files",
        ),
    ],
)
def test_rows_that_cannot_be_read_are_named(
    tmp_path: Path, columns: dict[str, Any], got: str
) -> None:
    with refused(DataError, got=got):
        load_interactions(write(tmp_path / "a.parquet", **columns))


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("user,item\n")
    with pytest.raises(DataError, match="want a Parquet file"):
        load_interactions(tmp_path / "a.parquet")


def spans_naive(data: Interactions, gap: float, shortest: int, longest: int) -> list[Any]:
    """Event by event."""
    starts: list[int] = []
    for i in range(len(data)):
        new = i == 0 or data.users[i] != data.users[i - 1]
        if new or data.times[i] - data.times[i - 1] > gap or i - starts[-1] >= longest:
            starts.append(i)
    spans = zip(starts, [*starts[1:], len(data)], strict=True)
    return [(a, b) for a, b in spans if b - a >= shortest]


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), min_size=1, max_size=30),
    st.integers(1, 5),
)
def test_sessions_are_those_of_the_definition(rows: list[tuple[str, int]], longest: int) -> None:
    data = events([(user, "x", float(time), 1.0) for user, time in rows])
    found = data.sessions(3, shortest=1, longest=longest)
    assert list(found.spans) == spans_naive(data, 3, 1, longest)
