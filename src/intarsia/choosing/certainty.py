"""Say how sure a choice is: its paired differences to the best candidates of the other methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..reports import numbers
from ..reports.statistics import PairedInterval
from .folded import FOLDS, Row, described
from .judging import HeldOutAnswers, interval

UNIT = "points"  # of right answers, or of ranking precision


@dataclass(frozen=True)
class Margin:
    """The choice minus the best candidate of another method, on pictures that both answered.

    paired: None where they answered all pictures alike.
    """

    method: str
    settings: str
    paired: PairedInterval | None

    @property
    def words(self) -> str:
        """The difference and its interval."""
        if self.paired is None:
            return f"{numbers.signed(0.0)} {UNIT}"
        ends = " to ".join(numbers.signed(100 * end) for end in (self.paired.low, self.paired.high))
        return f"{numbers.signed(100 * self.paired.mean)} {UNIT} (95 % interval {ends})"

    def record(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        row: dict[str, Any] = {"method": self.method, "settings": self.settings}
        if self.paired is None:
            return row | {"mean": 0.0, "significant": False}
        names = ("mean", "low", "high", "items", "seeds", "significant")
        return row | {name: getattr(self.paired, name) for name in names}


@dataclass(frozen=True)
class Certainty:
    """What was chosen, among how many, on which pictures, and how far ahead of other methods.

    pictures: held out, with `seeds` trainings for each.  held: how many folds were held out in
    turn.  differences: the best other method first.
    """

    choice: str
    candidates: int
    pictures: int
    held: int
    seeds: int
    differences: tuple[Margin, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Certainty:
        """Return the certainty of the first row's choice.  rows: the best first."""
        best = rows[0]
        assert best.answers is not None
        others: dict[str, Row] = {}
        for row in rows:
            if row.name != best.name and row.answers is not None and not row.error:
                others.setdefault(row.name, row)
        differences = [_difference(best.answers, row) for row in others.values()]
        seeds = -(-best.parts // FOLDS)
        name = f"{best.name}, {described(best.experiment)}"
        trained = sum(not row.error for row in rows)
        held = min(FOLDS, best.parts)
        return cls(name, trained, best.answers.pictures, held, seeds, tuple(differences))

    @property
    def sure(self) -> bool:
        """Whether the choice is significantly better than the best other method."""
        first = self.differences[0].paired if self.differences else None
        return first is not None and first.low > 0

    @property
    def statement(self) -> str:
        """One statement of what was chosen and how sure that is."""
        how = "held out once" if self.held == 1 else f"held out in turn ({self.held} of 5 folds)"
        how = "each held out once in five folds" if self.held == FOLDS else how
        text = f"Chosen: {self.choice}"
        if self.candidates == 1:
            return (
                f"{text}. Only one candidate was trained, so nothing was compared: more minutes "
                "try more."
            )
        text += f", the best of {self.candidates} candidates on {self.pictures:,} training pictures"
        text += f", {how}{'' if self.seeds == 1 else f', at {self.seeds} seeds'}."
        if not self.differences:
            return f"{text} No other method was tried to the end."
        first = self.differences[0]
        text += f" Against {first.method}, the best other method ({first.settings}): {first.words}"
        if self.sure:
            return f"{text}; it is ahead."
        return f"{text}; these pictures do not decide between the two."

    def record(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        names = ("candidates", "pictures", "held", "seeds", "sure", "statement")
        rows = [difference.record() for difference in self.differences]
        return {name: getattr(self, name) for name in names} | {"differences": rows}


def _difference(best: HeldOutAnswers, row: Row) -> Margin:
    assert row.answers is not None
    return Margin(row.name, described(row.experiment), interval(best, row.answers))
