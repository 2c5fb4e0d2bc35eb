"""The claims on GQSA compress a model in the ways that they compare."""

from __future__ import annotations

import pytest

from intarsia_lab.claims import gqsa

# nats per token: two stages take off a tenth each, the last one adds two tenths
LOSS = {"W4 S50, rounded": 4.0, "W4 S50, OBS": 3.9, "W4 S50, OBS + BQPO": 3.8, gqsa.OURS: 4.0}


def test_the_headline_runs_the_last_stage_and_its_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def cell(_: gqsa.GqsaCells, arm: str, text: str, seed: int) -> gqsa.CodeScore:
        ran.append(arm)
        # the second text is worse by a nat for what is compressed by GQSA
        worse = text == gqsa.TEXTS[1] and arm in LOSS
        return gqsa.CodeScore(LOSS.get(arm, 3.0) + worse, 9.0)

    monkeypatch.setattr(gqsa.GqsaCells, "cell", cell)
    headline, stages = gqsa.CLAIMS[:2]
    result = headline.measure((0, 1), lambda _: None)
    assert set(ran) == {gqsa.DENSE, gqsa.OURS, gqsa.PAIRS}
    assert result.values == (2.0, 2.0) and gqsa.TEXTS[1] in result.note
    assert headline.judge(result).word == "fails"
    # the stage that helps least is judged
    assert stages.measure((0,), lambda _: None).got == pytest.approx(0.2)
    assert set(ran) == set(gqsa.ARMS)
