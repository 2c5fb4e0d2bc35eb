"""What a search on labelled rows says of its choice: sentences, the table, the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...models.classify.classifier import Member
from ...models.classify.words import SPARSE, has_adapter, parse_method
from ...reports import numbers
from ...reports.report import Commands, Report, Section
from ...reports.table import Column, Entry, Table
from ...reports.writing import write
from ..labelled_report import WITHIN, adapting, lead
from .certainty import share
from .judging import HeldOutAnswers, interval, order

if TYPE_CHECKING:
    from .texts import AutoTexts

BASELINE = "words"
LEXICAL = {
    "words": "TF-IDF of words with logistic regression",
    "tfidf": "TF-IDF of words and characters with logistic regression",
}


@dataclass(frozen=True, eq=False)
class TextCandidate:
    """A candidate: the method in a word, its answers to the held-out rows, its seconds."""

    word: str
    answers: HeldOutAnswers
    seconds: float
    member: Member | None = field(default=None, repr=False)

    @property
    def frozen(self) -> bool:
        """True for a probe on frozen features, False for an adapter."""
        return not has_adapter(self.word)


def sentences_of(
    method: str, candidates: Sequence[TextCandidate], honest: HeldOutAnswers, unit: str
) -> tuple[str, ...]:
    """Return the choice, out of how many, and how far it is ahead of the better TF-IDF.

    honest: answers to each row by the choice made without it.
    """
    level = share(float(honest.score.mean()), honest.pictures)
    among = f"the best of {len(candidates)} candidates and their blends"
    among = "the only candidate" if len(candidates) == 1 else among
    first = (
        f"Chosen: {method}, {among} on {honest.pictures:,} training {unit}, each held out once in "
        f"five folds: {level} right, by choices that had not seen the row."
    )
    lexical = [c for c in candidates if c.word in SPARSE and c.word != method]
    if not lexical or len(candidates) == 1:
        return (first,)
    base = min(lexical, key=lambda c: float(c.answers.loss.mean()))
    second = lead(interval(honest, base.answers), LEXICAL[base.word])
    if all(word in SPARSE for word, _ in parse_method(method)):
        return (
            first,
            f"Embeddings do not pay here: {second}",
            *_adapting(method, candidates, honest),
        )
    second = second.replace(WITHIN, f"{WITHIN}, so that embeddings may not pay")
    return first, second, *_adapting(method, candidates, honest)


def _adapting(
    method: str, candidates: Sequence[TextCandidate], honest: HeldOutAnswers
) -> tuple[str, ...]:
    """Return the sentence on adapters against the best frozen features; () without an adapter."""
    frozen = [c for c in candidates if c.frozen]
    adapted = [c for c in candidates if not c.frozen]
    if not adapted:
        return ()
    other = frozen[order([c.answers for c in frozen])[0]]
    tried = min(adapted, key=lambda c: float(c.answers.loss.mean()))
    first, word = (honest, method) if has_adapter(method) else (tried.answers, tried.word)
    return (adapting(interval(first, other.answers), word, other.word),)


def candidates_table(outcome: AutoTexts) -> Table:
    """Return the table of candidates, the choice first, with its test score."""
    unit = outcome.run.unit
    columns = (
        Column("Method", "As --method takes it", numeric=False),
        Column("Held-out accuracy", f"Of training {unit}, each by a probe without its fold"),
        Column("Loss", "Cross-entropy of the same answers"),
        Column("Behind", "Points that the choice is ahead, with the 95 % interval, paired"),
        Column("Time", "Of features and probes"),
        Column("Test accuracy", "Of the choice alone; looked at once"),
    )
    results = outcome.run.record["results"]
    caption = (
        f"The choice and the candidates on {outcome.run.record['data']['train']['n']:,} training "
        f"{unit}, and the choice on {outcome.run.record['data']['test']['n']:,} test {unit}; "
        f"{numbers.seconds(outcome.seconds)} in all."
    )
    held_out, test = (numbers.percent(results[part]["accuracy"]) for part in ("held_out", "test"))
    loss = f"{results['held_out']['loss']:.3f}"
    method = outcome.run.settings.method or ""
    first = (Entry(method, "chosen"), *map(Entry, (held_out, loss, "", "", test)))
    rows: list[tuple[Entry, ...]] = [first]
    shares = _choice_answers(outcome)
    for c in sorted(outcome.candidates, key=lambda c: float(c.answers.loss.mean())):
        if c.word == method:
            seconds = Entry(numbers.seconds(c.seconds))
            rows[0] = (*rows[0][:4], seconds, rows[0][5])
            continue
        gap = None if shares is None else interval(shares, c.answers)
        behind = "" if gap is None else numbers.signed(100 * gap.mean)
        behind += "" if gap is None else f" {numbers.interval(gap.low, gap.high)}"
        cells = (numbers.percent(float(c.answers.score.mean())), f"{c.answers.loss.mean():.3f}")
        rows.append(tuple(map(Entry, (c.word, *cells, behind, numbers.seconds(c.seconds), ""))))
    return Table(caption, columns, tuple(rows), best=0, baseline=None)


def _choice_answers(outcome: AutoTexts) -> HeldOutAnswers | None:
    """Return the answers of the choice to the held-out rows, of the candidates it is made of."""
    named = {c.word: c.answers for c in outcome.candidates}
    pairs = parse_method(outcome.run.settings.method or "")
    if any(word not in named for word, _ in pairs):
        return None
    first = named[pairs[0][0]]
    shares = sum((share * named[word].shares for word, share in pairs), torch.zeros(()))
    return HeldOutAnswers.of_shares(first.picture, shares, first.labels)


def write_page(outcome: AutoTexts) -> None:
    """Write the page: the sentences, the table, and the commands that come next."""
    commands = Commands((outcome.run.settings.command(),))
    sections = (Section("Candidates", (candidates_table(outcome),)), Section("Repeat", (commands,)))
    title = f"A classifier of {Path(outcome.run.settings.data).name}"
    write(Report(title, outcome.sentences, sections, (), "intarsia auto"), outcome.report)
