"""The claims on soups train the nets that they compare, and no others."""

from __future__ import annotations

import pytest

from intarsia_lab.claims import sms

PARTS = {sms.SOUP: sms.Souped(80.0, 79.0, 81.0, 0.1), sms.LONGER: sms.Souped(80.5, 80.5, 80.5, 0.1)}


def test_a_claim_on_soups_trains_what_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def cell(_: sms.DenseNets, arm: str, density: float, seed: int) -> sms.Souped:
        trained.append((arm, seed))
        return PARTS.get(arm, sms.Souped(70.0, 70.0, 70.0, density))

    monkeypatch.setattr(sms.DenseNets, "cell", cell)
    headline, longer = sms.CLAIMS
    result = headline.measure((0, 1), lambda _: None)
    # above the mean of its candidates, below the best of them
    assert result.values == (1.0, 1.0) and "in 0 of 2 seeds" in result.note
    assert trained == [(sms.SOUP, 0), (sms.SOUP, 1)]
    assert headline.judge(result).word != "void"
    table = longer.measure((0,), lambda _: None).table
    assert [row["model"] for row in table][:2] == [sms.SOUP, sms.LONGER]
    assert longer.measure((0,), lambda _: None).got == -0.5
