"""Events by the names that shops give their columns, in any table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.data.atomic_files import load_interactions
from intarsia.data.event_columns import find_columns, parse_columns, seconds_scale
from intarsia.data.interactions import Interactions, as_interactions

from ..refusals import refused

# header, cells of one event, seconds; the user is always "7", the item "50"
SHOPS = {
    "movielens": ("userId,movieId,rating,timestamp", "7,50,4.5,964982703", 964982703, 4.5),
    "amazon 2023": (
        "user_id,parent_asin,asin,rating,timestamp", "7,50,51,5.0,1588687728923", 1588687728.923, 5
    ),
    "amazon 2014": ("reviewerID,asin,overall,unixReviewTime", "7,50,2.0,1382659200", 1382659200, 2),
    "retailrocket": (
        "timestamp,visitorid,event,itemid,transactionid",
        *("1433221332117,7,view,50,", 1433221332.117, np.nan),
    ),
    "shouted": ("USER-ID,ITEM ID", "7,50", 0, np.nan),
    "dates": ("customer_id,product_id,date", "7,50,2024-05-01 12:00", 1714564800, np.nan),
}  # fmt: skip


def _one(data: Interactions) -> tuple[str, str, float, float]:
    assert len(data) == 1
    row = (data.user_ids[0], data.item_ids[0], float(data.times[0]), float(data.ratings[0]))
    return row


@pytest.mark.parametrize("divider", [",", "\t", ";", "|"])
@pytest.mark.parametrize("shop", SHOPS)
def test_a_shop_s_table_is_read_as_it_comes(tmp_path: Path, shop: str, divider: str) -> None:
    header, cells, seconds, rating = SHOPS[shop]
    path = tmp_path / ("events.csv" if divider in ",;" else "events.tsv")
    path.write_text("\ufeff" + f"{header}\n{cells}\n".replace(",", divider), encoding="utf-8")
    user, item, time, score = _one(load_interactions(path))
    assert (user, item, time) == ("7", "50", pytest.approx(seconds))
    assert score == pytest.approx(rating, nan_ok=True)


def test_jsonl_and_parquet_are_read_alike(tmp_path: Path) -> None:
    rows = [{"user_id": f"u{i % 2}", "parent_asin": f"B{i}", "timestamp": 1.6e12 + 1000 * i,
             "rating": 4.0, "text": "fine"} for i in range(4)]  # fmt: skip
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_interactions(path)
    assert data.item_ids == ("B0", "B1", "B2", "B3") and data.times.max() == 1.6e9 + 3
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(rows)
    frame.to_parquet(tmp_path / "reviews.parquet")
    for other in (load_interactions(tmp_path / "reviews.parquet"), as_interactions(frame)):
        assert other.item_ids == data.item_ids and other.user_ids == data.user_ids
        np.testing.assert_array_equal(other.times, data.times)
        np.testing.assert_array_equal(other.ratings, data.ratings)


def test_a_sparse_matrix_of_users_by_items_is_events() -> None:
    matrix = sparse.csr_array(([5.0, 3.0, 4.0], ([0, 0, 2], [1, 4, 1])), shape=(3, 6))
    data = as_interactions(matrix)
    assert (data.user_ids, data.item_ids) == (("0", "2"), ("1", "4"))
    assert sorted(zip(data.users.tolist(), data.items.tolist(), data.ratings, strict=True)) == [
        (0, 0, 5), (0, 1, 3), (1, 0, 4),
    ]  # fmt: skip


def test_all_missing_columns_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("kunde;ware;wann\na;b;3\n")
    with refused(DataError, got="['kunde', 'ware', 'wann']") as caught:
        load_interactions(path)
    words = str(caught.value)
    assert "of the user (userId" in words and "of the item (itemId" in words
    assert "--columns user=NAME,item=NAME" in words
    named = parse_columns("user=kunde, item=ware,time=wann")
    assert _one(load_interactions(path, named)) == (
        "a",
        "b",
        3.0,
        pytest.approx(np.nan, nan_ok=True),
    )
    with refused(DataError, want="a column of the item ('sku')"):
        load_interactions(path, {"user": "kunde", "item": "sku"})


def test_bad_input(tmp_path: Path) -> None:
    with refused(UnknownName, what="unknown kind of column"):
        parse_columns("usr=a")
    with refused(ConfigError, what="--columns"):
        parse_columns("user")
    assert parse_columns(None) == {}
    path = tmp_path / "log.csv"
    path.write_text("user,item,date\na,b,2024-13-01\n")
    with refused(DataError, got="'2024-13-01'"):
        load_interactions(path)
    with refused(DataError, what="line 3 of " + str(path), got="2 columns"):
        path.write_text("user,item,date\na,b,1\na,b\n")
        load_interactions(path)


def test_a_better_name_wins_and_scales_are_powers_of_ten() -> None:
    found = find_columns(["asin", "parent_asin", "userid", "user"], "x")
    assert found == {"user": "userid", "item": "parent_asin"}
    now = 1.76e9
    for scale in (1.0, 1e-3, 1e-6, 1e-9):
        assert seconds_scale(now / scale) == scale
    assert seconds_scale(float("nan")) == 1
