"""Certainty of a choice: against the best converged probe, and against the best other method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...reports import numbers
from ...reports.runs.reading import measure
from ...reports.statistics import PairedInterval, share_interval
from .blending import Blend
from .folded import FOLDS, Row, describe_settings
from .judging import HeldOutAnswers, interval
from .search import Search, best_probe
from .views import PROBE

UNIT = "points"  # of right answers, or of ranking precision


@dataclass(frozen=True)
class Margin:
    """Difference between two candidates on pictures that both answered.

    method, settings: of the other candidate.  paired: None where they answered all pictures alike.
    """

    method: str
    settings: str
    paired: PairedInterval | None

    @property
    def words(self) -> str:
        """The first one's score minus the other's, with its 95 % interval over pictures, as text.

        Where both answered every picture alike there is no interval, and the difference is 0.
        """
        if self.paired is None:
            return f"{numbers.signed(0.0)} {UNIT}"
        ends = " to ".join(numbers.signed(100 * end) for end in (self.paired.low, self.paired.high))
        return f"{numbers.signed(100 * self.paired.mean)} {UNIT} (95 % interval {ends})"

    @property
    def verdict(self) -> str:
        """The words for what the interval says of the first candidate."""
        if self.paired is None or self.paired.low <= 0 <= self.paired.high:
            return "these pictures do not decide between the two"
        return "it is ahead" if self.paired.low > 0 else "it is behind"

    def record(self) -> dict[str, Any]:
        """Return the difference for JSON.

        method, settings: the other candidate's. mean, low, high: the first one's score minus the
        other's, as a share (0.01 is one point), and the ends of its 95 % interval. items: number of
        pictures that both answered; significant: True if 0 is outside the interval. Where both
        answered every picture alike, only the mean, 0, and significant, False, are there.
        """
        row: dict[str, Any] = {"method": self.method, "settings": self.settings}
        if self.paired is None:
            return row | {"mean": 0.0, "significant": False}
        names = ("mean", "low", "high", "items", "significant")
        return row | {name: getattr(self.paired, name) for name in names}


@dataclass(frozen=True)
class Certainty:
    """Certainty of a choice: among how many, on which pictures, and how far ahead it is.

    choice: in words.  adapts: whether an adapter is in it.  candidates: how many were trained;
    adapters: how many of them are no probes.  pictures: held out.  held: how many folds were held
    out in turn.  probe: the choice against the best converged probe, with the answers of the choice
    as it would have been made without each fifth of the pictures; None if the choice is that probe.
    twin: the best adapter against the best other method at the same size, epochs, depth and seed;
    None if there was no time for it.  level: score to expect on new pictures, of those answers.
    """

    choice: str
    adapts: bool
    candidates: int
    adapters: int
    pictures: int
    held: int
    probe: Margin | None
    twin: tuple[str, Margin] | None
    level: float

    @classmethod
    def of(cls, search: Search, blend: Blend, honest: HeldOutAnswers) -> Certainty:
        """Compare a choice with the best probe, and its adapter with the best other method.

        search: the finished search; blend: its choice, by positions in `ranked`; honest: answers
        of the choice as it is made without the pictures that it answers.
        """
        ranked = search.ranked()
        members = [ranked[i] for i in blend.members]
        probe = best_probe(ranked)
        against = None
        if probe is not None and members != [probe] and probe.answers is not None:
            settings = describe_settings(probe.experiment)
            against = Margin(probe.name, settings, interval(honest, probe.answers))
        trained = [row for row in search.rows.values() if not row.error and row.parts]
        return cls(
            choice=_in_words(members, blend),
            adapts=any(row.name != PROBE for row in members),
            candidates=len(trained),
            adapters=sum(row.name != PROBE for row in trained),
            pictures=honest.pictures,
            held=search.full,
            probe=against,
            twin=_twin(search, members),
            level=honest.totals[measure(honest.totals)],
        )

    @property
    def sure(self) -> bool:
        """True if the choice is significantly better than the best converged probe."""
        paired = None if self.probe is None else self.probe.paired
        return paired is not None and paired.low > 0

    @property
    def sentences(self) -> tuple[str, ...]:
        """Sentences that name the choice, the pictures it was made on, its lead and its level."""
        held_out = (
            "held out once" if self.held == 1 else f"held out in turn ({self.held} of 5 folds)"
        )
        held_out = "each held out once in five folds" if self.held == FOLDS else held_out
        text = f"Chosen: {self.choice}"
        if self.candidates > 1:
            text += f", by {numbers.plural(self.candidates, 'candidate')}"
            text += f" on {self.pictures:,} training pictures, {held_out}"
        sentences = [f"{text}.", self._about_the_probe()]
        if self.twin is not None:
            method, margin = self.twin
            sentences.append(
                f"{method} against {margin.method}, both with {margin.settings}: "
                f"{margin.words}; {margin.verdict}."
            )
        expected = f"On new pictures of this kind expect about {share(self.level, self.pictures)}: "
        expected += "so many are right when each fifth is answered by what is chosen without it."
        return (*sentences, expected)

    def _about_the_probe(self) -> str:
        """Return the sentence on whether adapting pays here."""
        if self.probe is None:
            if not self.adapters:
                return "It is a converged probe; no adapter was trained in this time."
            return (
                f"It is a converged probe: none of {numbers.plural(self.adapters, 'adapter')} was "
                "better, so adapting does not pay on these pictures."
            )
        lead = f"Against the best converged probe ({self.probe.settings}): {self.probe.words}"
        if not self.adapters:
            return f"{lead}; no adapter was trained in this time."
        if not self.adapts:
            return f"{lead}; no adapter is in it, so adapting does not pay on these pictures."
        pays = "adapting pays" if self.sure else "they do not decide whether adapting pays"
        behind = self.probe.paired is not None and self.probe.paired.high < 0
        return f"{lead}; {'it is behind' if behind else pays}."

    @property
    def statement(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    def record(self) -> dict[str, Any]:
        """Return the numbers of candidates, pictures, ..., and the differences, for JSON."""
        names = ("candidates", "adapters", "pictures", "held", "level", "sure", "statement")
        row: dict[str, Any] = {name: getattr(self, name) for name in names}
        row["probe"] = None if self.probe is None else self.probe.record()
        if self.twin is not None:
            row["twin"] = {"of": self.twin[0], **self.twin[1].record()}
        return row


def share(level: float, items: int) -> str:
    """Return a share of right answers with its 95 % interval over items, in words."""
    low, high = share_interval(level, items)
    return f"{numbers.percent(level)} (95 % interval {100 * low:.0f} to {100 * high:.0f})"


def _in_words(members: list[Row], blend: Blend) -> str:
    """Return the choice as text, with the weight of each member of a blend."""
    texts = [f"{named(row)}, {describe_settings(row.experiment)}" for row in members]
    if len(members) == 1:
        return texts[0]
    shares = [f"{text} ({w:.2g})" for text, w in zip(texts, blend.weights, strict=True)]
    return f"a blend of {'; '.join(shares[:-1])}; and {shares[-1]}"


def named(row: Row) -> str:
    """Return the name of a candidate's method, with its seed if it is a further one."""
    if row.name == PROBE:
        return "converged probe"
    # a further seed is trained on the split of the first one
    seed, split = row.experiment.training.seed, row.experiment.pictures.split_seed
    return row.name if split in (None, seed) else f"{row.name}, seed {seed}"


def _twin(search: Search, members: list[Row]) -> tuple[str, Margin] | None:
    """Compare the adapter of a choice with the best other method of the same settings."""
    adapters = [row for row in members if row.name != PROBE]
    settings = ("model", "size", "epochs", "last_blocks", "seed")

    def same(row: Row) -> Mapping[str, Any]:
        flat = row.experiment.flat()
        return {name: flat[name] for name in settings}

    for best in adapters:
        for row in search.ranked():
            if row.name in (PROBE, best.name) or same(row) != same(best):
                continue
            assert best.answers is not None and row.answers is not None
            epochs = numbers.plural(best.experiment.training.epochs, "epoch")
            place = f"{best.experiment.adapted.model} at {best.experiment.adapted.size} px"
            margin = Margin(row.name, f"{place}, {epochs}", interval(best.answers, row.answers))
            return named(best), margin
    return None
