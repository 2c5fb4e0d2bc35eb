"""A page of questions: the picture with what was read of it, the answer, and who computed it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.files import write_text
from ...data.senses.encoders import MODALITIES
from ...data.senses.views import place_on_white
from .. import frame, numbers, plots

LEFT, VEIL = 0.22, (92, 98, 130)  # how much of what is left out is seen, and the colour over it
SHOWN = 672  # px of a picture's longer side on the page
PATCHED = 112  # px of one that shows what an expert takes
NAMES = ("text", "pictures", "sounds")


@dataclass(frozen=True)
class Shown:
    """A question and its answer.

    picture: None for a question without one.  chosen: (tiles, queries) bool, which vectors of each
    tile were read, tiles row by row; None = all of the picture is one view.
    grid: rows and columns of the tiles.  told: the picture's vectors in words.
    right: the answer that was wanted, if it is known.
    """

    question: str
    answer: str
    picture: Image.Image | None = None
    chosen: np.ndarray | None = None
    grid: tuple[int, int] = (0, 0)
    told: str = ""
    right: str | None = None


def write_seen(
    out: str | Path,
    questions: Sequence[Shown],
    loads: Mapping[str, Any] | None = None,
    *,
    heading: str = "What was seen",
) -> Path:
    """Write the page; it needs no other file.

    loads: of `expert_loads(..., by="modality")`, (modalities, experts) of each router.
    Raises: MissingExtra without plotly or jinja2; TrainingError if it cannot be written.
    """
    tables = _tables(loads or {})
    read = sum(int(q.chosen.sum()) for q in questions if q.chosen is not None)
    every = sum(q.chosen.size for q in questions if q.chosen is not None)
    sentences = [f"{len(questions)} question{'s' if len(questions) != 1 else ''}."]
    if every:
        sentences.append(f"{read} of {every} vectors of tiles were read, the closest to the text.")
    text = frame.render(
        "seen",
        frame.drawn({"loads": _map(tables) if tables else None}),
        [],
        sentences,
        eyebrow="A model that sees and hears",
        heading=heading,
        notices=[],
        questions=[_row(q) for q in questions],
        tables=tables,
        modalities=NAMES,
        patches=[],
    )
    return write_text(out, text)


def write_pictures(
    out: str | Path, pictures: Sequence[Shown], taken: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Write the page of a model's answers to pictures; it needs no other file.

    pictures: as the model reads them, with its answers.  taken: of a union of experts, by the path
    of each part of the model, (pictures, experts, rows, columns) bool, of `taken_patches`.
    Raises: MissingExtra without plotly or jinja2; TrainingError if it cannot be written.
    """
    taken = taken or {}
    eyebrow, heading = "Predictions", "What the pictures show"
    sentence = f"{numbers.plural(len(pictures), 'picture')}, as the model reads them."
    if taken:
        eyebrow, heading = "Union of Experts", "Which patches each expert takes"
        share = numbers.percent(float(np.mean([part.mean() for part in taken.values()])), 0)
        sentence = f"An expert takes {share} of the patches, and every class token."
    text = frame.render(
        "seen",
        {},
        [],
        [sentence],
        eyebrow=eyebrow,
        heading=heading,
        notices=[],
        questions=[],
        tables={},
        modalities=NAMES,
        patches=[
            {"shown": _row(shown), "blocks": _blocks(shown.picture, i, taken)}
            for i, shown in enumerate(pictures)
        ],
    )
    return write_text(out, text)


def _blocks(
    picture: Image.Image | None, number: int, taken: Mapping[str, np.ndarray]
) -> dict[str, dict[str, list[str]]]:
    """Small pictures of the experts of each part of each block, what they take bright."""
    assert picture is not None
    small = picture.resize((PATCHED, PATCHED), Image.Resampling.BICUBIC)
    found: dict[str, dict[str, list[str]]] = {}
    for path, parts in taken.items():
        own = parts[number]  # (experts, rows, columns)
        grid = (own.shape[1], own.shape[2])
        views = (lit(small, mask.reshape(-1, 1), grid, PATCHED) for mask in own)
        block, _, part = path.rpartition(".")
        found.setdefault(block, {})[part] = [_data(view) for view in views]
    return found


def _row(shown: Shown) -> dict[str, Any]:
    image = None if shown.picture is None else lit(shown.picture, shown.chosen, shown.grid)
    about = vars(shown) | {"image": None, "wide": False, "lit": shown.chosen is not None}
    if image is not None:
        about |= {"image": _data(image), "wide": image.width >= image.height}
    return about


def lit(
    picture: Image.Image,
    chosen: np.ndarray | None = None,
    grid: tuple[int, int] = (0, 0),
    longer: int = SHOWN,
) -> Image.Image:
    """The picture, veiled but for the cells whose vectors were read.

    A query stands at its place in the square of its tile's queries.  longer: px of its longer side.
    """
    if chosen is None or not grid[0]:
        small = picture.convert("RGB")
        small.thumbnail((longer, longer))
        return small
    rows, columns = grid
    cells = math.isqrt(chosen.shape[1])
    square = cells * cells == chosen.shape[1]
    across = (cells, cells) if square else (1, chosen.shape[1])
    side = max(1, longer // (max(rows, columns) * max(across))) * max(across)
    page = np.asarray(place_on_white(picture, columns * side, rows * side), dtype=np.float32)
    mask = chosen.reshape(rows, columns, *across).swapaxes(1, 2)
    mask = mask.reshape(rows * across[0], columns * across[1])
    high, wide = side // across[0], side // across[1]
    seen = np.ones((rows * side, columns * side, 1), dtype=np.float32)
    light = np.kron(mask, np.ones((high, wide)))
    seen[: light.shape[0], : light.shape[1], 0] = LEFT + (1 - LEFT) * light
    return Image.fromarray((page * seen + np.array(VEIL) * (1 - seen)).astype(np.uint8))


def _data(image: Image.Image) -> str:
    raw = io.BytesIO()
    image.save(raw, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(raw.getvalue()).decode()


def _tables(loads: Mapping[str, Any]) -> dict[str, list[list[float | None]]]:
    """The share of each expert of the tokens of a modality, by layer; None = no token."""
    found: dict[str, list[list[float | None]]] = {}
    for number, table in enumerate(loads.values()):
        rows: list[list[float | None]] = []
        for row in np.asarray(table, dtype=np.float64):
            total = float(row.sum())
            rows.append([float(v) / total if total else None for v in row])
        found[f"{number}"] = rows
    return found


def _map(tables: Mapping[str, list[list[float | None]]]) -> Any:
    """Layers down; across, for each modality, its experts."""
    go = plots.plotly()
    first = next(iter(tables.values()))
    experts = len(first[0])
    columns = [f"{NAMES[m]}, {e}" for m in range(len(MODALITIES)) for e in range(experts)]
    values = [[share for row in table for share in row] for table in tables.values()]
    hover = "layer %{y}, %{x}: %{z:.2f}<extra></extra>"
    heat = go.Heatmap(
        z=values, x=columns, y=list(tables), zmin=0, zmax=1, xgap=2, ygap=1, hovertemplate=hover
    )
    return go.Figure(heat, {"yaxis": {"autorange": "reversed", "title": {"text": "layer"}}})
