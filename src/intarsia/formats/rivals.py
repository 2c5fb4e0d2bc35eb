"""Choices that are better than a format of ours, by measured time and quality.

The figures are in docs/benchmarks/rivals.md. `benchmarks/decode.py` measures the ones for language
models, `benchmarks/lite0.py` the ones for a convolutional net.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..core.files import read_json
from ..kernels import native

FILE = Path(__file__).with_suffix(".json")
KINDS = ("text", "picture")
LOWER = ("perplexity",)  # less is better
TIMES = 2.0  # of the perplexity of dense 4 bits: beyond it a format is of no use


@dataclass(frozen=True)
class RuntimeFigures:
    """A way to run one net.

    format: ours, by its name on the command line; None = another runtime.  ms: a token or a
    picture.  megabytes: that are read for it; quality: perplexity or top-1; None = not measured.
    bits: of a weight, for a format that is measured at several.  density: share of weights kept.
    command: writes it; "" = the table's command, for other runtimes.
    """

    name: str
    format: str | None
    ms: float
    megabytes: float | None
    quality: float | None
    bits: int | None = None
    density: float = 1.0
    command: str = ""


class BetterChoice(NamedTuple):
    """A choice that is better than a format of ours, the format's own figures, and their run."""

    choice: RuntimeFigures
    ours: RuntimeFigures
    run: TimedRun


@dataclass(frozen=True)
class TimedRun:
    """Figures of one run, in which choices took turns; figures of two runs are not compared.

    day, machine: when and on what; instructions: of our kernels there.  command: repeats the run.
    quality: the measure's name.
    """

    day: str
    machine: str
    instructions: str
    command: str
    quality: str
    choices: Sequence[RuntimeFigures]

    @property
    def formats(self) -> frozenset[tuple[str, int | None, float]]:
        """Our formats that were measured: name, bits and density."""
        return frozenset(
            (choice.format, choice.bits, choice.density)
            for choice in self.choices
            if choice.format is not None
        )

    def loss(self, choice: RuntimeFigures) -> float:
        """Return the quality as a number where less is better; infinite if not measured."""
        if choice.quality is None:
            return float("inf")
        return choice.quality if self.quality in LOWER else -choice.quality

    def measured(
        self, format: str, bits: int | None = None, density: float | None = None
    ) -> RuntimeFigures | None:
        """Return the figures of a format of ours, None if it was not measured.

        format: its name on the command line; bits: of a weight, None = any; density: share of the
        weights that is kept, None = any. Where it was not measured, the next larger density counts:
        a format that is bad with more weights is no better with fewer. Of several settings the one
        with the best quality is returned, which is the fair comparison.
        """
        candidates = [
            choice
            for choice in self.choices
            if choice.format == format
            and (bits is None or choice.bits == bits)
            and (density is None or choice.density >= density)
        ]
        least = min((c.density for c in candidates), default=0.0)
        nearest = [c for c in candidates if density is None or c.density == least]
        return min(nearest, key=self.loss, default=None)

    def faster(self, ours: RuntimeFigures) -> BetterChoice | None:
        """Return the fastest choice that is no slower than our format, and no worse.

        Others' runtimes are choices, and formats of ours for which the table has a command. A
        choice without a measured quality is never better; for a format without one only the time
        counts.
        """
        better = [
            choice
            for choice in self.choices
            if (choice.format is None or choice.command)
            and choice != ours
            and choice.quality is not None
            and choice.ms <= ours.ms
            and self.loss(choice) <= self.loss(ours)
        ]
        return BetterChoice(min(better, key=lambda c: c.ms), ours, self) if better else None

    def instead(self, ours: RuntimeFigures) -> BetterChoice | None:
        """Return dense 4 bits where our format has more than `TIMES` its perplexity.

        A small and fast format may be of no use all the same. None for a format that is good
        enough, or was measured by an accuracy.
        """
        dense = [c for c in self.choices if c.bits == 4 and c.density == 1]
        if self.quality not in LOWER or ours.quality is None or not dense:
            return None
        # ours first, which the same command writes
        choice = min(dense, key=lambda c: (c.format is None, self.loss(c)))
        too_much = ours.quality > TIMES * self.loss(choice)
        return BetterChoice(choice, ours, self) if too_much else None

    def better(self, ours: RuntimeFigures) -> BetterChoice | None:
        """Return the choice to take instead of our format: faster, or better where ours is bad."""
        return self.faster(ours) or self.instead(ours)


@dataclass(frozen=True)
class Rivals:
    """The choices for one kind of net.

    net, unit: the net and the unit that were timed.  command: writes the net for another runtime.
    runs: the newest first.
    """

    net: str
    unit: str
    command: str
    runs: Sequence[TimedRun]

    def better(
        self, format: str, bits: int | None = None, density: float | None = None
    ) -> BetterChoice | None:
        """Return the choice to take instead of a format of ours, by the newest run that has it.

        format, bits, density: see `TimedRun.measured`. None where nothing is better, or the format
        was not measured.
        """
        for run in self.runs:
            if (ours := run.measured(format, bits, density)) is not None:
                return run.better(ours)
        return None


@cache
def rivals(kind: str) -> Rivals:
    """Read the table of measured choices for one kind of net.  kind: "text" or "picture"."""
    content: Mapping[str, Any] = read_json(FILE)[kind]
    runs = (
        TimedRun(**{**run, "choices": tuple(RuntimeFigures(**row) for row in run["choices"])})
        for run in content["runs"]
    )
    return Rivals(**{**content, "runs": tuple(runs)})


def record(kind: str, run: TimedRun) -> None:
    """Write a new run into the table, before the others.

    An older run is left out once all of its formats of ours have been measured again.
    kind: "text" or "picture".
    """
    content = dict(read_json(FILE))
    table = rivals(kind)
    older = [former for former in table.runs if not former.formats <= run.formats]
    content[kind] = asdict(replace(table, runs=(run, *older)))
    FILE.write_text(json.dumps(content, indent=1) + "\n")
    rivals.cache_clear()


def advice(
    kind: str, format: str | None = None, bits: int | None = None, density: float | None = None
) -> str | None:
    """Return a sentence on a choice that is better than our format, with its command.

    kind: "text" or "picture"; format: its name, None = the fastest of ours; bits, density: see
    `TimedRun.measured`. Returns None where nothing was measured to be better.
    """
    table = rivals(kind)
    if format is None:
        ours = [c for c in table.runs[0].choices if c.format is not None]
        fastest = min(ours, key=lambda choice: choice.ms)
        format, bits, density = fastest.format, fastest.bits, fastest.density
    assert format is not None
    if (better := table.better(format, bits, density)) is None:
        return None
    # of two rules: a choice is faster and no worse, or dense 4 bits are of far better quality
    by_time = better.run.faster(better.ours) is not None
    return (_of_time if by_time else _of_quality)(table, better)


def _of_time(table: Rivals, better: BetterChoice) -> str:
    """Return the sentence on a runtime that is faster and no worse."""
    runtime, mine, run = better
    # quality is compared only where both have been measured
    measured = runtime.quality is not None and mine.quality is not None
    qualities = f", {run.quality} {runtime.quality:g} against {mine.quality:g}" if measured else ""
    # the note is for a machine with other CPU instructions than the measurement's
    then, now = run.instructions, native.instructions()
    note = "" if now == then else f" (measured with {then}; here: {now})"
    return (
        f"{runtime.name} is the {'better' if measured else 'faster'} choice than {mine.name} for "
        f"{table.net}: {runtime.ms:g} against {mine.ms:g} {table.unit}{qualities}{note}. "
        f"{runtime.command or table.command}"
    )


def _of_quality(table: Rivals, better: BetterChoice) -> str:
    """Return the sentence on dense 4 bits, where a format has more than twice the perplexity."""
    dense, mine, run = better
    return (
        f"{mine.name} has {run.quality} {mine.quality:,g} on unseen texts for {table.net}, "
        f"{dense.name} {dense.quality:g}: take dense 4 bits, or keep more weights. "
        f"{dense.command or table.command}"
    )
