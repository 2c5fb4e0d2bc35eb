"""Techniques that make sparse models cheaper, alone and in pairs: a survey's list made runnable.

Which techniques can be put on one model, in which order, how much they save together, and whether
their costs add up (after the survey arXiv:2412.14219). Bytes are those that would be written,
operations and traffic are counted, times of devices are simulated and said to be.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from ..core.errors import ConfigError, UnknownName
from ..sparse.swap.stock import gated_experts
from .stack_entries import ENTRIES, Batch, Stacked
from .stack_measures import Measured, measure

SAMPLES = 1000
Report = Callable[[str], None]


def parsed(spec: str, *, alone: bool = False) -> dict[str, str]:
    """Read "prune:0.25,quant:w4" as techniques with their settings, in the order of their use.

    spec: names of ENTRIES, with a value after a colon. alone: each is put on a model of its own, so
    that conflicts do not matter.
    Raises: UnknownName, ConfigError for a technique given twice, with a value that it does not
    take, in an order that cannot be, or with one that it conflicts with.
    """
    values: dict[str, str] = {}
    for word in (w.strip() for w in spec.split(",") if w.strip()):
        name, _, value = word.partition(":")
        if name not in ENTRIES:
            raise UnknownName("entry", name, tuple(ENTRIES))
        if name in values:
            raise ConfigError("entry", got=f"{name} twice", want="once", fix="Leave one out.")
        values[name] = value or ENTRIES[name].default
        ENTRIES[name].read(values[name])
    if not values:
        raise ConfigError("entries", got="none", want=tuple(ENTRIES), fix="For example: quant:w4")
    if not alone:
        check(tuple(values))
    # pruning a quantised model, for example, would undo its format: stages fix the order
    ordered = sorted(values, key=lambda name: ENTRIES[name].stage)
    if list(values) != ordered:
        fix = f"Give {','.join(f'{n}:{values[n]}' for n in ordered)}."
        got, want = ",".join(values), "an order in which none undoes the one before"
        raise ConfigError("order of entries", got=got, want=want, fix=fix)
    return values


def conflict(names: Sequence[str]) -> str | None:
    """Return why these techniques cannot be put on one model together, or None if they can."""
    # an entry names its conflicts, or the other one does
    for a, b in combinations(names, 2):
        for first, second in ((a, b), (b, a)):
            if reason := ENTRIES[first].conflicts.get(second):
                return f"{first} and {second}: {reason}"
    return None


def check(names: Sequence[str]) -> None:
    """Check that no two of these entries are in conflict.  Raises: ConfigError."""
    if reason := conflict(names):
        raise ConfigError("entries", got=reason, want="one of the two", fix="Leave one out.")


def stacked(
    model: Any,
    settings: Mapping[str, str],
    calibration: Sequence[Batch],
    rows: Sequence[Batch],
) -> Measured:
    """Put techniques on a copy of a model, which make it cheaper, and measure the copy.

    model: with experts, left as it is. settings: technique (a key of ENTRIES, as "prune") -> value,
    such as "0.25". calibration: batches by which the techniques choose, such as the least used
    experts; rows: other batches, to measure on.
    Raises: as `parsed`, and TargetError for experts of another layout.
    """
    check(tuple(settings))
    gated_experts(model)
    # each combination starts from the same model
    cheaper = Stacked(copy.deepcopy(model), calibration)
    cheaper.model.set_experts_implementation("eager")
    for name in sorted(settings, key=lambda name: ENTRIES[name].stage):
        ENTRIES[name].carry(cheaper, settings[name])
    return measure(cheaper, tuple(settings), rows)


@dataclass(frozen=True)
class StackTable:
    """Everything that was measured: none, single entries, pairs; refused pairs with the reason."""

    found: Mapping[tuple[str, ...], Measured]
    refused: Mapping[tuple[str, ...], str]

    def interaction(self, a: str, b: str, seed: int = 0) -> tuple[float, float, float]:
        """Return by how much two techniques cost more than the sum of both, in nats a token.

        a, b: their names; with CE the cross-entropy, CE(ab) - CE(a) - CE(b) + CE(none) for each
        sequence: the mean, and the bounds of its 95 % interval, by resampling sequences. seed: of
        the resampling.
        """
        # the names in a pair have the order of the settings
        pair = self.found.get((a, b)) or self.found[b, a]
        none, first, two = (self.found[k].each for k in ((), (a,), (b,)))
        excess = pair.each - first - two + none
        draws = torch.Generator().manual_seed(seed)
        # bootstrap: whole sequences are drawn again, since tokens of one are not independent
        drawn = torch.randint(len(excess), (SAMPLES, len(excess)), generator=draws)
        low, high = excess[drawn].mean(1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return float(excess.mean()), low, high

    def front(self) -> list[tuple[str, ...]]:
        """Return the combinations that no other beats in loss, bytes and operations at once.

        These are the Pareto front of the table.
        """
        points = {k: (m.loss, m.bytes, m.operations) for k, m in self.found.items()}

        # Pareto front: no other point is at least as good in all three and differs
        def beaten(p: tuple[float, ...]) -> bool:
            """Return True if another point is as small in all three measures, and not equal."""
            return any(
                all(x <= y for x, y in zip(q, p, strict=True)) and q != p for q in points.values()
            )

        return [k for k, p in points.items() if not beaten(p)]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each combination of techniques, for JSON and tables.

        A pair also has its interaction, its cost beyond the sum of both.
        """
        front = set(self.front())
        rows: list[dict[str, Any]] = []
        for names, measured in self.found.items():
            row = measured.row() | {"front": names in front}
            if len(names) == 2 and all((name,) in self.found for name in names):
                row["interaction"] = self.interaction(*names)
            rows.append(row)
        return rows

    def digest(self) -> str:
        """Return the SHA-256 of all but the seconds that the processor took."""
        stable = [{n: v for n, v in row.items() if n != "cpu_seconds"} for row in self.rows()]
        return hashlib.sha256(json.dumps(stable).encode()).hexdigest()


def stack_pairs(
    model: Any,
    settings: Mapping[str, str],
    calibration: Sequence[Batch],
    rows: Sequence[Batch],
    *,
    pairs: bool = True,
    report: Report = lambda _: None,
) -> StackTable:
    """Measure a model as it is, with each technique that makes it cheaper, and with each pair.

    settings: technique (a key of ENTRIES, as "prune") -> value. calibration: batches for those that
    need them. rows: batches to measure on. pairs: False measures no pairs. report: gets a line for
    each measurement. Pairs that cannot be together are listed with the reason.
    """
    plan: list[tuple[str, ...]] = [(), *((name,) for name in settings)]
    plan += list(combinations(settings, 2)) if pairs else []
    measured: dict[tuple[str, ...], Measured] = {}
    refused: dict[tuple[str, ...], str] = {}
    for names in plan:
        if reason := conflict(names):
            refused[names] = reason
            continue
        measured[names] = stacked(model, {n: settings[n] for n in names}, calibration, rows)
        report(f"{' + '.join(names) or 'none'}: {measured[names].loss:.4f} nats")
    return StackTable(measured, refused)


def stack_of(
    model: Any,
    settings: Mapping[str, str],
    calibration: Sequence[Batch],
    rows: Sequence[Batch],
    *,
    report: Report = lambda _: None,
) -> StackTable:
    """Measure a model as it is, with the first technique, with the first two, up to all of them.

    settings: technique (a key of ENTRIES, as "prune") -> value. calibration: batches for those that
    need them.
    """
    names = tuple(settings)
    prefixes = [names[:count] for count in range(len(names) + 1)]
    measured: dict[tuple[str, ...], Measured] = {}
    for some in prefixes:
        measured[some] = stacked(model, {n: settings[n] for n in some}, calibration, rows)
        report(f"{' + '.join(some) or 'none'}: {measured[some].loss:.4f} nats")
    return StackTable(measured, {})


def broken(table: StackTable, tolerance: float = 1e-5) -> list[str]:
    """Return a sentence for each technique that changes outputs which it claims to preserve.

    tolerance: largest difference of losses in nats that counts as none. Also a sentence for each
    combination with outputs that change when its experts are offloaded.
    """
    bad: list[str] = []
    for names, measured in table.found.items():
        for name in names:
            rest = tuple(n for n in names if n != name)
            # compare with the same combination without this entry
            if "outputs" in ENTRIES[name].preserves and rest in table.found:
                apart = float((measured.each - table.found[rest].each).abs().max())
                if apart > tolerance:
                    bad.append(f"{name} with {rest or 'none'}: outputs differ by {apart:.2g}")
        if measured.exact is False:
            bad.append(f"{names}: the offloaded model says other bits")
    return bad
