"""Claims on Z-code M3 in their smallest form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from intarsia.data.small_models import SmallModel
from intarsia.mixtures.zcode_m3 import mixtures_in
from intarsia.routers import TopK
from intarsia.train.order import Order
from intarsia_lab.claims import zcode_m3
from intarsia_lab.materials import routing_traces
from intarsia_lab.routing import kinds_of_text
from intarsia_lab.routing.kinds_of_text import TextKinds

from ...toys import quiet

WORDS = "The cat sat on 12 mats, and Tom ran.\n" * 400


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(zcode_m3, "OTHERS", 2)
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


def test_which_kind_is_last_goes_round() -> None:
    last = [zcode_m3.turned("abcd", seed)[-1] for seed in range(5)]
    assert last == ["d", "a", "b", "c", "d"]


def test_late_merging_and_pruning(smallest: None, monkeypatch: pytest.MonkeyPatch) -> None:
    late = zcode_m3.late((0,), quiet, steps=1)
    merge = zcode_m3.merging((0,), quiet, steps=3)
    monkeypatch.setattr(zcode_m3, "learn", None)  # what is pruned was trained for the merge
    prune = zcode_m3.pruning((0,), quiet, steps=3)
    assert all(0.2 < result.got < 5 for result in (late, merge, prune))
    assert [row["model"] for row in merge.table] == ["first parent", "second parent", "merged"]
    assert len(prune.table) == 4


def test_the_largest_scores_stay() -> None:
    net = kinds_of_text.decoder_of_experts(TopK(4, 1, "prob"), 0, shape=SmallModel(8, 2, 2, 8))
    path = list(mixtures_in(net))[1]
    old = mixtures_in(net)[path].experts.up.detach()  # pyright: ignore
    scores = {f"{p}.router": torch.tensor([1.0, 5, 0, 3]) for p in mixtures_in(net)}
    new = mixtures_in(zcode_m3.kept_experts(net, scores, 2))[path]
    assert torch.equal(new.experts.up, old[[1, 3]])  # pyright: ignore
    assert new.router.weight.shape[0] == 2  # pyright: ignore
