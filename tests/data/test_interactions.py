"""Events, their sessions and splits, and the files they come from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.data.atomic_files import load_interactions, load_parts, read_items
from intarsia.data.interactions import Interactions, check_order, events, seconds_of

from ..refusals import refused

INTER = "user_id:token\titem_id:token\ttimestamp:float\nb\t1\t30\na\t2\t10\na\t1\t5\n"
ITEM = "item_id:token\ttitle:token_seq\tprice:float\n1\tred lamp\t3.5\n2\t\t\n9\tblue lamp\t1\n"


def made(rows: list[tuple[str, str, float]]) -> Interactions:
    return events([(user, item, time, np.nan) for user, item, time in rows])


ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("12345"), st.integers(0, 10**5).map(float)),
    min_size=1,
    max_size=40,
)


@given(ROWS, st.integers(1, 4), st.integers(0, 4))
def test_sessions_are_the_events_in_order_and_no_gap_is_inside(
    rows: list[tuple[str, str, float]], shortest: int, extra: int
) -> None:
    data = made(rows)
    sessions = data.sessions(600, shortest=1, longest=shortest + extra)
    assert sum(map(len, sessions)) == len(data)  # each event is in one
    assert np.array_equal(np.concatenate(list(sessions)), data.items)
    for first, end in sessions.spans:
        assert end - first <= shortest + extra and len(set(data.users[first:end])) == 1
        assert (np.diff(data.times[first:end]) <= 600).all()


@given(ROWS, st.integers(1, 3))
def test_splits_are_parts_and_later_ones_are_later(
    rows: list[tuple[str, str, float]], count: int
) -> None:
    data = made(rows)
    early, late = data.split_by_time(0.7)
    assert len(early) + len(late) == len(data)
    assert not len(late) or early.times.max() <= late.times.min()
    rest, last = data.leave_last(count)
    assert len(rest) + len(last) == len(data)
    check_order(rest, last)
    events_split_off = np.bincount(last.users, minlength=len(data.user_ids))
    assert set(events_split_off) <= {0, count} and (np.bincount(rest.users) > 0).sum() == len(
        data.user_ids
    )


def test_a_test_event_before_training_is_refused() -> None:
    data = made([("a", "1", 5.0), ("a", "2", 9.0)])
    early, late = data.rows(data.times < 7), data.rows(data.times > 7)
    check_order(early, late)
    with refused(DataError, what="test events"):
        check_order(late, early)


def test_cold_items_are_drawn_by_the_seed() -> None:
    data = made([("a", str(i), float(i)) for i in range(20)])
    cold = data.hold_out_items(0.25, seed=1)
    assert cold.sum() == 5 and np.array_equal(cold, data.hold_out_items(0.25, seed=1))
    assert not np.array_equal(cold, data.hold_out_items(0.25, seed=2))


def test_a_folder_of_atomic_files(tmp_path: Path) -> None:
    (tmp_path / "shop.inter").write_text(INTER)
    (tmp_path / "shop.item").write_text(ITEM)
    data = load_interactions(tmp_path)
    assert data.user_ids == ("b", "a") and data.item_ids == ("1", "2", "9")
    assert [data.item_ids[i] for i in data.histories()[1]] == ["1", "2"]  # by time
    assert data.fields["title"].values == (("red", "lamp"), (), ("blue", "lamp"))
    assert np.isnan(data.fields["price"].values[1]) and np.isnan(data.ratings).all()
    assert data.user("a") == 1 and data.popularity().tolist() == [2, 1, 0]
    for name in ("zz", "1"):
        with refused(DataError, what="user", want="one of 2 users, as b, a"):
            data.user(name)


def test_items_without_metadata_have_none(tmp_path: Path) -> None:
    (tmp_path / "shop.inter").write_text(INTER)
    (tmp_path / "shop.item").write_text(ITEM.replace("2\t\t\n", ""))
    data = load_interactions(tmp_path)
    assert data.item_ids == ("1", "9", "2") and data.fields["title"].values[2] == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_where_items_belong_is_refused_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "shop.inter").write_text(INTER)
    os.mkfifo(tmp_path / "shop.item")
    with refused(DataError, what=f"file {tmp_path / 'shop.item'}"):
        load_interactions(tmp_path)


def test_a_csv_file_without_times_is_in_its_own_order(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("user,item,rating\nu,b,5\nu,a,2\n")
    data = load_interactions(file)
    assert [data.item_ids[i] for i in data.items] == ["b", "a"] and len(data.rated(4)) == 1


def test_parts_know_the_same_ids_and_may_not_travel_in_time(tmp_path: Path) -> None:
    head = INTER.partition("\n")[0] + "\n"
    for part, rows in (("train", "a\t1\t5\n"), ("valid", "a\t2\t6\n"), ("test", "b\t3\t1\n")):
        (tmp_path / f"x.{part}.inter").write_text(head + rows)
    train, _, test = load_parts(tmp_path)
    assert train.item_ids == test.item_ids == ("1", "2", "3")
    (tmp_path / "x.test.inter").write_text(head + "a\t3\t1\n")
    with refused(DataError, what="test events"):
        load_parts(tmp_path)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (INTER + "a\t3\n", "2 columns"),
        (INTER + "a\t3\tsoon\n", "'soon'"),
        (INTER + "a\t3\t\n", "no time"),
        (INTER + "\t3\t4\n", "nothing"),
        (INTER.replace(":float", ""), "'timestamp'"),
        (INTER.replace("user_id", "who"), "['who', 'item_id', 'timestamp']"),
        (INTER.partition("\n")[0] + "\n", "no event"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, got: str) -> None:
    (tmp_path / "x.inter").write_text(text)
    with refused(DataError, got=got):
        load_interactions(tmp_path)


def test_other_bad_input(tmp_path: Path) -> None:
    file = tmp_path / "x.item"
    file.write_text(ITEM + "1\tagain\t2\n")
    with refused(DataError, got="item '1', which line 2 has"):
        read_items(file)
    with refused(DataError, got="0 files that end in .inter"):
        load_interactions(tmp_path)
    with refused(
        UnknownName,
        what="unknown interactions (and no folder of that name is here)",
        got="'ml-100'",
    ):
        load_interactions("ml-100")
    with refused(DataError, got="nothing there"):
        load_interactions(tmp_path / "no.csv")
    csv = tmp_path / "log.csv"
    csv.write_text("user,item\na\n")
    with refused(DataError, got="1 columns"):
        load_interactions(csv)
    data = made([("a", "1", 0.0)])
    with refused(DataError, what="sessions", got="1 sessions, all of fewer than 2 events"):
        data.sessions()
    with refused(ConfigError, what="gap", got="'soon'"):
        data.sessions("soon")
    with refused(ConfigError, what="shares", got=(0.9, 0.8)):
        data.split_by_time(0.9, 0.8)
    with refused(DataError, what="items"):
        Interactions(data.users, data.items, data.times, data.ratings, ("a",), ("1", "1"))
    assert seconds_of("1.5h") == 5400 and seconds_of(7) == 7
