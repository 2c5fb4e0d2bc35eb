"""Every result as one row of plain columns: CSV always, Parquet where pyarrow is installed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core.errors import MissingExtra
from ...core.files import write_text
from ..table import csv_text
from .records import Done, RunResult

# column -> type in Parquet
COLUMNS = {
    "suite": "string",
    "group": "string",
    "task": "string",
    "synthetic": "bool",
    "protocol": "string",
    "model": "string",
    "method": "string",
    "label": "string",
    "seed": "int64",
    "status": "string",
    "accuracy": "float64",
    "balanced_accuracy": "float64",
    "own_task_accuracy": "float64",
    "loss": "float64",
    "trained": "int64",
    "trained_without_head": "int64",
    "seconds": "float64",
    "cpu_seconds": "float64",
    "peak_bytes": "int64",
    "epochs": "int64",
    "tried": "int64",
    "search_seconds": "float64",
    "selected": "string",
    "folder": "string",
    "key": "string",
    "code": "string",
    "pictures": "string",
    "twins": "int64",
    "chosen": "string",
    "error": "string",
}


def tidy(result: RunResult) -> dict[str, Any]:
    """A result as a flat row; None where it has no such value."""
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
        "selected": json.dumps(dict(setup.selected), sort_keys=True),
        "folder": result.folder,
        "key": result.key,
        "code": result.origin.code,
        "pictures": result.origin.pictures,
        "twins": result.origin.twins,
        "chosen": json.dumps(dict(result.origin.chosen), sort_keys=True),
        "error": None if isinstance(outcome, Done) else outcome.error,
    }
    return {name: row[name] if name in row else getattr(outcome, name, None) for name in COLUMNS}


def write_csv(results: Iterable[RunResult], out: Path) -> Path:
    """One header, one line for each result.  Raises: TrainingError when it cannot be written."""
    return write_text(out, csv_text([tidy(result) for result in results]))


def write_parquet(results: Iterable[RunResult], out: Path) -> Path:
    """The same with types.  Raises: MissingExtra without pyarrow."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "bench") from error
    schema = pa.schema([(name, kind) for name, kind in COLUMNS.items()])
    table = pa.Table.from_pylist([tidy(result) for result in results], schema=schema)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return write_text(out, buffer.getvalue())
