"""Runtimes of others that are the better choice, by measured time and quality.

The figures are those of docs/benchmarks/rivals.md. `benchmarks/decode.py` measures those of
language models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..core.files import read_json
from ..kernels import native

FILE = Path(__file__).with_suffix(".json")
KINDS = ("text", "picture")
LOWER = ("perplexity",)  # of which less is better


@dataclass(frozen=True)
class RuntimeFigures:
    """A way to run one net.

    format: ours, by its name on the command line; None = another runtime.  ms: a token or a
    picture.  megabytes: that are read for it; quality: perplexity or top-1; None = not measured.
    bits: of a weight, for a format that is measured at several.
    """

    name: str
    format: str | None
    ms: float
    megabytes: float | None
    quality: float | None
    bits: int | None = None


@dataclass(frozen=True)
class Rivals:
    """The choices for one kind of net.

    net, unit: what was timed.  quality: the measure's name.  command: writes the net for another
    runtime.  measured: the day and the machine; instructions: of our kernels there.
    """

    net: str
    unit: str
    quality: str
    command: str
    choices: Sequence[RuntimeFigures]
    measured: str
    instructions: str

    def beats(self, runtime: RuntimeFigures, ours: RuntimeFigures) -> bool:
        """Return True if another runtime is at least as fast as a format of ours, and as good.

        runtime: the other runtime's figures; ours: those of the format. A runtime without a
        measured quality never beats it; for a format without one only the time counts.
        """
        if runtime.format is not None or runtime.ms > ours.ms or runtime.quality is None:
            return False
        sign = 1 if self.quality in LOWER else -1
        return ours.quality is None or sign * runtime.quality <= sign * ours.quality

    def better(
        self, format: str, bits: int | None = None
    ) -> tuple[RuntimeFigures, RuntimeFigures] | None:
        """Return the fastest runtime of others that beats our format, and the format's own figures.

        format: its name on the command line; bits: of a weight, None = any. If it was measured at
        several settings, the figures are those of the one with the best quality (`self.quality`
        names the measure; it may be a loss). None where nothing beats it, or it was not measured.
        """
        sign = 1 if self.quality in LOWER else -1
        candidates = [
            c for c in self.choices if c.format == format and (bits is None or c.bits == bits)
        ]
        if not candidates:
            return None
        # the format at its best quality, which is the fair comparison
        worst = float("inf")
        ours = min(candidates, key=lambda c: worst if c.quality is None else sign * c.quality)
        faster = [c for c in self.choices if self.beats(c, ours)]
        return (min(faster, key=lambda c: c.ms), ours) if faster else None


@cache
def rivals(kind: str) -> Rivals:
    """Read the table of measured runtimes for one kind of net.

    kind: "text" or "picture".
    """
    content: Mapping[str, Any] = read_json(FILE)[kind]
    return Rivals(
        **{**content, "choices": tuple(RuntimeFigures(**row) for row in content["choices"])}
    )


def advice(kind: str, format: str | None = None, bits: int | None = None) -> str | None:
    """Return a sentence on another runtime that is better than our format, with its command.

    kind: "text" or "picture"; format: its name, None = the fastest of ours; bits: of a weight, None
      = any. Returns None where no other runtime was measured to be better.
    """
    table = rivals(kind)
    ours = [choice for choice in table.choices if choice.format is not None]
    form = format
    if form is None:
        fastest = min(ours, key=lambda choice: choice.ms)
        form, bits = fastest.format, fastest.bits
    if form is None or (figures := table.better(form, bits)) is None:
        return None
    runtime, mine = figures
    # quality is compared only where both have been measured
    measured = runtime.quality is not None and mine.quality is not None
    qualities = (
        f", {table.quality} {runtime.quality:g} against {mine.quality:g}" if measured else ""
    )
    return (
        f"{runtime.name} is the {'better' if measured else 'faster'} choice than {mine.name} for "
        f"{table.net}: {runtime.ms:g} against {mine.ms:g} {table.unit}{qualities}{_note(table)}. "
        f"{table.command}"
    )


def _note(table: Rivals) -> str:
    """Return a note for a machine with other CPU instructions than the measurement's, else ""."""
    then, now = table.instructions, native.instructions()
    return "" if now == then else f" (measured with {then}; here: {now})"
