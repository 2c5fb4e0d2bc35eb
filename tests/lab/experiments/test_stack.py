"""The experiments on stacks of techniques and on Read-ME, on a mixture of three steps."""

from __future__ import annotations

import pytest

from intarsia.runs.stack_entries import ENTRIES
from intarsia_lab.experiments import read_me, stack, study
from intarsia_lab.materials import held_out_rows, routing_traces


@pytest.mark.thorough
def test_pairs_and_batches_are_counted(
    mixture: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out_rows, "texts", lambda: mixture)
    monkeypatch.setattr(routing_traces, "HELD_OUT", 4)
    monkeypatch.setattr(routing_traces, "TRAINED", 1)
    monkeypatch.setattr(held_out_rows, "LENGTH", 16)
    for name, value in (("CALIBRATION", 4), ("MEASURED", 4)):
        monkeypatch.setattr(stack, name, value)
    entries = {name: ENTRIES[name] for name in ("prune", "merge", "student", "quant")}
    monkeypatch.setattr(stack, "ENTRIES", entries)
    for cached in (held_out_rows.rows, stack.table, read_me.served):
        cached.cache_clear()
    messages: list[str] = []
    table = stack.table(0, messages.append)
    assert stack.failures(table) == 28 - 6  # of the pairs of four entries none is missing
    result = study("stack-pairs").measure((0,), messages.append)
    assert result.value == 22 and len(result.table) == 1 + 4 + 6
    monkeypatch.setattr(read_me, "STREAMS", 4)
    result = study("read-me-batching").measure((0,), messages.append)
    assert 0 < result.value <= 1.01 and len(result.table) == 3
