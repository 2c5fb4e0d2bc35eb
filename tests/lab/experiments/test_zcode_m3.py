"""Z-code M3 in their smallest form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from intarsia.data.small_models import SmallModel
from intarsia.train.order import Order
from intarsia_lab.experiments import zcode_m3
from intarsia_lab.materials import routing_traces
from intarsia_lab.routing import kinds_of_text
from intarsia_lab.routing.kinds_of_text import TextKinds

from ...toys import quiet

WORDS = "The cat sat on 12 mats, and Tom ran.\n" * 400


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    texts = {"a": WORDS, "b": WORDS.upper()}
    monkeypatch.setattr(routing_traces, "texts", lambda: texts)
    monkeypatch.setattr(kinds_of_text, "SHAPE", SmallModel(8, 2, 2, 8))
    kinds_of_text.kinds.cache_clear()
    yield
    kinds_of_text.kinds.cache_clear()


def test_a_batch_stands_kind_by_kind_and_has_the_same_rows_in_any_order() -> None:
    rows = {name: torch.arange(30)[:, None] + 100 * i for i, name in enumerate("ab")}
    texts = TextKinds(rows, rows)
    met: list[list[list[int]]] = []
    for order in ("ab", "ba"):
        laid = texts.stream(list(order), 3, 2, 5).tensors[0][:, 0]
        batches = Order(len(laid), kinds_of_text.BATCH, 5).epoch(0)
        met.append([laid[torch.tensor(b)].tolist() for b in batches])
    half = kinds_of_text.BATCH // 2
    for first, second in zip(*met, strict=True):
        assert max(first[:half]) < 100 <= min(first[half:])
        assert first == second[half:] + second[:half]
    later = texts.stream(list("ab"), 4, 1, 5).tensors[0]
    assert sorted(later[:, 0].tolist()) == sorted(met[0][1])


def test_mixtures_merge(smallest: None) -> None:
    merge = zcode_m3.merging((0,), quiet, steps=3)
    assert 0.2 < merge.value < 5
    assert [row["model"] for row in merge.table] == ["first parent", "second parent", "merged"]
