"""The page of chosen spans: layers by heads, coloured by how far a head looks back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.files import read_json
from . import heat_maps, numbers
from .report import Figure, Note, Report, Section
from .table import Column, Entry, Table

COLUMNS = (
    Column("Attention", "what heads see", numeric=False),
    Column("Loss", "of a token in the last third of rows that chose nothing"),
    Column("Perplexity", "its exponential; lower is better"),
)


def read_spans(path: Path) -> Mapping[str, Any]:
    """Read a file of `intarsia spans`, for `report_of`.  Raises: CheckpointError for no JSON."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path | str, error: Exception) -> CheckpointError:
    want, fix = "a file of spans", "Write it with: intarsia spans MODEL --out spans.json"
    return CheckpointError(str(path), got=error, want=want, fix=fix)


def report_of(content: Mapping[str, Any], name: str = "spans.json") -> Report:
    """Return the report of a file of `intarsia spans`: how far back each attention head looks.

    Raises: CheckpointError for a file of anything else.
    """
    try:
        spans, length = _spans(content)
        table, sentences = _table(content), _sentences(content, spans, length)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _damaged(name, error) from error
    return _report(spans, length, table, sentences)


def _report(
    spans: Sequence[Sequence[int]], length: int, table: Table, sentences: Sequence[str]
) -> Report:
    """Build the report of attention spans (layers, heads), in tokens that each head sees."""
    rows, heads = [str(i) for i in range(len(spans))], [str(i) for i in range(len(spans[0]))]
    # the colour is the span as a share of the text
    cells = heat_maps.HeatMap(
        [[span / length for span in row] for row in spans],
        rows,
        heads,
        top=1.0,
        hover=[
            [f"layer {i}, head {j}: {span} tokens" for j, span in enumerate(row)]
            for i, row in enumerate(spans)
        ],
        x="head",
        y="layer",
    )
    label = "Span of each head, by layer"
    figure = Figure(
        "spans",
        label,
        cells,
        "Span",
        "as a share of the text",
        scale=("0", "1"),
    )
    note = (
        "A row is a layer, a column one of its key-value heads; dark heads see all of "
        f"{length} tokens."
    )
    layers = numbers.plural(len(rows), "layer")
    results = (Section("Results", (table,)),) if table.rows else ()
    return Report(
        f"Spans of {layers} of {numbers.plural(len(heads), 'head')}",
        tuple(sentences),
        (*results, Section("Head by head", (Note(note), figure))),
        eyebrow="intarsia spans",
    )


def _spans(content: Mapping[str, Any]) -> tuple[list[list[int]], int]:
    """Return how many tokens each head sees in the longest text, (layers, heads); its length."""
    length, sink, block = (int(content[name]) for name in ("longest", "sink", "block"))
    # blocks that the sink tokens and the token itself take, rounded up
    least = -(-(sink + 1) // block)
    spans = [
        [
            # a span grows with the text: floor((alpha + beta * length) / block) blocks
            min(length, max(least, math.floor((a + b * length) / block + 1e-9)) * block)
            for a, b in zip(alphas, betas, strict=True)
        ]
        for alphas, betas in zip(content["alpha"], content["beta"], strict=True)
    ]
    if not spans or len({len(row) for row in spans}) != 1:
        raise ValueError("layers of several heads")
    return spans, length


def _losses(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured losses in nats for a token: title -> loss; {} if nothing was measured."""
    # a file of spans that nothing was measured for has no results
    measured = content["about"]
    if "loss" not in measured:
        return {}
    return {
        "everything": float(measured["dense"]),
        "the same window for all": float(measured["uniform"]),
        "spans": float(measured["loss"][measured["chosen"]]),
    }


def _table(content: Mapping[str, Any]) -> Table:
    """Return the table of losses and perplexities; without rows if nothing was measured."""
    rows = tuple(
        (Entry(name), Entry(f"{loss:.4f}"), Entry(f"{math.exp(loss):.2f}"))
        for name, loss in _losses(content).items()
    )
    return Table("On rows that validated.", COLUMNS, rows)


def _sentences(content: Mapping[str, Any], spans: list[list[int]], length: int) -> list[str]:
    """Return sentences about how much of the keys and values is stored, and its cost in loss."""
    # each head keeps the keys and values of its span
    lengths = [s for row in spans for s in row]
    share = sum(lengths) / (len(lengths) * length)
    full = sum(s == length for s in lengths)
    sentences = [
        f"Of texts of {length} tokens, {numbers.percent(share, 0)} of keys and values are kept; "
        f"{full} of {len(lengths)} heads see everything."
    ]
    losses = _losses(content)
    if losses:
        dense, even, selected = losses.values()
        rises = [numbers.signed(loss - dense, 4) for loss in (selected, even)]
        sentences.append(
            f"On other rows the loss changes by {rises[0]}, and by {rises[1]} "
            "with the same window for all heads."
        )
    return sentences
