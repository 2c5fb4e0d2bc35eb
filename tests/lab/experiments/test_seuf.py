"""The experiments on unlearning, on a mixture that was trained for three steps."""

from __future__ import annotations

import math

import pytest

from intarsia_lab.experiments import seuf, study
from intarsia_lab.materials import held_out_rows, routing_traces


def test_every_arm_is_run_once_and_kept(
    mixture: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing_traces, "HELD_OUT", 1)
    monkeypatch.setattr(routing_traces, "TRAINED", 1)
    monkeypatch.setattr(held_out_rows, "texts", lambda: mixture)
    monkeypatch.setattr(held_out_rows, "LENGTH", 16)
    small = {"FORGOTTEN": ("a",), "TRAINED": 4, "JUDGED": 2, "STEPS": 2}
    for name, value in (small | {"RANDOM": 1, "TARGETS": (0.0, 1e-3), "RATE": 0.05}).items():
        monkeypatch.setattr(seuf, name, value)
    held_out_rows.rows.cache_clear()
    messages: list[str] = []
    first = study("seuf-lift").measure((0,), messages.append)
    ran = len(messages)
    assert len(first.table) == 6 and ran >= 6
    again = study("seuf-expert").measure((0,), messages.append)
    assert len(messages) == ran
    # the headline runs the attributed expert and the random one beside it alone
    assert [row["arm"] for row in again.table] == [
        seuf.TOP,
        "1 random of the layer of top affinity",
    ]
    assert all(row in first.table for row in again.table)
    held_out_rows.rows.cache_clear()


def test_damage_is_interpolated_on_the_path() -> None:
    path = [{"forget": 1.0, "retain": 2.0}, {"forget": 2.0, "retain": 2.4}]
    assert seuf.rise(path, 0.5) == pytest.approx(0.2) and math.isnan(seuf.rise(path, 2.0))


def test_a_random_expert_that_never_comes_so_far_is_left_out() -> None:
    def cell(a: float | None, b: float | None) -> dict[str, object]:
        return {"damage": {"0.5": a, "1.0": b}}

    top = seuf.TOP
    cells = {top: cell(0.1, 0.3), f"random 0 beside {top}": cell(0.2, None)}
    assert seuf.against_random(cells, top) == 1.0  # nothing to compare with at the second target
    cells[f"random 1 beside {top}"] = cell(0.2, 0.6)
    assert seuf.against_random(cells, top) == pytest.approx(0.5)
