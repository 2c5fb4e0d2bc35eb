"""Positive controls: what must be true of an experiment before its figure means anything."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]
# the number that a cell of a table begins with: 1,024 or -3.2e-05
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Control:
    """A condition on the rows of a result's table, in a sentence.

    passes: may raise LookupError or ValueError for rows that lack a needed value, which fails.
    """

    sentence: str
    passes: Callable[[Rows], bool]

    def failure(self, rows: Rows) -> str:
        """Return why the control failed; "" if it passed.  rows: of the result's table."""
        try:
            passed = self.passes(rows)
        except (LookupError, ValueError):
            return f"The control was not recorded: {self.sentence}"
        # a control that cannot be read is a failed one: silence is no evidence
        return "" if passed else f"The control failed: {self.sentence}"


@dataclass(frozen=True)
class NoControl:
    """A claim for which no positive control is possible, and why, in one sentence."""

    reason: str

    def failure(self, rows: Rows) -> str:
        """Return "": without a control nothing can fail.  rows: unused, `Control` needs them."""
        return ""


def numbers(rows: Rows, column: str, row_values: Mapping[str, str] | None = None) -> list[float]:
    """Return the first number of each cell of a column, in the rows that have certain values.

    rows: of a result's table, with text as cells; row_values: column -> the text that a row must
    have in it, None = all rows.

    Raises: LookupError if there is none.
    """
    pairs = (row_values or {}).items()
    # cells are text with a spread behind the number; the number is what counts
    matching = [row for row in rows if all(str(row.get(name)) == value for name, value in pairs)]
    texts = [str(row[column]) for row in matching if str(row.get(column, ""))]
    values = [float(match[0].replace(",", "")) for t in texts if (match := NUMBER.match(t))]
    if not values:
        raise LookupError(column)
    return values


def above(
    sentence: str, column: str, bound: float, row_values: Mapping[str, str] | None = None
) -> Control:
    """Return the control that the mean of a column's numbers is above a bound.

    sentence: what must be true of the experiment; column: its title; row_values: which rows, see
    `numbers`.
    """
    return Control(
        sentence, lambda rows: statistics.mean(numbers(rows, column, row_values)) > bound
    )


def below(
    sentence: str, column: str, bound: float, row_values: Mapping[str, str] | None = None
) -> Control:
    """Return the control that the mean of a column's numbers is below a bound.

    sentence: what must be true of the experiment; column: its title; row_values: which rows, see
    `numbers`.
    """
    return Control(
        sentence, lambda rows: statistics.mean(numbers(rows, column, row_values)) < bound
    )


# reasons that several claims share
COUNTED = NoControl("The figure is counted, not learned: there is no training that could fail.")
TIMED = NoControl("Both sides compute the same output, so that only their time is compared.")
SIMULATED = NoControl("A simulator adds up the time of given routes: nothing is learned in it.")


def better_than_a_guess(tokens: int) -> Control:
    """Return the control that the mean test loss is below log(tokens), a uniform guess in nats.

    tokens: size of the vocabulary.
    """
    nats = round(math.log(tokens), 2)
    sentence = f"Every model is better than a uniform guess among {tokens:,} tokens, {nats} nats."
    return below(sentence, "test loss", nats)
