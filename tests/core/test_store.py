"""Records by key: appended whole, the newest counts, other code is stale; tensors are whole."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import AssetError
from intarsia.core.store import Store, key_of


def test_rows_are_there_again_and_the_newest_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep", "rows.jsonl")
    store.add("a", {"x": 1})
    store.add("b", {"x": 2})
    store.add("a", {"x": 3})
    again = Store(store.folder, store.path.name)
    assert "a" in again and again["a"]["x"] == 3 and again["b"]["x"] == 2
    assert "c" not in again


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_line_is_skipped_and_the_next_row_stands(tmp_path: Path, cut: int) -> None:
    store = Store(tmp_path, "rows.jsonl")
    store.add("a", {"x": 1})
    store.add("b", {"x": 2})
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-cut])
    again = Store(store.folder, store.path.name)
    assert "a" in again
    again.add("c", {"x": 3})
    assert {"a", "c"} <= set(Store(store.folder, store.path.name).rows)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), min_size=1))
def test_a_key_depends_on_every_value_and_not_on_their_order(inputs: dict[str, object]) -> None:
    turned = dict(reversed(list(inputs.items())))
    assert key_of(inputs) == key_of(turned) == key_of(json.loads(json.dumps(inputs)))
    first = next(iter(inputs))
    assert key_of(inputs | {first: [inputs[first]]}) != key_of(inputs)


def test_a_record_is_computed_once_for_its_inputs_and_its_code(tmp_path: Path) -> None:
    runs: list[str] = []

    def compute() -> tuple[float, ...]:
        runs.append("run")
        return (1.5, 2.5)

    first = Store(tmp_path, code="a")
    assert first.record({"seed": 0}, compute) == [
        1.5,
        2.5,
    ]  # as JSON has it
    assert Store(tmp_path, code="a").record({"seed": 0}, compute) == [1.5, 2.5]
    assert len(runs) == 1
    Store(tmp_path, code="a").record({"seed": 1}, compute)
    assert len(runs) == 2


def test_a_record_of_other_code_is_stale_and_is_never_returned(tmp_path: Path) -> None:
    Store(tmp_path, code="before").record({"seed": (0, 1)}, lambda: "old")
    now = Store(tmp_path, code="now")
    assert now.stale({"seed": (0, 1)}) and not now.stale({"seed": 2})
    assert now.record({"seed": (0, 1)}, lambda: "new") == "new"
    assert not now.stale({"seed": (0, 1)})


def test_an_error_leaves_no_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.record({}, lambda: 1 / 0)
    assert store.record({}, lambda: 2) == 2


def test_two_that_ask_at_once_compute_once(tmp_path: Path) -> None:
    runs: list[int] = []

    def compute() -> int:
        runs.append(1)
        time.sleep(0.2)
        return 3

    def ask() -> None:
        answers.append(Store(tmp_path).record({"x": 1}, compute))

    answers: list[int] = []
    both = [threading.Thread(target=ask) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert answers == [3, 3] and len(runs) == 1


def test_tensors_are_computed_once_and_come_with_their_facts(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep")
    entry = {"x": torch.arange(6).view(2, 3).T}, {"classes": ["a", "b"]}
    for compute in (lambda: entry, lambda: ({}, {})):
        tensors, facts = store.tensors("rows-1", compute)
        assert tensors["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
        assert facts == {"classes": ["a", "b"]}


def test_damaged_tensors_are_refused_by_their_file(tmp_path: Path) -> None:
    (tmp_path / "rows.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AssetError):
        Store(tmp_path).tensors("rows", lambda: ({}, {}))
