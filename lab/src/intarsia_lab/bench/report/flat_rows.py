"""Every result as one row of plain columns: CSV always, Parquet where pyarrow is installed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from intarsia.core.errors import MissingExtra
from intarsia.core.files import write_bytes, write_text
from intarsia.reports.table import csv_text

from .records import Done, RunResult

NAMES = """
suite group task synthetic protocol model method label seed status accuracy balanced_accuracy
own_task_accuracy loss tempered_loss ece trained trained_without_head seconds cpu_seconds
peak_bytes epochs tried search_seconds selected folder key code pictures twins chosen error
"""
TYPES = {
    "bool": "synthetic",
    "int64": "seed trained trained_without_head peak_bytes epochs tried twins",
    "float64": "accuracy balanced_accuracy own_task_accuracy loss tempered_loss ece seconds "
    "cpu_seconds search_seconds",
}
OTHER = {name: kind for kind, names in TYPES.items() for name in names.split()}
COLUMNS = {name: OTHER.get(name, "string") for name in NAMES.split()}
"""column -> type in Parquet"""


def tidy(result: RunResult) -> dict[str, Any]:
    """Return a result as a flat row with a value for each of COLUMNS; None where it has none.

    result: of a run. Settings become JSON text.
    """
    task, method, setup, outcome = result.task, result.method, result.setup, result.outcome
    row = {
        "suite": task.suite,
        "group": task.group,
        "task": task.name,
        "synthetic": task.synthetic,
        "protocol": setup.protocol,
        "model": setup.model,
        "method": method.name,
        "label": method.label,
        "seed": result.seed,
        "status": result.status,
        "epochs": setup.epochs,
        "tried": setup.tried,
        "search_seconds": setup.search_seconds,
        # settings as JSON text: columns are plain values
        "selected": json.dumps(dict(setup.selected), sort_keys=True),
        "folder": result.folder,
        "key": result.key,
        "code": result.origin.code,
        "pictures": result.origin.pictures,
        "twins": result.origin.twins,
        "chosen": json.dumps(dict(result.origin.chosen), sort_keys=True),
        "error": None if isinstance(outcome, Done) else outcome.error,
    }
    # scores and costs have the names of the outcome's own fields
    return {name: row[name] if name in row else getattr(outcome, name, None) for name in COLUMNS}


def write_csv(results: Iterable[RunResult], out: Path) -> Path:
    """Write results to a CSV file: a header, and a line for each.

    results: of runs; out: the file. Raises: TrainingError if writing fails.
    """
    return write_text(out, csv_text([tidy(result) for result in results]))


def write_parquet(results: Iterable[RunResult], out: Path) -> Path:
    """Write results to a Parquet file, with a type for each column.

    results: of runs; out: the file. Raises: MissingExtra without pyarrow.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "bench") from error
    # declared: a column without any value would have no type of its own
    schema = pa.schema([(name, kind) for name, kind in COLUMNS.items()])
    table = pa.Table.from_pylist([tidy(result) for result in results], schema=schema)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return write_bytes(out, buffer.getvalue())
