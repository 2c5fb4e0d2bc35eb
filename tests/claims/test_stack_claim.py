"""The claims on stacks of techniques and on Read-ME, on a mixture of three steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.claims import read_me, routing_traces, seuf, stack
from intarsia.claims.ledger import claim
from intarsia.experiments.stack_entries import ENTRIES


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    for name, value in (("FIRST", 2), ("THEN", 1), ("BATCH", 2), ("HELD_OUT", 4), ("TRAINED", 1)):
        monkeypatch.setattr(routing_traces, name, value)
    words = "The cat sat on 12 mats, and Tom ran.\n" * 2000
    for module in (routing_traces, seuf):
        monkeypatch.setattr(module, "texts", lambda: {"a": words, "b": words.upper()})
    monkeypatch.setattr(seuf, "LENGTH", 16)
    for cached in (seuf.rows, stack.table, read_me.served):
        cached.cache_clear()


@pytest.mark.usefixtures("small")
def test_pairs_and_batches_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CALIBRATION", 4), ("MEASURED", 4)):
        monkeypatch.setattr(stack, name, value)
    few = {name: ENTRIES[name] for name in ("prune", "merge", "student", "place", "quant")}
    monkeypatch.setattr(stack, "ENTRIES", few)
    said: list[str] = []
    found = stack.table(0, said.append)
    assert stack.failures(found) == 28 - 10  # of the pairs of five entries none is missing
    result = claim("stack-bytes").run((0,), said.append)
    assert 0 < result.got < 100 and len(result.table) == 1 + 5 + 10
    monkeypatch.setattr(read_me, "STREAMS", 4)
    result = claim("read-me-batching").run((0,), said.append)
    assert 0 < result.got <= 1.01 and len(result.table) == 3
    assert -1e-9 <= claim("read-me-ahead").run((0,), said.append).got < 1
