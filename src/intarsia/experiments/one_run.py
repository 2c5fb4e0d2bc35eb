"""One run, in a process of the pool: how `intarsia compare` and `intarsia bench` train."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..data.packages import announce
from ..results.store import key_of
from ..train import Running
from ..train.settings import with_keywords
from .execute import carry_out
from .experiment import FILE, Experiment
from .shared import SharedWork


@lru_cache(maxsize=1)
def shared_in(folder: str) -> SharedWork:
    """What this process holds in common for all of its runs."""
    return SharedWork(Path(folder))


def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Train and score; the run's folder is kept, and one that was killed goes on.

    inputs: experiment (flat), folder (of the run); and if they are there: shared (folder of what
    runs have in common), test (False: the test part is not looked at), running (fields of
    `Running`), quiet (False: what it says is printed, not only returned).
    """
    experiment = Experiment.of(inputs["experiment"])
    folder, shared = Path(inputs["folder"]), inputs.get("shared")
    options = {"trackers": (), **inputs.get("running", {})}
    running = with_keywords(Running(out=folder, resume=(folder / FILE).is_file()), options)
    lines: list[str] = []
    quiet = inputs.get("quiet", True)
    found = carry_out(
        experiment,
        running,
        lines.append if quiet else announce,
        None if shared is None else shared_in(shared),
        score=inputs.get("test", True),
    )
    record = found.record
    return {
        "results": dict(record["results"]),
        "parameters": dict(record["parameters"]),
        "origin": {} if shared is None else origin_of(record["record"]),
        "lines": lines,
    }


def origin_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a score came out of, see `results.Origin`.  about: what `record_of` said."""
    parts: Mapping[str, Any] = about["data"]["parts"]
    shared = {k: v for k, v in about["data"]["shared_pictures"].items() if "test" in k.split()}
    return {
        "code": source(),
        "pictures": key_of({name: part["sha256"] for name, part in parts.items()}),
        "twins": sum(shared.values()) if shared else None,
        "chosen": dict(about.get("chosen", {})),
    }


@lru_cache(maxsize=1)
def source() -> str:
    """A digest of this package's source: results of another one may differ."""
    top = Path(__file__).parents[1]
    files = sorted(top.rglob("*.py"))
    return key_of({path.relative_to(top).as_posix(): path.read_text() for path in files})
