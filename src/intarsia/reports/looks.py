"""Looks of the series of a report: a colour and a mark that set each one off."""

from __future__ import annotations

from dataclasses import dataclass

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
COLORS = 7  # of the style sheet, apart from grey
# paths in a box of 16 by 16, in the order of SYMBOLS
MARKS = (
    "M8 2a6 6 0 1 0 .01 0z",
    "M2.5 2.5h11v11h-11z",
    "M8 1l7 7-7 7-7-7z",
    "M8 2l7 12H1z",
    "M5.5 1.5h5v4h4v5h-4v4h-5v-4h-4v-5h4z",
    "M4 1l4 4 4-4 3 3-4 4 4 4-3 3-4-4-4 4-3-3 4-4-4-4z",
    "M8 .8l2.2 5 5.3.5-4 3.6 1.2 5.3L8 12.4l-4.7 2.8 1.2-5.3-4-3.6 5.3-.5z",
    "M1 2h14L8 14z",
)
LONGEST = 18  # letters of a class on an axis


@dataclass(frozen=True)
class Look:
    """A number of the style sheet's colours, and a number of SYMBOLS."""

    color: int
    symbol: int


def looks_of(count: int, baseline: int | None) -> list[Look]:
    """Return a colour and a mark for each of `count` series of a chart.

    baseline: the index of the series that is a grey circle; None = no such series.
    """
    # colours repeat after COLORS series, each time with another mark
    looks = [Look(n % COLORS + 1, (n + n // COLORS) % 7 + 1) for n in range(count)]
    # the baseline is grey and takes no colour from the others
    if baseline is not None:
        looks.insert(baseline, Look(0, 0))
    return looks[:count]


def short(text: str, longest: int = LONGEST) -> str:
    """Cut a name to `longest` letters, so that it fits on an axis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
