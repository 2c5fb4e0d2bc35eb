"""Rows by key: appended whole, the newest counts, a torn line is no row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.reports.store import Store, key_of


def test_rows_are_there_again_and_the_newest_counts(tmp_path: Path) -> None:
    kept = Store(tmp_path / "deep" / "rows.jsonl")
    kept.add("a", {"x": 1})
    kept.add("b", {"x": 2})
    kept.add("a", {"x": 3})
    again = Store(kept.path)
    assert "a" in again and again["a"]["x"] == 3 and again["b"]["x"] == 2
    assert "c" not in again


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_line_is_skipped_and_the_next_row_stands(tmp_path: Path, cut: int) -> None:
    kept = Store(tmp_path / "rows.jsonl")
    kept.add("a", {"x": 1})
    kept.add("b", {"x": 2})
    whole = kept.path.read_bytes()
    kept.path.write_bytes(whole[:-cut])
    again = Store(kept.path)
    assert "a" in again
    again.add("c", {"x": 3})
    assert {"a", "c"} <= set(Store(kept.path).rows)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), min_size=1))
def test_a_key_depends_on_every_value_and_not_on_their_order(inputs: dict[str, object]) -> None:
    turned = dict(reversed(list(inputs.items())))
    assert key_of(inputs) == key_of(turned) == key_of(json.loads(json.dumps(inputs)))
    first = next(iter(inputs))
    assert key_of(inputs | {first: [inputs[first]]}) != key_of(inputs)
