"""What came out where a seed of a record was run again with newer code."""

from __future__ import annotations

from collections.abc import Sequence

from ..claims.bars import Line, of_claim
from ..claims.ledger import OLDER, Record, code_of

FEW = 6  # values that are printed one by one


def confirmed(record: Record, bars: Sequence[Line]) -> list[str]:
    """Return the Markdown of all confirmations of a record, equal or not, oldest first.

    bars: the ledger.
    """
    lines = of_claim(bars, record.key, "confirmation")
    # of an earlier run with other values they say nothing
    sentences = [said(line) for line in lines if line["record"] == record.digest]
    return [part for sentence in sentences for part in (sentence, "")]


def said(line: Line) -> str:
    """Return a confirmation in a sentence: seed, commit, date, machine and values."""
    seeds = ", ".join(map(str, line["seeds"]))
    run = f"{'Seeds' if len(line['seeds']) > 1 else 'Seed'} {seeds} run again"
    # a sum's order, and so its last digits, may depend on them
    threads = f"{line['threads']} thread{'s' * (line['threads'] > 1)}"
    place = f"at commit `{line['commit']}` on {line['date']}, {line['machine']}, {threads}"
    older = OLDER * (line["code"] != code_of(line["claim"]))
    return f"{run} {place}{older}: {_values(line['got'])}{_compared(line)}."


def _compared(line: Line) -> str:
    """Return what a confirmation's values are next to the stored ones, and what that says."""
    # the stored value itself is the strongest answer
    if line["equal"] and line["then"] is None:
        return ", as stored"
    stored = f"{_values(line['stored'])} stored"
    if line["equal"]:
        return f", {stored}; the record's own commit has the first here, too"
    # both ran on one machine, so that the code differs
    if line["then"] is not None:
        return f", {stored}; the record's own commit has {_values(line['then'])} here"
    return f", {stored}" + (f"; nothing is decided, since {line['why']}" if line["why"] else "")


def _values(values: Sequence[float]) -> str:
    """Return values in eight digits, or how many they are and the first ones."""
    digits = ", ".join(f"{value:.8g}" for value in values[:FEW])
    return digits if len(values) <= FEW else f"{digits}, ... ({len(values)} values)"
