"""The page of pruned models: one HTML file that needs nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import CheckpointError, DataError
from ...core.files import read_json
from .. import looks, numbers
from ..report import Block, Container, Listing, Note, PageControl, Report, Section, present
from ..table import Column, Entry, Table
from ..wording import joined
from . import figures

RECORD = "sparsify.json"
BASELINE = "magnitude"
WANTED = ("method", "settings", "density", "layers", "bytes", "seconds", "model", "calibration")


class PrunedModel(NamedTuple):
    """A folder of `intarsia sparsify`; record: its sparsify.json."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def method(self) -> str:
        """The method, and of DSnoT its base."""
        base = self.record.get("base")
        return f"{self.record['method']} on {base}" if base else self.record["method"]

    @property
    def asked(self) -> float:
        """The density that was asked for; whole weights a row may make it a little more."""
        settings = self.record["settings"]
        return settings.get("base", settings)["density"]

    def perplexity(self, which: str) -> float | None:
        """Return the perplexity, "dense" or "pruned" (and recovered); None = not measured."""
        values = self.record.get("perplexity") or {}
        return (
            values.get("recovered", values.get(which)) if which == "pruned" else values.get(which)
        )


def _model_folders(folder: Path) -> list[Path]:
    return [folder] if (folder / RECORD).is_file() else [p.parent for p in _folders_below(folder)]


def _folders_below(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{RECORD}")) if folder.is_dir() else []


def gather(folders: Iterable[Path | str]) -> list[PrunedModel]:
    """Read the folders that `intarsia sparsify` wrote, and folders that contain such folders.

    Raises: DataError for a folder without sparsify.json; CheckpointError for a damaged one.
    """
    records: dict[Path, PrunedModel] = {}
    for source in map(Path, folders):
        model_folders = _model_folders(source)
        if not model_folders:
            fix = "Give folders of `intarsia sparsify` alone, or runs of `intarsia fit` alone."
            raise DataError(str(source), got=f"no {RECORD}", want="a pruned model", fix=fix)
        for folder in model_folders:
            # a folder named twice is read once
            records.setdefault(folder.resolve(), PrunedModel(folder, _read(folder / RECORD)))
    return list(records.values())


def _read(path: Path) -> Mapping[str, Any]:
    """Read sparsify.json, the record of a pruned model."""
    try:
        record: Any = read_json(path)
        missing = [name for name in WANTED if name not in record]
        if missing:
            raise ValueError(f"no {missing[0]!r}")
    except (OSError, ValueError, TypeError) as error:
        fix = "Prune again; the file is written by `intarsia sparsify`."
        raise CheckpointError(str(path), got=str(error), want="a record", fix=fix) from error
    return record


def report_of(pruned: Sequence[PrunedModel], heading: str | None = None) -> Report:
    """Return the report of pruned models.

    heading: its title, None for the methods and models.
    Raises: CheckpointError for a damaged record.
    """
    try:
        return _report(pruned, heading)
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        subject, fix = (
            f"{RECORD} of {len(pruned)} folders",
            "Prune again; `sparsify` writes the files.",
        )
        raise CheckpointError(subject, got=error, want="records", fix=fix) from error


def _report(pruned: Sequence[PrunedModel], heading: str | None) -> Report:
    shapes = looks_of(pruned)
    rows = tuple(shapes[methods(pruned).index(model.method)] for model in pruned)
    sections = [Section("Results", (dataclasses.replace(table_of(pruned), looks=rows),))]
    perplexity, size = figures.perplexity(pruned, methods(pruned), shapes), figures.sizes(pruned)
    if perplexity or size:
        several = perplexity is not None and len(shapes) > 1
        names = tuple(enumerate(methods(pruned)))
        control = PageControl("group", "Methods shown", names, "checkbox", looks=tuple(shapes))
        pair = Container(present(perplexity, size), kind="pair")
        sections.append(Section("Perplexity and size", present(control if several else None, pair)))
    sections.append(Section("Layer by layer", _layers(pruned)))
    return Report(
        heading or f"{joined(methods(pruned))} on {joined(models(pruned))}",
        tuple(sentences(pruned)),
        tuple(sections),
        tuple(notices(pruned)),
        "intarsia sparsify",
    )


def _layers(pruned: Sequence[PrunedModel]) -> tuple[Block, ...]:
    """Return the heat maps of each model's layers, and the warnings that pruning gave for some."""
    blocks: list[Block] = []
    if len(pruned) > 1:
        names = tuple(enumerate(label(model, pruned) for model in pruned))
        blocks.append(PageControl("folder", "Model", names))
    blocks.append(
        Note(
            "A row is a block, a column one of its layers. An error is that of the layer's output, "
            "||(W' \N{MINUS SIGN} W) X|| / ||W X||."
        )
    )
    for number, model in enumerate(pruned):
        maps = figures.maps(model.record["layers"], number)
        if not any(figure.name.startswith("after") for figure in maps):
            text = "Output errors were not measured: prune with --errors."
            blocks.append(Note(text, "missing", {"folder": number}))
        blocks.append(Container(tuple(maps), kind="pair", when={"folder": number}))
    for model in pruned:
        if lines := told_of(model):
            blocks.append(Container((Listing(tuple(lines)),), label(model, pruned)))
    return tuple(blocks)


def methods(pruned: Sequence[PrunedModel]) -> list[str]:
    return list(dict.fromkeys(model.method for model in pruned))


def models(pruned: Sequence[PrunedModel]) -> list[str]:
    return list(dict.fromkeys(Path(str(model.record["model"])).name for model in pruned))


def looks_of(pruned: Sequence[PrunedModel]) -> list[looks.Look]:
    """Return a colour and mark for each method; grey for pruning by magnitude among others."""
    names = methods(pruned)
    base = names.index(BASELINE) if BASELINE in names and len(names) > 1 else None
    return looks.looks_of(len(names), base)


def label(model: PrunedModel, among: Sequence[PrunedModel]) -> str:
    """Return a model's method and density, and its folder where those are not unique."""
    text = f"{model.method}, density {model.asked:g}"
    alike = [o for o in among if (o.method, o.asked) == (model.method, model.asked)]
    return text if len(alike) < 2 else f"{text}, {model.folder.name}"


def told_of(model: PrunedModel) -> list[str]:
    """Return the warnings that pruning gave for single layers of a model."""
    return [f"{row['layer']}: {row['told']}" for row in model.record["layers"] if row.get("told")]


def sentences(pruned: Sequence[PrunedModel]) -> list[str]:
    """Return the result in words: the best at each density that several methods were tried at.

    Perplexities of several models or texts stand side by side, and none of them is the best.
    """
    groups: dict[tuple[str, str], list[PrunedModel]] = {}
    for model in pruned:
        groups.setdefault(_source(model), []).append(model)
    lines: list[str] = []
    for (path, text), group in groups.items():
        name, on_text = ("the model", "") if len(groups) == 1 else (Path(path).name, f" on {text}")
        dense = next((d for model in group if (d := model.perplexity("dense"))), None)
        if dense is not None:
            lines.append(f"Dense, {name} has a perplexity of {dense:.1f}{on_text}.")
        by_density: dict[float, list[tuple[float, str]]] = {}
        for model in group:
            if (value := model.perplexity("pruned")) is not None:
                by_density.setdefault(model.asked, []).append((value, model.method))
        for density, values in sorted(by_density.items(), reverse=True):
            best = min(values)
            tail = f", the lowest of {len(values)}" if len(values) > 1 else ""
            lines.append(f"At density {density:g}, {best[1]} has {best[0]:.1f}{on_text}{tail}.")
    return lines or ["No perplexity was measured: prune with --test 16 or more."]


def _source(pruned: PrunedModel) -> tuple[str, str]:
    """Return the model that was pruned and the text, between which perplexities do not compare."""
    return str(pruned.record["model"]), str(pruned.record["calibration"]["data"])


def notices(pruned: Sequence[PrunedModel]) -> list[str]:
    """Return warnings: models that cannot be compared, and models that are not pruned."""
    lines: list[str] = []
    if len({_source(model) for model in pruned}) > 1:
        lines.append("The folders are of several models or texts: perplexities do not compare.")
    if any(math.isclose(model.record["density"], 1) for model in pruned):
        lines.append("One of them is dense.")
    return lines


COLUMNS = (
    Column("Method", "what chose the weights, and the folder", numeric=False),
    Column("Density", "the share of the pruned layers' weights that is kept"),
    Column("Perplexity", "on held-out rows of the calibration text; lower is better"),
    Column("Over dense", "that perplexity over the dense model's"),
    Column("Dense", "bytes of the pruned layers as they are"),
    Column("Bitmask", "the same with kept values and one bit a weight"),
    Column("Seconds", "of pruning"),
)


def calibration(model: PrunedModel) -> str:
    """Return which texts a model was calibrated on, with the number of rows of each."""
    record = model.record["calibration"]
    texts = record.get("of") or {}
    shares = (
        f" ({joined([f'{n} of {name}' for name, n in texts.items()])})" if len(texts) > 1 else ""
    )
    return f"{record['rows']} rows of {record['tokens']} tokens of {record['data']}{shares}"


def table_of(models: Sequence[PrunedModel]) -> Table:
    """Return the table of results, a row for each model; its caption names the texts."""
    rows: list[tuple[Entry, ...]] = []
    for model in models:
        pruned, dense = model.perplexity("pruned"), model.perplexity("dense")
        over = "" if pruned is None or dense is None else f"{pruned / dense:.2f}"
        rows.append(
            (
                Entry(model.method, model.folder.name),
                Entry(f"{model.record['density']:.3f}"),
                Entry("" if pruned is None else f"{pruned:.1f}"),
                Entry(over),
                *(
                    Entry(numbers.prefixed(model.record["bytes"][k], "B"))
                    for k in ("dense", "bitmask")
                ),
                Entry(f"{model.record['seconds']:.0f}"),
            )
        )
    # the lowest perplexity is the best row, where they are of one model on one text
    values = [model.perplexity("pruned") for model in models]
    measured = [v for v in values if v is not None]
    comparable = len({_source(model) for model in models}) == 1
    best = values.index(min(measured)) if measured and comparable else None
    folders: dict[str, list[str]] = {}
    for model in models:
        folders.setdefault(calibration(model), []).append(model.folder.name)
    texts = [
        f"{text}: {joined(names)}" if len(folders) > 1 else text for text, names in folders.items()
    ]
    return Table(f"Calibrated on {'; on '.join(texts)}.", COLUMNS, tuple(rows), best=best)
