"""The experiment on soups compares a soup with the mean of its candidates."""

from __future__ import annotations

import pytest

from intarsia_lab.experiments import sms


def test_a_soup_is_compared_with_its_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def cell(_: sms.DenseNets, density: float, seed: int) -> sms.Souped:
        trained.append(seed)
        return sms.Souped(80.0, 79.0, 81.0, density)

    monkeypatch.setattr(sms.DenseNets, "cell", cell)
    result = sms.STUDIES[0].measure((0, 1), lambda _: None)
    # above the mean of its candidates, below the best of them
    assert result.values == (1.0, 1.0) and "in 0 of 2 seeds" in result.note
    assert trained == [0, 1]
