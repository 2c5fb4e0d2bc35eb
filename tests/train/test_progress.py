"""A long run says how long it takes and what would be faster; a log gets lines, not a bar."""

from __future__ import annotations

import pytest

from intarsia.train import progress
from intarsia.train.progress import Bar, FirstSteps, duration

BEGIN = FirstSteps()


def _told(
    capsys: pytest.CaptureFixture[str], steps: int, seconds: float, start: FirstSteps = BEGIN
) -> str:
    """Return the output of the first four steps, each of `seconds`, of a run of `steps` steps."""
    with Bar(steps, 2, show=True, start=start).shown() as bar:
        for step in range(1, 5):
            line = {"split": "train", "epoch": 1, "loss": 0.5, "accuracy": 0.75}
            bar.step(start.step + step, line | {"seconds": start.seconds + step * seconds})
    return capsys.readouterr().err


def test_a_long_run_is_told_once_and_a_size_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    output = _told(capsys, 1001, 5.0, FirstSteps(side=518))
    want = "About 83 min of training: 1,001 steps, 5 s each."
    assert output == f"{want} Pictures of 224 px (--size 224) would take about 16 min.\n"


@pytest.mark.parametrize("side", [None, 112, 224])
def test_no_size_is_proposed_where_it_would_not_help(
    capsys: pytest.CaptureFixture[str], side: int | None
) -> None:
    assert _told(capsys, 1001, 5.0, FirstSteps(side=side)).endswith("5 s each.\n")


def test_a_short_run_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert _told(capsys, 40, 0.1, FirstSteps(side=518)) == ""


def test_a_resumed_run_counts_its_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    output = _told(capsys, 201, 5.0, FirstSteps(step=100, seconds=1.0))
    assert output.startswith("About 8 min of training: 201 steps, 5 s each.")


def test_a_log_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    lines = _told(capsys, 40, 0.1).splitlines()
    assert lines[0] == "epoch 1/2, step 1/40: train loss 0.500 accuracy 0.750"
    assert lines[3].endswith("step 4/40: train loss 0.500 accuracy 0.750, about 4 s left")
    monkeypatch.setenv("INTARSIA_QUIET", "1")
    assert _told(capsys, 4000, 5.0) == ""


@pytest.mark.parametrize(("side", "guess"), [(518, 3600.0), (224, 3600.0), (518, 10.0)])
def test_a_very_long_run_is_guessed_before_its_first_step(
    capsys: pytest.CaptureFixture[str], side: int, guess: float
) -> None:
    with Bar(100, 2, show=True, start=FirstSteps(side=side, guess=guess)).shown():
        output = capsys.readouterr().err
    want = "Perhaps 60 min of training, judged by one picture. Pictures of 224 px (--size 224)"
    assert output.startswith(want) if (side, guess) == (518, 3600.0) else output == ""


def test_pictures_of_frozen_blocks_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with Bar(1000, 0, show=True, start=FirstSteps(side=518), what="frozen blocks").shown() as bar:
        bar.step(64, {"split": "train", "epoch": 0, "seconds": 64.0})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "About 16 min of frozen blocks: 1,000 pictures, 1 s each. Pictures of 224"
    )
    assert second == "frozen blocks, picture 64/1,000: train, about 16 min left"


def test_durations() -> None:
    texts = [duration(s) for s in (0.1, 89, 95, 3600, 7500)]
    assert texts == ["1 s", "89 s", "2 min", "60 min", "2 h 05 min"]
