"""A page of questions: the picture with its read parts, the answer, and who computed it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...reports import heat_maps, numbers
from ...reports.pictures import embedded_pictures
from ...reports.report import Block, Container, Facts, Figure, Gallery, Report, Section, Thumbnail
from ...reports.table import plain
from ...reports.writing import write
from ..data.views import place_on_white

LEFT, VEIL = 0.22, (92, 98, 130)  # how much of the parts left out is seen, and the colour over them
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
    """Write the page of questions about pictures, with the model's answers; returns its path.

    loads: the result of `expert_loads(..., by="modality")`, for each router (modalities, experts),
      None = not shown. The page needs no other file.
    Raises: TrainingError if it cannot be written.
    """
    return write(seen_report(questions, loads, heading=heading), out)


def seen_report(
    questions: Sequence[Shown],
    loads: Mapping[str, Any] | None = None,
    *,
    heading: str = "What was seen",
) -> Report:
    """Return the report of questions about pictures, with the model's answers.

    questions, loads, heading: see `write_seen`.
    """
    read = sum(int(q.chosen.sum()) for q in questions if q.chosen is not None)
    total = sum(q.chosen.size for q in questions if q.chosen is not None)
    sentences = [f"{numbers.plural(len(questions), 'question')}."]
    if total:
        sentences.append(f"{read} of {total} vectors of tiles were read, the closest to the text.")
    pictured = [q for q in questions if q.picture is not None]
    views = [lit(q.picture, q.chosen, q.grid) for q in pictured if q.picture is not None]
    # by identity: two questions may be equal, and have pictures that are not
    address = dict(zip(map(id, pictured), embedded_pictures(views), strict=True))
    blocks = tuple(_question_block(i, q, address.get(id(q))) for i, q in enumerate(questions))
    sections = [Section("Questions", blocks)]
    if loads:
        sections.append(Section("Experts by modality", _modality_blocks(_expert_shares(loads))))
    return Report(heading, tuple(sentences), tuple(sections), (), "A model that sees and hears")


def _question_block(number: int, q: Shown, picture: str | None) -> Container:
    facts = [("Question", q.question or "(a description)"), ("Answer", q.answer or "(nothing)")]
    facts += [("Wanted", q.right)] if q.right is not None else []
    facts += [("Picture", q.told)] if q.told else []
    answer = Facts(tuple(facts), large="Answer")
    if picture is None:
        return Container((answer,))
    alt, caption = "The picture", ""
    if q.chosen is not None:
        alt = "The picture; bright is what was read of its tiles"
        caption = "Bright: the vectors of the tiles that were read. A small view of the whole was "
        caption += "read, too."
    figure = Figure(f"question-{number}", alt, picture=picture, caption=caption)
    return Container((figure, answer), kind="pair")


def write_pictures(
    out: str | Path, pictures: Sequence[Shown], patches: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Write the page of a model's answers to pictures; it needs no other file.

    patches: for a union of experts, which patches each expert processes: path of a layer ->
      (pictures, experts, rows, columns) bool, from `taken_patches`.
    Raises: TrainingError if it cannot be written.
    """
    return write(pictures_report(pictures, patches), out)


def pictures_report(
    pictures: Sequence[Shown], patches: Mapping[str, np.ndarray] | None = None
) -> Report:
    """Return the report of a model's answers to pictures, see `write_pictures`."""
    patches = patches or {}
    eyebrow, heading = "Predictions", "What the pictures show"
    sentence = f"{numbers.plural(len(pictures), 'picture')}, as the model reads them."
    if patches:
        eyebrow, heading = "Union of Experts", "Which patches each expert takes"
        share = numbers.percent(float(np.mean([part.mean() for part in patches.values()])), 0)
        sentence = f"An expert takes {share} of the patches, and every class token."
    pages = [lit(question.picture) for question in pictures if question.picture is not None]
    views = [
        view
        for i in range(len(pictures))
        for view in _expert_pictures(pictures[i].picture, i, patches)
    ]
    # all pictures of the page together keep to its limit of bytes
    addresses = iter(embedded_pictures([*pages, *views]))
    shown_at = [next(addresses) for _ in pages]
    blocks: list[Block] = []
    for i, (question, address) in enumerate(zip(pictures, shown_at, strict=True)):
        facts = (("Picture", question.question),) if question.question else ()
        answer = Facts((*facts, ("Answer", question.answer or "(nothing)")), large="Answer")
        alt = "The picture as the model reads it"
        blocks.append(
            Container((Figure(f"picture-{i}", alt, picture=address), answer), kind="pair")
        )
        for path, parts in patches.items():
            small = tuple(
                Thumbnail(
                    next(addresses), f"Expert {e} of {path}; bright is what it takes", pixels=True
                )
                for e in range(len(parts[i]))
            )
            blocks.append(Gallery(small, f"Experts of {path}"))
    return Report(heading, (sentence,), (Section("Pictures", tuple(blocks)),), (), eyebrow)


def _expert_pictures(
    picture: Image.Image | None, number: int, patches: Mapping[str, np.ndarray]
) -> Iterator[Image.Image]:
    """Yield a picture for each expert, in which the patches that it processes are bright."""
    # only questions with a picture come here; the check is for the type
    assert picture is not None
    small = picture.resize((PATCHED, PATCHED), Image.Resampling.BICUBIC)
    # a layer with experts: (pictures, experts, rows, columns) bool
    for parts in patches.values():
        masks = parts[number]  # (experts, rows, columns)
        grid = (masks.shape[1], masks.shape[2])
        yield from (lit(small, mask.reshape(-1, 1), grid, PATCHED) for mask in masks)


def lit(
    picture: Image.Image,
    read_vectors: np.ndarray | None = None,
    grid: tuple[int, int] = (0, 0),
    longer: int = SHOWN,
) -> Image.Image:
    """Return a picture in which only the parts that a language model was given are bright.

    read_vectors: (tiles, queries) bool, True = given. The picture is cut into tiles, and each tile
      into as many small squares as it gives vectors (queries), row by row: one is bright if its
      vector was given. None = the whole picture, bright. grid: rows and columns of the tiles;
      longer: pixels of the longer side.
    """
    if read_vectors is None or not grid[0]:
        small = picture.convert("RGB")
        small.thumbnail((longer, longer))
        return small
    rows, columns = grid
    # the queries of a tile stand in a square, or side by side if their number is no square
    cells = math.isqrt(read_vectors.shape[1])
    square = cells * cells == read_vectors.shape[1]
    across = (cells, cells) if square else (1, read_vectors.shape[1])
    # a tile's side in px is a multiple of its queries, so that each has whole pixels
    side = max(1, longer // (max(rows, columns) * max(across))) * max(across)
    page = np.asarray(place_on_white(picture, columns * side, rows * side), dtype=np.float32)
    # (tiles, queries) -> (rows of queries, columns of queries) of the whole picture
    mask = read_vectors.reshape(rows, columns, *across).swapaxes(1, 2)
    mask = mask.reshape(rows * across[0], columns * across[1])
    high, wide = side // across[0], side // across[1]
    light_map = np.ones((rows * side, columns * side, 1), dtype=np.float32)
    # each query becomes a rectangle of pixels
    light = np.kron(mask, np.ones((high, wide)))
    light_map[: light.shape[0], : light.shape[1], 0] = LEFT + (1 - LEFT) * light
    return Image.fromarray((page * light_map + np.array(VEIL) * (1 - light_map)).astype(np.uint8))


def _expert_shares(loads: Mapping[str, Any]) -> dict[str, list[list[float | None]]]:
    """Return the share of each expert of the tokens of each kind (modality), by layer."""
    tables: dict[str, list[list[float | None]]] = {}
    for number, table in enumerate(loads.values()):
        rows: list[list[float | None]] = []
        for row in np.asarray(table, dtype=np.float64):
            # loads are counts of tokens; a modality that no token had has no shares
            total = float(row.sum())
            rows.append([float(v) / total if total else None for v in row])
        tables[f"{number}"] = rows
    return tables


def _modality_blocks(tables: Mapping[str, list[list[float | None]]]) -> tuple[Block, ...]:
    """Draw which experts the tokens of each kind (modality) have, as a heat map and a table."""
    first = next(iter(tables.values()))
    # the experts of each kind of token side by side
    columns = [f"{name}, {e}" for name in NAMES for e in range(len(first[0]))]
    values = [[share for row in table for share in row] for table in tables.values()]
    hover = [
        [f"layer {layer}, {name}: {_share(v)}" for name, v in zip(columns, row, strict=True)]
        for layer, row in zip(tables, values, strict=True)
    ]
    label = "Share of each expert of the tokens of each modality, by layer"
    cells = heat_maps.HeatMap(values, list(tables), columns, 1.0, hover, y="layer", width=960)
    figure = Figure(
        "loads",
        f"{label}; the numbers are in the table",
        cells,
        "Share of each expert.",
        "Of the tokens of text, of pictures and of sounds, in each layer.",
        scale=("0", "1"),
    )
    rows = [
        [layer, *(" ".join(map(_share, row)) for row in table)] for layer, table in tables.items()
    ]
    return figure, plain("", ["layer", *NAMES], rows, words=4, fold="The numbers")


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.2f}"
