"""The company of a headline's figure: cheap rivals, an arm that must lose, and its sample."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from intarsia.core.errors import ConfigError

from .control import Control, Rows, numbers
from .rates import FixedRate, Rates


@dataclass(frozen=True)
class TableArm:
    """An arm of a result's table.

    name: as the claim's sentence has it; columns: of its figures, which are averaged; rows: column
    -> text of the rows that are its own, all by default.
    """

    name: str
    columns: tuple[str, ...]
    rows: Mapping[str, str] = field(default_factory=dict[str, str])

    def figure(self, rows: Rows) -> float:
        """Return the arm's mean figure in a table.  Raises: LookupError where it has none."""
        return statistics.mean(x for c in self.columns for x in numbers(rows, c, self.rows))


@dataclass(frozen=True)
class Missing:
    """A part that a claim does not have, in a few words.  Raises: ConfigError."""

    reason: str

    def __post_init__(self) -> None:
        """Refuse a silence: what is missing is named."""
        if not self.reason:
            fix = "Say what it would be: Missing('random cells')."
            raise ConfigError("what a claim misses", got="''", want="a few words", fix=fix)


@dataclass(frozen=True)
class Design:
    """The rules that a headline keeps, and those that it does not: then it decides nothing.

    ours, trivial, strong: our arm, the simplest possible one and the strongest cheap one, in the
    claim's table.  sensitive: an arm that must lose by the margin, or a means that reaches the bar;
    where it does not, the figure means nothing.  sample: what its interval is over, as *topics and
    seeds*.  alike: why no arm needs a rate of its own, "" where each must have chosen one.  higher:
    whether a higher figure in the table is the better one.
    """

    ours: TableArm
    trivial: TableArm | Missing
    strong: TableArm | Missing
    sensitive: Control | Missing
    sample: str | Missing
    alike: str = ""
    higher: bool = True

    def failure(self, rows: Rows) -> str:
        """Return why the claim's own arms show that a figure means nothing; "" if they do not."""
        return self.sensitive.failure(rows) if isinstance(self.sensitive, Control) else ""

    def lacks(self, rows: Rows, rates: Rates | FixedRate | None) -> list[str]:
        """Return what a claim does not have, in words, none for one that keeps all rules.

        rows: of its table; rates: of its arms.
        """
        parts = {
            "trivial arm": self.trivial,
            "strong cheap arm": self.strong,
            "arm that must lose, or means that reaches the bar": self.sensitive,
        }
        missing = [f"no {n} ({p.reason})" for n, p in parts.items() if isinstance(p, Missing)]
        # an arm that was declared and never run is missing, too
        missing += [f"no row of {arm.name}" for arm in self._arms() if not _stands_in(arm, rows)]
        if isinstance(self.sample, Missing):
            missing.append(f"an interval that leaves out {self.sample.reason}")
        # one rate for all suits one of them best, and nobody knows which
        if not isinstance(rates, Rates) and not self.alike:
            missing.append("no rate that each arm chose")
        return missing

    def winner(self, rows: Rows) -> TableArm | None:
        """Return the arm that a table shows to be the best; None if it has fewer than two."""
        figures = [(a.figure(rows), a) for a in self._arms() if _stands_in(a, rows)]
        if len(figures) < 2:
            return None
        # the first of equal ones, so that ours is no loser of a tie
        sign = 1 if self.higher else -1
        return max(figures, key=lambda pair: sign * pair[0])[1]

    def _arms(self) -> Sequence[TableArm]:
        """Return the arms that are declared."""
        return [a for a in (self.ours, self.trivial, self.strong) if isinstance(a, TableArm)]


def _stands_in(arm: TableArm, rows: Rows) -> bool:
    """Return whether a table has the figure of an arm."""
    try:
        arm.figure(rows)
    except LookupError:
        return False
    return True
