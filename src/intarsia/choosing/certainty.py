"""Certainty of a choice: its paired differences to the best candidates of the other methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..reports import numbers
from ..reports.statistics import PairedInterval
from .folded import FOLDS, Row, describe_settings
from .judging import HeldOutAnswers, interval

UNIT = "points"  # of right answers, or of ranking precision


@dataclass(frozen=True)
class Margin:
    """Difference between the choice and another method's best candidate, on pictures both answered.

    paired: None where they answered all pictures alike.
    """

    method: str
    settings: str
    paired: PairedInterval | None

    @property
    def words(self) -> str:
        """The choice's score minus the other method's, with its 95 % interval, as text.

        Where both answered every picture alike there is no interval, and the difference is 0.
        """
        if self.paired is None:
            return f"{numbers.signed(0.0)} {UNIT}"
        ends = " to ".join(numbers.signed(100 * end) for end in (self.paired.low, self.paired.high))
        return f"{numbers.signed(100 * self.paired.mean)} {UNIT} (95 % interval {ends})"

    def record(self) -> dict[str, Any]:
        """Return the difference between the choice and another method's candidate, for JSON.

        method, settings: the other candidate's. mean, low, high: the choice's score minus the
        other's, as a share (0.01 is one point), and the ends of its 95 % interval. items: number of
        pictures that both answered; seeds: number of training seeds; significant: True if 0 is
        outside the interval. Where both answered every picture alike, only the mean, 0, and
        significant, False, are there.
        """
        row: dict[str, Any] = {"method": self.method, "settings": self.settings}
        if self.paired is None:
            return row | {"mean": 0.0, "significant": False}
        names = ("mean", "low", "high", "items", "seeds", "significant")
        return row | {name: getattr(self.paired, name) for name in names}


@dataclass(frozen=True)
class Certainty:
    """Certainty of a choice: among how many, on which pictures, and how far ahead it is.

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
        """Compare the choice with the best candidate of every other method, picture by picture.

        rows: all candidates (methods with settings), the best first; the first one is the choice.
        Returns how many candidates were trained, on how many pictures the choice was scored, and
        its lead over each other method.
        """
        best = rows[0]
        assert best.answers is not None
        best_of_methods: dict[str, Row] = {}
        for row in rows:
            if row.name != best.name and row.answers is not None and not row.error:
                # Rows are sorted: the first one of a method is its best.
                best_of_methods.setdefault(row.name, row)
        differences = [_margin(best.answers, row) for row in best_of_methods.values()]
        # Parts beyond the five folds are those folds again, at further seeds.
        seeds = -(-best.parts // FOLDS)
        name = f"{best.name}, {describe_settings(best.experiment)}"
        trained = sum(not row.error for row in rows)
        folds_held_out = min(FOLDS, best.parts)
        return cls(name, trained, best.answers.pictures, folds_held_out, seeds, tuple(differences))

    @property
    def sure(self) -> bool:
        """True if the choice is significantly better than the best candidate of other methods."""
        first = self.differences[0].paired if self.differences else None
        return first is not None and first.low > 0

    @property
    def sentences(self) -> tuple[str, ...]:
        """Sentences that name the choice, the pictures it was made on, and its lead."""
        held_out = (
            "held out once" if self.held == 1 else f"held out in turn ({self.held} of 5 folds)"
        )
        held_out = "each held out once in five folds" if self.held == FOLDS else held_out
        text = f"Chosen: {self.choice}"
        if self.candidates == 1:
            nothing = (
                "Only one candidate was trained, so nothing was compared: more minutes try more."
            )
            return f"{text}.", nothing
        text += f", the best of {self.candidates} candidates on {self.pictures:,} training pictures"
        text += f", {held_out}{'' if self.seeds == 1 else f', at {self.seeds} seeds'}."
        if not self.differences:
            return text, "No other method was tried to the end."
        first = self.differences[0]
        lead = f"Against {first.method}, the best other method ({first.settings}): {first.words}"
        verdict = "it is ahead" if self.sure else "these pictures do not decide between the two"
        return text, f"{lead}; {verdict}."

    @property
    def statement(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    def record(self) -> dict[str, Any]:
        """Return the numbers of candidates, pictures, ..., and the differences, for JSON."""
        names = ("candidates", "pictures", "held", "seeds", "sure", "statement")
        rows = [difference.record() for difference in self.differences]
        return {name: getattr(self, name) for name in names} | {"differences": rows}


def _margin(best: HeldOutAnswers, row: Row) -> Margin:
    """Compare the choice with a candidate of another method, by their answers to pictures.

    best: the choice's answers to held-out pictures; row: the other candidate.
    """
    assert row.answers is not None
    return Margin(row.name, describe_settings(row.experiment), interval(best, row.answers))
