"""The experiment on GQSA compresses a model in the ways that it compares."""

from __future__ import annotations

import pytest

from intarsia_lab.experiments import gqsa


def test_the_last_stage_and_its_rivals_run_on_both_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def cell(_: gqsa.GqsaCells, arm: str, text: str, seed: int) -> gqsa.CodeScore:
        ran.append(arm)
        # the second text is worse by a nat for what is compressed by GQSA
        return gqsa.CodeScore(3.0 + (arm == gqsa.OURS) * (1 + (text == gqsa.TEXTS[1])), 9.0)

    monkeypatch.setattr(gqsa.GqsaCells, "cell", cell)
    result = gqsa.STUDIES[0].measure((0, 1), lambda _: None)
    assert set(ran) == set(gqsa.ARMS)
    # a value for each text
    assert result.values == (1.0, 2.0) and result.value == 1.5
