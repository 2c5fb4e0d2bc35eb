"""The claims on soups train the nets that they compare, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from intarsia_lab.claims import designs, sms
from intarsia_lab.materials import held_out, thin_resnets

RIGHT, HALF, WRONG = "1111", "1010", "0000"


def a_soup(marks: str, *parts: str, density: float = 0.1) -> sms.Souped:
    return sms.Souped(marks, list(parts), 0, density)


SOUPS = {
    sms.SOUP: a_soup("1110", RIGHT, HALF, HALF),  # 75 of 66.7 points
    sms.LONGER: a_soup(RIGHT, RIGHT),
    sms.STRANGERS: a_soup(WRONG, RIGHT, RIGHT, HALF),
}


def test_a_claim_on_soups_trains_what_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def cell(_: sms.DenseNets, arm: str, density: float, seed: int) -> sms.Souped:
        trained.append((arm, seed))
        return SOUPS.get(arm, a_soup(HALF, HALF))

    monkeypatch.setattr(sms.DenseNets, "cell", cell)
    monkeypatch.setattr(sms, "FEW", 1)
    headline, longer = sms.CLAIMS
    result = headline.measure((0, 1), lambda _: None)
    # above the mean of its candidates, below the best of them
    assert result.values == pytest.approx((25 / 3, 25 / 3)) and "in 0 of 2 seeds" in result.note
    assert trained == [(sms.SOUP, 0), (sms.SOUP, 1), (sms.STRANGERS, 0)]
    assert headline.judge(result).word != "void"
    table = longer.measure((0,), lambda _: None).table
    assert [row["model"] for row in table][:2] == [sms.SOUP, sms.LONGER]
    assert longer.measure((0,), lambda _: None).got == -25


def test_its_design_has_every_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sms.DenseNets, "cell", lambda _, arm, __, ___: SOUPS[arm])
    headline, design = sms.CLAIMS[0], designs.DESIGNS["sms"]
    table = headline.measure((0, 1), lambda _: None).table
    assert not design.lacks(table, headline.rates) and not design.failure(table)
    winner = design.winner(table)
    assert winner is not None and winner.name == "the best candidate by validation"
    # masks of their own that cost nothing make the figure void
    harmless = [{**row, "accuracy": "90"} if "pruned" in row["model"] else row for row in table]
    assert "masks and starts of their own" in design.failure(harmless)


def test_an_interval_is_over_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    # the same 6 of 40 pictures in every seed: no spread between seeds, and an interval
    soup = a_soup("1" * 40, "0" * 6 + "1" * 34)
    monkeypatch.setattr(sms.DenseNets, "cell", lambda *_: soup)
    result = sms.CLAIMS[0].measure((0, 1, 2), lambda _: None)
    assert result.spread == 0 and result.interval[0] < result.got - 5 < result.interval[1]


def test_parts_are_scored_and_one_is_picked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    random = torch.Generator().manual_seed(0)
    pictures = torch.randn(64, 1, 8, 8, generator=random), torch.arange(64) % 10
    monkeypatch.setattr(thin_resnets, "halved", lambda _: TensorDataset(*pictures))
    monkeypatch.setattr(held_out, "halved", lambda: TensorDataset(*pictures))
    monkeypatch.setattr(thin_resnets, "WIDTHS", (2, 2, 2))
    for name in ("DENSE_EPOCHS", "EPOCHS", "ROUNDS"):
        monkeypatch.setattr(thin_resnets, name, 1)
    nets = sms.DenseNets()
    for arm, parts in {sms.SOUP: 3, sms.LONGER: 1, sms.APART_PRUNED: 3, sms.STRANGERS: 3}.items():
        soup = nets.cell(arm, 0.5, 0)
        assert len(soup.parts) == parts and len(soup.marks) == 64
        assert soup.best == soup.alone[soup.picked] and soup.density <= 0.5
        assert soup.best == max(soup.alone)  # validated on the pictures of the test
