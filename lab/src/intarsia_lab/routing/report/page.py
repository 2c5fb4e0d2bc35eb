"""The report of a comparison of routers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from intarsia.reports import numbers
from intarsia.reports.report import (
    Block,
    Container,
    Figure,
    Note,
    PageControl,
    Report,
    Section,
    present,
)
from intarsia.reports.table import Table, plain
from intarsia.reports.wording import joined

from . import figures
from .findings import RouterSheet, mean_loss, tidy
from .tables import notes, sentence, table_of

TRAINING = ("by_steps", "by_operations", "load_cv", "gate_entropy")
TEST = ("agreement", "specialisation", "loss_by_position")
DROPS = ("by_place", "by_position")


def report_of(sheets: Sequence[RouterSheet]) -> Report:
    """Return the report of a comparison of routers.

    sheets: the results on each data set and budget.
    """
    drawn = [figures.figures_of(sheets, number) for number in range(len(sheets))]
    training = (*_controls(sheets), *_side_by_side(drawn, TRAINING))
    # a table for each sheet, then figures of all
    sections = [Section(f"Results: {sheet.title}", (_table(sheet, sheets),)) for sheet in sheets]
    sections.append(Section("While training", training, "plots"))
    sections.append(Section("On the test part", _test_blocks(drawn), "test"))
    if experts := _expert_maps(sheets):
        sections.append(Section("Who has what", experts, "experts"))
    sections.append(Section("All runs", (_rows(sheets),), "cells"))
    return Report(
        _heading(sheets),
        tuple(sentence(sheet) for sheet in sheets),
        tuple(sections),
        # a warning that several sheets have stands once
        tuple(dict.fromkeys(note for sheet in sheets for note in notes(sheet))),
        "intarsia routers",
    )


def _heading(sheets: Sequence[RouterSheet]) -> str:
    data = list(dict.fromkeys(sheet.data for sheet in sheets))
    count = len(figures.names_of(sheets))
    return f"{numbers.plural(count, 'contender')} on {joined(data)}"


def _table(sheet: RouterSheet, sheets: Sequence[RouterSheet]) -> Table:
    """Return the table of a sheet, with the mark that each router has in all figures."""
    looks, names = figures.looks(sheets), figures.names_of(sheets)
    marks = tuple(looks[names.index(contender.name)] for contender in sheet.contenders)
    return dataclasses.replace(table_of(sheet), looks=marks)


def _controls(sheets: Sequence[RouterSheet]) -> tuple[Block, ...]:
    """Return the page's choices of sheet, routers, layer and seeds, where there are several."""
    names, layers = figures.names_of(sheets), _layers(sheets)
    seeds = any(len(results.rows) > 1 for sheet in sheets for results in sheet.contenders)
    on = PageControl("sheet", "On", tuple((i, sheet.title) for i, sheet in enumerate(sheets)))
    chosen_first = tuple(
        i for i, is_shown in enumerate(_visible_at_first(sheets, names)) if is_shown
    )
    looks = tuple(figures.looks(sheets))
    contenders = tuple(enumerate(names))
    contender = PageControl(
        "group", "Contenders shown", contenders, "checkbox", chosen_first, looks
    )
    # the mean over layers, or one layer by its number from 1
    depths = (("mean", "mean over layers"), *((i, str(i + 1)) for i in range(layers)))
    lines = (("mean", "means over seeds"), ("single", "single seeds, as thin lines"))
    note = "Loss on the validation part; the layer is that of load and entropy, and of drops."
    return present(
        on if len(sheets) > 1 else None,
        contender if len(names) > 1 else None,
        PageControl("layer", "Layer", depths) if layers > 1 else None,
        PageControl("seed", "Lines", lines, "checkbox", ("mean",)) if seeds else None,
        Note(note + (" Lines are means over seeds." if seeds else "")),
    )


def _layers(sheets: Sequence[RouterSheet]) -> int:
    return max(len(r["layers"]) for s in sheets for c in s.contenders for r in c.rows)


def _side_by_side(drawn: Sequence[dict[str, Figure]], names: Sequence[str]) -> tuple[Block, ...]:
    """Return the figures of these names, side by side, sheet by sheet."""
    figures_present = tuple(figures[name] for figures in drawn for name in names if name in figures)
    return (Container(figures_present, kind="pair"),) if figures_present else ()


def _test_blocks(drawn: Sequence[dict[str, Figure]]) -> tuple[Block, ...]:
    """Return the page's section on the test part.  drawn: figures of each sheet, by name."""
    agreement = Note(
        "Agreement: how much the first experts of two consecutive layers know of each other, "
        "0 = nothing, 1 = one follows from the other. Specialisation: the same of a token's first "
        "expert and its class or kind."
    )
    dropped = Note(
        "The share of a token's pairs that a full expert leaves out in training: by where it "
        "stands in the batch, rows one after another, and by where it stands in its row."
    )
    drops = _side_by_side(drawn, DROPS)
    below = (Container((dropped, *drops), "Dropped pairs"),) if drops else ()
    return (agreement, *_side_by_side(drawn, TEST), *below)


def _expert_maps(sheets: Sequence[RouterSheet]) -> tuple[Block, ...]:
    """Return the maps of experts by classes, and the choice of one of them."""
    maps = figures.maps(sheets)
    if not maps:
        return ()
    names = figures.names_of(sheets)
    # routers that have a map: a dense model has none
    groups = sorted({int(figure.when["contender"]) for figure in maps})
    depths = tuple((i, str(i + 1)) for i in range(_layers(sheets)))
    note = (
        "Of the tokens of each class or kind, the share in % whose first expert this is: experts "
        f"down, classes across. Seed {sheets[0].seeds[0]}."
    )
    contender = PageControl("contender", "Contender", tuple((i, names[i]) for i in groups))
    return (contender, PageControl("depth", "Layer", depths), Note(note), *maps)


def _rows(sheets: Sequence[RouterSheet]) -> Table:
    """Return a table with a row for each run."""
    titles = ["Contender", "Data", "Equal", "Seed", "Steps", "Test loss", "Difference", "Ratio"]
    rows = [_row(row) for row in tidy(sheets)]
    titles += ["Accuracy", "Operations", "CPU, s"]
    fold = f"{numbers.plural(len(rows), 'run')}, as a table"
    return plain("", titles, rows, words=3, fold=fold)


def _row(row: dict[str, Any]) -> list[str]:
    """Format the columns of a run as texts.  row: see `findings.tidy`."""
    apart, ratio = row["loss_difference"], row["loss_ratio"]
    return [
        row["contender"],
        row["data"],
        "operations" if row["budget"] == "flops" else "steps",
        str(row["seed"]),
        f"{row['steps']:,}",
        f"{row['loss']:.4f}",
        "" if apart is None else f"{apart:+.4f}",
        "" if ratio is None else f"{ratio:.4f}",
        f"{row['accuracy']:.4f}",
        f"{row['operations']:.3e}",
        f"{row['cpu_seconds']:.0f}",
    ]


def _visible_at_first(sheets: Sequence[RouterSheet], names: Sequence[str]) -> list[bool]:
    """Choose the routers that are visible at first: if there are many, the ones of lowest loss."""
    if len(names) <= figures.FEW:
        return [True] * len(names)
    names_shown = {sheet.baseline.name for sheet in sheets if sheet.baseline}
    for sheet in sheets:
        # the places are divided among the sheets
        ranked = sorted(sheet.contenders, key=mean_loss)
        names_shown |= {
            contender.name for contender in ranked[: (figures.FEW - 1) // len(sheets) or 1]
        }
    return [name in names_shown for name in names]
