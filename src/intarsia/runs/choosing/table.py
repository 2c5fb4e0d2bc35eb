"""The table of `auto`: the choice, its members and its runners-up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...reports import numbers
from ...reports.runs.reading import measure, read_run
from ...reports.table import Column, Entry, Table
from ..own_rates import converges
from .certainty import named
from .folded import Row
from .judging import HeldOutAnswers, interval

if TYPE_CHECKING:
    from .auto import AutoRun

SHOWN = 8  # runners-up in the table, and on the page


def choice_table(run: AutoRun) -> Table:
    """Make the table of candidates: the choice with its test score, then the others.

    run: the result of `auto`, with the candidates in order, the best first.
    """
    metric = measure(run.test).replace("_", " ")
    columns = (
        Column("Method", "What was trained", numeric=False),
        Column("Model", "The pretrained backbone", numeric=False),
        Column("Size", "Side of the pictures in px"),
        Column("Epochs", "Passes over the training pictures; a probe is fitted to convergence"),
        Column("Rate", "Learning rate of AdamW", spare=3),
        Column("Blocks", "Blocks that are adapted, from the last; all if empty", spare=4),
        Column(f"Held-out {metric}", "Of pictures that the model was not trained on"),
        Column("Loss", "Mean loss on them after one temperature; it decides near ties", spare=2),
        Column("Behind", "Points that the choice is ahead, with the 95 % interval, paired"),
        Column("Time", "Of all its runs", spare=1),
        Column(f"Test {metric}", "Of the choice alone, trained on everything; looked at once"),
    )
    test = numbers.percent(run.test[measure(run.test)])
    scored = [row for row in run.rows if row.answers is not None and not row.error]
    members = [member.row for member in run.members]
    entries = [(*_choice_line(run), Entry(test))]
    if len(members) > 1:
        weights = {m.row.experiment.key: f"weight {m.weight:.2g}" for m in run.members}
    else:
        weights = {}
        scored = [row for row in scored if row is not members[0]]
    # members of a blend are always shown
    first = [row for row in scored if row.experiment.key in weights]
    rest = [row for row in scored if row.experiment.key not in weights][: SHOWN - len(first)]
    for row in sorted([*first, *rest], key=scored.index):
        note = weights.get(row.experiment.key, "")
        entries.append((*_line(row, run.answers, note), Entry("")))
    caption = _caption(run.folder, run.seconds)
    return Table(caption, columns, tuple(entries), best=0, baseline=None)


def _caption(folder: Path, seconds: float) -> str:
    """Return the sentence above the table."""
    test_pictures = read_run(folder).record["data"]["test"]["n"]
    return (
        f"The choice and its runners-up on held-out training pictures, and the choice on "
        f"{test_pictures:,} test pictures; {numbers.seconds(seconds)} in all."
    )


def _choice_line(run: AutoRun) -> tuple[Entry, ...]:
    """Make the line of the choice: all columns but the last one."""
    if len(run.members) == 1:
        return _line(run.members[0].row, None, "chosen")
    answers = run.answers
    seconds = sum(member.row.seconds for member in run.members)
    name = f"blend of {len(run.members)}"
    cells = (*("",) * 5, *_scores(answers), "", numbers.seconds(seconds))
    return (Entry(name, "chosen"), *map(Entry, cells))


def _scores(answers: HeldOutAnswers) -> tuple[str, str]:
    """Return a candidate's held-out score and loss as texts."""
    score = answers.totals[measure(answers.totals)]
    return numbers.percent(score), f"{answers.loss.mean():.3f}"


def _line(row: Row, best: HeldOutAnswers | None, note: str) -> tuple[Entry, ...]:
    """Make a candidate's line of the table: all columns but the last one, the test score."""
    experiment, answers = row.experiment, row.answers
    assert answers is not None
    behind = "" if best is None else _lead(best, answers)
    probe = converges(experiment)
    blocks = experiment.adapted.last_blocks
    cells = (experiment.adapted.model, str(experiment.adapted.size))
    epochs, rate = str(experiment.training.epochs), f"{experiment.training.rate:g}"
    # a probe is solved, not trained: it has no epochs, rate or blocks
    cells += ("", "", "") if probe else (epochs, rate, "" if blocks is None else str(blocks))
    cells += (*_scores(answers), behind, numbers.seconds(row.seconds))
    return (Entry(named(row), note), *map(Entry, cells))


def _lead(best: HeldOutAnswers, answers: HeldOutAnswers) -> str:
    """Return the choice's lead over a candidate as text."""
    gap = interval(best, answers)
    if gap is None:
        return "0.0"
    return f"{numbers.signed(100 * gap.mean)} {numbers.interval(gap.low, gap.high)}"
