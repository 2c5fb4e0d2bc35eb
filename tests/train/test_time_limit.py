"""`most_seconds`: a training ends in time by its own clock, and its rate has fallen by then."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import Any

import pytest

from intarsia import fit
from intarsia.core.errors import ConfigError
from intarsia.train import Run
from intarsia.train.loop import Loop

from ..refusals import refused
from .tiny import host, pictures

SETTINGS: dict[str, Any] = {"epochs": 12, "batch_size": 8, "lr": 0.1, "trackers": ()}


def timed(seconds: Iterator[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each step take so many seconds by the loop's clock, which is read before and after it."""
    clock = accumulate(chain.from_iterable((0.0, s) for s in seconds))
    monkeypatch.setattr(Loop, "_clocks", lambda _: (next(clock), 0.0))


def rates(run: Run) -> list[float]:
    return [line["lr"] for line in run.history if line["split"] == "train"]


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        (repeat(1.0), 7),
        # a step that would not end in time is not begun
        (repeat(2.0), 3),
        # the first one always is
        (repeat(30.0), 1),
        # slower and slower: 1 + 1 + 1 + 3, and another one is expected to take 1.5
        (chain((1.0, 1.0, 1.0), repeat(3.0)), 4),
    ],
)
def test_a_run_ends_in_time(
    seconds: Iterator[float], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(seconds, monkeypatch)
    run = fit(host(), pictures(40), most_seconds=7, **SETTINGS)
    results = run.record["results"]
    assert results["steps"] == steps and results["selection"]["stopped_after"] == -(-steps // 5)


def test_the_rate_has_fallen_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(repeat(1.0), monkeypatch)
    run = fit(host(), pictures(40), most_seconds=20, **SETTINGS)
    assert rates(run)[2:] == sorted(rates(run)[2:], reverse=True)
    assert rates(run)[-1] < 0.1 * max(rates(run))
    # where the time is more than enough nothing is different
    timed(repeat(1.0), monkeypatch)
    ample = fit(host(), pictures(40), most_seconds=1e6, **SETTINGS)
    timed(repeat(1.0), monkeypatch)
    assert rates(ample) == rates(fit(host(), pictures(40), **SETTINGS))


def test_a_run_that_goes_on_has_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_model: object, step: int, _steps: int) -> None:
        if step == 3 and not stopped:
            stopped.append(step)
            raise EOFError

    stopped: list[int] = []
    timed(repeat(1.0), monkeypatch)
    settings = SETTINGS | {"schedule": stop, "checkpoint_steps": 1, "most_seconds": 7}
    with pytest.raises(EOFError):
        fit(host(), pictures(40), out=tmp_path, **settings)
    timed(repeat(1.0), monkeypatch)
    run = fit(host(), pictures(40), out=tmp_path, resume=True, **settings)
    assert run.record["results"]["steps"] == 7 and run.record["results"]["seconds"] == 7


def test_no_time_is_refused() -> None:
    with refused(ConfigError, what="most_seconds", got="0"):
        fit(host(), pictures(40), most_seconds=0, **SETTINGS)
