"""The page of pruned models: one HTML file that needs nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import CheckpointError, DataError
from ...core.files import read_json
from .. import looks
from ..report import Block, Container, Control, Listing, Note, Report, Section, present
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
        """ "dense" or "pruned"; None = not measured."""
        return (self.record.get("perplexity") or {}).get(which)


def _in(folder: Path) -> list[Path]:
    return [folder] if (folder / RECORD).is_file() else [p.parent for p in _below(folder)]


def _below(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{RECORD}")) if folder.is_dir() else []


def gather(folders: Iterable[Path | str]) -> list[PrunedModel]:
    """Raises: DataError for a folder without sparsify.json; CheckpointError for a damaged one."""
    found: dict[Path, PrunedModel] = {}
    for given in map(Path, folders):
        here = _in(given)
        if not here:
            fix = "Give folders of `intarsia sparsify` alone, or runs of `intarsia fit` alone."
            raise DataError(str(given), got=f"no {RECORD}", want="a pruned model", fix=fix)
        for folder in here:
            found.setdefault(folder.resolve(), PrunedModel(folder, _read(folder / RECORD)))
    return list(found.values())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        record: Any = read_json(path)
        missing = [name for name in WANTED if name not in record]
        if missing:
            raise ValueError(f"no {missing[0]!r}")
    except (OSError, ValueError, TypeError) as error:
        fix = "Prune again; the file is written by `intarsia sparsify`."
        raise CheckpointError(str(path), got=str(error), want="a record", fix=fix) from error
    return record


def report_of(found: Sequence[PrunedModel], heading: str | None = None) -> Report:
    """Return the report of pruned models.  Raises: CheckpointError for a damaged record."""
    try:
        return _report(found, heading)
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what, fix = f"{RECORD} of {len(found)} folders", "Prune again; `sparsify` writes the files."
        raise CheckpointError(what, got=error, want="records", fix=fix) from error


def _report(found: Sequence[PrunedModel], heading: str | None) -> Report:
    shapes = looks_of(found)
    rows = tuple(shapes[methods(found).index(one.method)] for one in found)
    sections = [Section("Results", (dataclasses.replace(table_of(found), looks=rows),))]
    perplexity, size = figures.perplexity(found, methods(found), shapes), figures.sizes(found)
    if perplexity or size:
        several = perplexity is not None and len(shapes) > 1
        names = tuple(enumerate(methods(found)))
        shown = Control("group", "Methods shown", names, "checkbox", looks=tuple(shapes))
        pair = Container(present(perplexity, size), kind="pair")
        sections.append(Section("Perplexity and size", present(shown if several else None, pair)))
    sections.append(Section("Layer by layer", _layers(found)))
    return Report(
        heading or f"{joined(methods(found))} on {joined(models(found))}",
        tuple(sentences(found)),
        tuple(sections),
        tuple(notices(found)),
        "intarsia sparsify",
    )


def _layers(found: Sequence[PrunedModel]) -> tuple[Block, ...]:
    """Return the maps of each folder's layers, and what was said about some of them."""
    blocks: list[Block] = []
    if len(found) > 1:
        names = tuple(enumerate(label(one, found) for one in found))
        blocks.append(Control("folder", "Model", names))
    blocks.append(
        Note(
            "A row is a block, a column one of its layers. An error is that of the layer's output, "
            "||(W' \N{MINUS SIGN} W) X|| / ||W X||."
        )
    )
    for number, one in enumerate(found):
        maps = figures.maps(one.record["layers"], number)
        if not any(figure.name.startswith("after") for figure in maps):
            text = "Output errors were not measured: prune with --errors."
            blocks.append(Note(text, "missing", {"folder": number}))
        blocks.append(Container(tuple(maps), kind="pair", when={"folder": number}))
    for one in found:
        if lines := told_of(one):
            blocks.append(Container((Listing(tuple(lines)),), label(one, found)))
    return tuple(blocks)


def methods(found: Sequence[PrunedModel]) -> list[str]:
    return list(dict.fromkeys(one.method for one in found))


def models(found: Sequence[PrunedModel]) -> list[str]:
    return list(dict.fromkeys(Path(str(one.record["model"])).name for one in found))


def looks_of(found: Sequence[PrunedModel]) -> list[looks.Look]:
    """One for each method; grey for magnitude, the baseline, where it is among others."""
    names = methods(found)
    base = names.index(BASELINE) if BASELINE in names and len(names) > 1 else None
    return looks.looks_of(len(names), base)


def label(one: PrunedModel, among: Sequence[PrunedModel]) -> str:
    """Method and density, and the folder where those are not enough."""
    text = f"{one.method}, density {one.asked:g}"
    alike = [o for o in among if (o.method, o.asked) == (one.method, one.asked)]
    return text if len(alike) < 2 else f"{text}, {one.folder.name}"


def told_of(one: PrunedModel) -> list[str]:
    """What the walk had to say about single layers."""
    return [f"{row['layer']}: {row['told']}" for row in one.record["layers"] if row.get("told")]


def sentences(found: Sequence[PrunedModel]) -> list[str]:
    """The result in words: the best at each density that several methods were tried at."""
    said: list[str] = []
    dense = next((d for one in found if (d := one.perplexity("dense"))), None)
    if dense is not None:
        said.append(f"Dense, the model has a perplexity of {dense:.1f}.")
    at: dict[float, list[tuple[float, str]]] = {}
    for one in found:
        if (value := one.perplexity("pruned")) is not None:
            at.setdefault(one.asked, []).append((value, one.method))
    for density, values in sorted(at.items(), reverse=True):
        best = min(values)
        tail = f", the lowest of {len(values)}" if len(values) > 1 else ""
        said.append(f"At density {density:g}, {best[1]} has {best[0]:.1f}{tail}.")
    return said or ["No perplexity was measured: prune with --test 16 or more."]


def notices(found: Sequence[PrunedModel]) -> list[str]:
    said: list[str] = []
    texts = {(str(one.record["model"]), one.record["calibration"]["data"]) for one in found}
    if len(texts) > 1:
        said.append("The folders are of several models or texts: perplexities do not compare.")
    if any(math.isclose(one.record["density"], 1) for one in found):
        said.append("One of them is dense.")
    return said


COLUMNS = (
    Column("Method", "what chose the weights, and the folder", numeric=False),
    Column("Density", "the share of the pruned layers' weights that is kept"),
    Column("Perplexity", "on held-out rows of the calibration text; lower is better"),
    Column("Over dense", "that perplexity over the dense model's"),
    Column("MB dense", "bytes of the pruned layers as they are"),
    Column("MB bitmask", "the same with kept values and one bit a weight"),
    Column("Seconds", "of pruning"),
)


def calibration(one: PrunedModel) -> str:
    """Say what a folder was calibrated on, with the rows of each text where there are several."""
    about = one.record["calibration"]
    texts = about.get("of") or {}
    each = f" ({joined([f'{n} of {name}' for name, n in texts.items()])})" if len(texts) > 1 else ""
    return f"{about['rows']} rows of {about['tokens']} tokens of {about['data']}{each}"


def table_of(found: Sequence[PrunedModel]) -> Table:
    """Return a row for each folder; the caption says what each was calibrated on."""
    rows: list[tuple[Entry, ...]] = []
    for one in found:
        pruned, dense = one.perplexity("pruned"), one.perplexity("dense")
        over = "" if pruned is None or dense is None else f"{pruned / dense:.2f}"
        rows.append(
            (
                Entry(one.method, one.folder.name),
                Entry(f"{one.record['density']:.3f}"),
                Entry("" if pruned is None else f"{pruned:.1f}"),
                Entry(over),
                *(Entry(f"{one.record['bytes'][k] / 1e6:.1f}") for k in ("dense", "bitmask")),
                Entry(f"{one.record['seconds']:.0f}"),
            )
        )
    values = [one.perplexity("pruned") for one in found]
    known = [v for v in values if v is not None]
    best = values.index(min(known)) if known else None
    folders: dict[str, list[str]] = {}
    for one in found:
        folders.setdefault(calibration(one), []).append(one.folder.name)
    texts = [
        f"{text}: {joined(names)}" if len(folders) > 1 else text for text, names in folders.items()
    ]
    return Table(f"Calibrated on {'; on '.join(texts)}.", COLUMNS, tuple(rows), best, None)
