"""The report of a comparison of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.reading import open_regular
from .. import numbers
from ..pictures import LARGEST, embedded_pictures
from ..report import (
    Block,
    Commands,
    Container,
    Facts,
    Gallery,
    Note,
    PageControl,
    Report,
    Section,
    Thumbnail,
    present,
)
from ..table import Entry, Table, plain
from ..wording import capital
from ..writing import write
from . import figures, rates, sparse
from .confusion import confusion_of
from .curves import line_of, mean_line, metrics_of
from .grouping import Comparison, RunGroup, comparison_of
from .mistakes import Mistake
from .reading import gather
from .routing import routings
from .sentences import notices, selection_rule, sentences, title
from .settings_rows import (
    commands,
    data_parts,
    given_rows,
    machine_rows,
    method_rows,
    run_rows,
    setting_rows,
)
from .tables import table_of


def write_report(
    folders: Iterable[Path | str],
    out: Path | str,
    *,
    baseline: str | None = None,
    heading: str | None = None,
    others: Table | None = None,
) -> Path:
    """Read run folders, compare the runs, and write the report to `out`; return its path.

    baseline: label of the method the others are compared with, None = the first. heading: the
      page's title, None = the methods and the data set. others: a table of candidates that were not
      chosen, below the results. The same runs give the same bytes.
    Raises: DataError, CheckpointError and UnknownName as `gather` and `comparison_of` do;
      TrainingError when the file cannot be written.
    """
    comparison = comparison_of(gather(folders), baseline)
    return write(report_of(comparison, heading=heading, others=others), out)


def report_of(
    comparison: Comparison, *, heading: str | None = None, others: Table | None = None
) -> Report:
    """Build the report of a comparison: results, costs, curves, errors, routing and settings.

    heading: its title, None = the methods and the data set.
    """
    looks = tuple(figures.looks(comparison))
    sections = [
        Section("Results", (dataclasses.replace(table_of(comparison), looks=looks),)),
        *([Section("What else was tried", (others,), "others")] if others else []),
        *_costs(comparison),
        *_rates(comparison),
        _curves(comparison),
        *_masks(comparison),
        *_soups(comparison),
        *_errors(comparison),
        *_routing(comparison),
        _record(comparison),
    ]
    return Report(
        heading or title(comparison),
        tuple(sentences(comparison)),
        tuple(sections),
        tuple(notices(comparison)),
        "intarsia report",
    )


def _several_seeds(comparison: Comparison) -> bool:
    return any(len(group.runs) > 1 for group in comparison.groups)


def _costs(comparison: Comparison) -> list[Section]:
    """Return the section with scores against costs; none for a single method."""
    groups = comparison.groups
    if len(groups) < 2:
        return []
    names = tuple((i, group.label) for i, group in enumerate(groups))
    label = "Methods shown, here and in the other drawings"
    looks = tuple(figures.looks(comparison))
    # ticks of this control show and hide methods in all charts
    control = PageControl("group", label, names, "checkbox", looks=looks)
    text = "Up and to the left is better."
    if _several_seeds(comparison):
        text += " Large marks are means with their spread, small ones single seeds."
    pair = Container((figures.by_parameters(comparison), figures.by_time(comparison)), kind="pair")
    title = f"{capital(comparison.measure)} and cost"
    return [Section(title, (control, Note(text), pair), "plots")]


def _rates(comparison: Comparison) -> list[Section]:
    figure = rates.against_rates(comparison, figures.looks(comparison))
    return [Section("Learning rates", (figure,), "rates")] if figure else []


def _curves(comparison: Comparison) -> Section:
    """Return the section of learning curves, with the score by epoch as a table."""
    drawn = figures.curves(comparison)
    if not drawn:
        text = "These runs kept no metrics.jsonl, so there are no curves."
        return Section("Learning curves", (Note(text, "missing"),), "curves")
    metrics = metrics_of(run.curve for run in comparison.runs)
    metric = PageControl("metric", "Show", tuple((m, figures.metric_name(m)) for m in metrics))
    splits = figures.splits_of(comparison)
    readable = len(comparison.groups) <= 4
    # with many methods the training lines would hide the validation lines
    first = tuple(split for split, _ in splits if split != "train" or readable)
    parts = PageControl("split", "Parts", splits, "checkbox", first or (splits[0][0],))
    seeds = PageControl(
        "seed", "Lines", (("mean", "mean"), ("single", "each seed")), "checkbox", ("mean",)
    )
    several = _several_seeds(comparison)
    text = "Training values are means over the steps of an epoch; their lines are dotted."
    text = ("Means over seeds. " if several else "") + text
    blocks = present(
        metric, parts, seeds if several else None, Note(text), *drawn, _curve_table(comparison)
    )
    return Section("Learning curves", blocks, "curves")


def _curve_table(comparison: Comparison) -> Table | None:
    """Return a table of the mean score by epoch, on validation or else on training."""
    # validation comes first; training is the second choice
    for split, name in reversed(figures.SPLITS.items()):
        lines = [
            mean_line(line_of(run.curve, split, run.scores.measure) for run in group.runs)
            for group in comparison.groups
        ]
        epochs = sorted({epoch for line in lines for epoch in line})
        if epochs:
            rows = [
                [f"{epoch:g}", *(numbers.percent(x[epoch]) if epoch in x else "" for x in lines)]
                for epoch in epochs
            ]
            titles = ["Epoch", *(group.label for group in comparison.groups)]
            fold = f"Mean {name} {comparison.measure} by epoch, as a table"
            return plain("", titles, rows, fold=fold)
    return None


def _masks(comparison: Comparison) -> list[Section]:
    """Return the section about sparse masks, densities by layer and over time; [] without masks."""
    densities = sparse.densities(comparison)
    if densities is None:
        return []
    blocks: list[Block] = []
    if courses := sparse.courses(comparison, figures.looks(comparison)):
        blocks += [PageControl("course", "Show", tuple(sparse.COURSES.items())), *courses]
    return [Section("Masks", (*blocks, densities), "masks")]


def _soups(comparison: Comparison) -> list[Section]:
    """Return the section about averaged models (soups) and their candidates, if there are any."""
    tables = sparse.soups(comparison)
    figure = sparse.lines(comparison, figures.looks(comparison))
    blocks = present(figure, *tables)
    return [Section("Candidates of the soup", blocks, "soups")] if tables else []


def _errors(comparison: Comparison) -> list[Section]:
    """Return the section of confusions and worst mistakes of each method, for runs on pictures."""
    if not any(run.samples == "pictures" for run in comparison.runs):
        return []
    groups = comparison.groups
    blocks: list[Block] = []
    if len(groups) > 1:
        names = tuple((i, group.label) for i, group in enumerate(groups))
        best = groups.index(comparison.best)
        blocks.append(PageControl("method", "Method", names, chosen=(best,)))
    if any(confusion_of(group) is not None for group in groups):
        modes = (("shares", "% of each row"), ("counts", "counts"))
        blocks.append(PageControl("mode", "Numbers in the matrix", modes, "radio"))
    # the page's bytes for pictures are divided among the methods
    share = LARGEST // len(groups)
    for number, group in enumerate(groups):
        inside = (
            *_confusion(comparison, number),
            *_mistakes(group, share, _several_seeds(comparison)),
        )
        blocks.append(
            Container(inside, group.label if len(groups) > 1 else "", "", {"method": number})
        )
    return [Section("Where it errs", tuple(blocks), "errors")]


def _confusion(comparison: Comparison, number: int) -> tuple[Block, ...]:
    """Return a method's confusion matrix and a table of its most frequent confusions."""
    group = comparison.groups[number]
    # the figure may join rare classes; the table is of all pairs
    confusion, complete = confusion_of(group), confusion_of(group, limit=10**9)
    if confusion is None or complete is None:
        text = "No predictions were kept, so there is no confusion matrix."
        if comparison.several_labels:
            text = "A picture may have several labels, so there is no confusion matrix."
        return (Note(text, "missing"),)
    pairs = _pairs(complete.classes, complete.counts.tolist())
    caption, titles = "Most frequent confusions", ["Class", "Taken for", "Pictures"]
    table = plain(caption, titles, pairs, words=2) if pairs else None
    notes = [Note(f"Sums over {confusion.runs} seeds.")] if confusion.runs > 1 else []
    if confusion.joined:
        text = (
            f"The last row and column join the {confusion.joined} classes that are mixed up least."
        )
        notes.append(Note(text))
    # counts and shares; a control shows one of them
    matrix = Container(tuple(figures.confusions(confusion, number)))
    return (Container((matrix, Container(present(table, *notes))), kind="pair"),)


def _pairs(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> list[tuple[str, str, int]]:
    """Return the eight most frequent confusions as (true class, predicted class, count)."""
    pairs = [
        (classes[i], classes[j], n)
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
        if i != j and n
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:8]


def _mistakes(group: RunGroup, largest: int, several: bool) -> tuple[Block, ...]:
    """Return the pictures with the worst mistakes, of a method's first run that stored some."""
    # one seed is enough to look at
    run = next((run for run in group.runs if run.mistakes is not None), None)
    if run is None or run.mistakes is None:
        return (Note("No pictures of mistakes were kept.", "missing"),)
    mistakes = run.mistakes
    if not mistakes.shown:
        return (Note(f"No mistakes in {numbers.plural(mistakes.n, 'picture')}.", "missing"),)
    addresses = embedded_pictures(
        [_picture(mistake.picture) for mistake in mistakes.shown], largest
    )
    answers = numbers.plural(len(mistakes.shown), "wrong answer")
    wrong, count = numbers.plural(mistakes.wrong, "mistake"), numbers.plural(mistakes.n, "picture")
    text = f"The {answers} given with the most confidence, out of {wrong} in {count}"
    text += f", seed {run.seed}" if several else ""
    text += ". In bold the answer and its confidence, below it what the picture is."
    pictures = tuple(map(_thumbnail, mistakes.shown, addresses))
    return (Container((Gallery(pictures, text),), "Worst mistakes"),)


def _picture(path: Path) -> Image.Image:
    with open_regular(path) as raw, Image.open(raw, formats=["PNG"]) as picture:
        return picture.convert("RGB")


def _thumbnail(mistake: Mistake, address: str) -> Thumbnail:
    """Return a mistake as a small picture with the predicted class and the true one."""
    return Thumbnail(
        address,
        f"Picture {mistake.index}: {mistake.true}, taken for {mistake.predicted}",
        f"{mistake.predicted} {numbers.percent(mistake.confidence, 0)}",
        f"is {mistake.true}",
        pixels=mistake.side < 80,
    )


def _routing(comparison: Comparison) -> list[Section]:
    """Return the section with the share of tokens of each expert, a table for each method."""
    routers = routings(comparison)
    if not routers:
        return []
    text = (
        "Share of each expert in the last epoch of training, one row for each router. Variation is "
        "the standard deviation of the shares over their mean: 0 is even."
    )
    tables: list[Table] = []
    for routed in routers:
        rows: list[list[Any]] = []
        for row in routed.rows:
            load = row.load
            name = f"{row.place} (collapsed)" if load.collapsed else row.place
            shares = [Entry(numbers.percent(s, 0), shade=s) for s in load.share]
            # routers may have fewer experts than the widest one
            empty = [Entry("")] * (routed.experts - len(shares))
            head = Entry(name, place="warn" if load.collapsed else "")
            rows.append([head, *shares, *empty, f"{load.variation:.2f}", f"{load.entropy:.2f}"])
        titles = ["Router", *map(str, range(routed.experts)), "Variation", "Entropy"]
        caption = routed.label if len(comparison.groups) > 1 else ""
        tables.append(plain(caption, titles, rows))
    return [Section("Who routes where", (Note(text), *tables), "routing")]


def _record(comparison: Comparison) -> Section:
    """Return the section with everything that is needed to judge and to repeat the runs."""
    # what differs is shown; what all share is folded away
    common, differing = setting_rows(comparison)
    several = len(comparison.groups) > 1
    runs = run_rows(comparison)
    notes, lines = given_rows(comparison), commands(comparison.runs)
    methods = Facts(tuple(method_rows(comparison)), code=True)
    labels = [group.label for group in comparison.groups]
    # from what decides a result to what only repeats it
    blocks: list[Block] = [
        Container((Note(selection_rule(comparison.runs), ""),), "Selection"),
        Container(_data(comparison, len(runs.rows) > 1), "Data"),
        Container((methods,), "Methods" if several else "Method"),
    ]
    if differing:
        rows = [[name, *values] for name, values in differing]
        table = plain("", ["Setting", *labels], rows, words=len(labels) + 1)
        blocks.append(Container((table,), "Settings that differ"))
    shared = "Settings that all share" if several else "Settings"
    blocks.append(Container((Facts(tuple(common)),), shared, "fold"))
    if notes:
        blocks.append(Container((Facts(tuple(notes)),), "Noted by the caller", "fold"))
    machine = Facts(tuple(machine_rows(comparison.runs[0])))
    blocks += [Container((machine,), "Machine and versions", "fold"), runs]
    if lines:
        blocks.append(Container((Commands(tuple(lines)),), "To repeat it"))
    return Section("Record", tuple(blocks), "record")


def _data(comparison: Comparison, several: bool) -> tuple[Block, ...]:
    """Return a table of the parts of the data with their digests, and where they are from."""
    parts = data_parts(comparison)
    pictured = any(run.samples == "pictures" for run in comparison.runs)
    titles = ["Part", "Pictures" if pictured else "Rows"]
    titles.append(f"SHA-256 of {'pixels and labels' if pictured else 'tokens'}")
    rows = [[Entry(p.name, p.classes), p.count, p.sha256] for p in parts["parts"]]
    blocks: list[Block] = []
    if rows:
        table = plain("", titles, rows)
        columns = (*table.columns[:2], dataclasses.replace(table.columns[2], numeric=False))
        blocks.append(dataclasses.replace(table, columns=columns))
        if several:
            text = f"These are the parts of seed {parts['seed']}; other runs had others."
            blocks.append(Note("All runs used exactly these." if parts["same"] else text))
    if parts["origin"]:
        blocks.append(Facts(tuple(parts["origin"])))
    return tuple(blocks)
