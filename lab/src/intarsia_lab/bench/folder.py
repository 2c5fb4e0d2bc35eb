"""The folder of a benchmark: what lies where, and that only one runner works in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.core.files import read_json, write_json, write_text
from intarsia.core.locks import alone

FORMAT = 1
SHARED = "suite", "protocol"  # by all results of a folder
RESULTS, PLAN = "results.jsonl", "bench.json"
README = """A benchmark of intarsia.

index.html, table.md, table.tex   the tables and their statistics
results.csv                       one row for each run that counts
results.jsonl                     the same as JSON, appended as runs end
searches.jsonl                    runs that chose settings, with their validation accuracy
pilots.jsonl                      with --budget: how long an image takes each method
runs/                             the folder of each run: intarsia report runs/TASK/RUN
shared/                           pictures and features that runs have in common; may be deleted
bench.json                        what was asked for

The same command again keeps what is finished and goes on.
"""


@contextmanager
def opened(out: Path, record: dict[str, Any]) -> Iterator[None]:
    """Let this process alone work in a benchmark's folder, while the context is open.

    out: the folder; record: the request, written to it. All results of a folder share the
    suite and the protocol.

    Raises: ConfigError if another process works there, for a folder of another suite or protocol,
    or if `out` is a file; CheckpointError for a folder of another format or one that is damaged.
    """
    with alone(out):
        # before anything is written: a wrong folder stays as it was
        _check(out / PLAN, {name: record[name] for name in SHARED})
        write_text(out / "README.txt", README)
        write_json(out / PLAN, {"format": FORMAT, "intarsia": version("intarsia"), **record})
        yield


def _check(path: Path, expected: dict[str, Any]) -> None:
    """Check that a results folder was begun with the same plan.

    expected: entries that the record must not contradict; one that it lacks agrees.
    """
    # a new folder agrees with everything
    if not path.exists():
        return
    try:
        record = read_json(path)
        number = record["format"]
    except (ValueError, TypeError, KeyError, OSError) as error:
        subject, got = f"{path}", f"{type(error).__name__}: {error}"
        fix = "Choose another --out, or delete the file to keep the results beside it."
        raise CheckpointError(
            subject, got=got, want="what `intarsia bench` wrote", fix=fix
        ) from error
    if number != FORMAT:
        got = f"{number}, by intarsia {record.get('intarsia', '?')}"
        fix = "Choose another --out, or go on with the version that wrote it."
        raise CheckpointError(f"format of {path}", got=got, want=FORMAT, fix=fix)
    # a plan with other settings must not add to these results
    if different := {
        name: record[name]
        for name in expected
        if record.get(name, expected[name]) != expected[name]
    }:
        got = ", ".join(f"{name} {value}" for name, value in different.items())
        want, fix = (
            ", ".join(f"{name} {expected[name]}" for name in different),
            "Choose another --out.",
        )
        raise ConfigError(f"results folder {path.parent}", got=got, want=want, fix=fix)
