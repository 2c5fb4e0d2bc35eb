"""A stored result is read back for the same inputs and the same code, and for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from intarsia_lab.kit import stored as module
from intarsia_lab.kit.stored import StoredResults


def test_a_result_is_computed_again_for_other_inputs_and_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    code = ["a"]
    monkeypatch.setattr(module, "sources", lambda: code[0])
    runs: list[int] = []
    lines: list[str] = []

    def run() -> dict[str, float]:
        runs.append(1)
        return {"loss": float(len(runs))}

    stored = StoredResults(__file__)
    for _ in range(2):
        assert stored("toy", {"seed": 0}, run, lines.append) == {"loss": 1.0}
    assert stored("toy", {"seed": 1}, run, lines.append) == {"loss": 2.0} and not lines
    code[0] = "b"
    assert stored("toy", {"seed": 0}, run, lines.append) == {"loss": 3.0}
    assert len(lines) == 1 and "other sources" in lines[0]
    code[0] = "a"
    assert stored("toy", {"seed": 0}, run, lines.append) == {"loss": 1.0}


class Scores(NamedTuple):
    """A loss and an accuracy."""

    loss: float
    accuracy: float


def test_a_cell_is_stored_by_its_arguments_and_returned_in_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(module, "sources", lambda: "a")
    runs: list[tuple[str, int]] = []

    @StoredResults(__file__).cell
    def train(arm: tuple[str, float], seed: int = 0, report: object = None) -> Scores:
        runs.append((arm[0], seed))
        return Scores(1.0, 0.5)

    first = train(("a", 0.5))
    assert first == Scores(1.0, 0.5) == train(("a", 0.5), seed=0, report=print)
    assert isinstance(train(("a", 0.5)), Scores) and runs == [("a", 0)]
    train(("b", 0.5))
    train(("a", 0.5), 1)
    assert runs == [("a", 0), ("b", 0), ("a", 1)]
