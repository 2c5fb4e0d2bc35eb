"""One run of the benchmark, in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..experiments.execute import carry_out
from ..experiments.experiment import FILE, Experiment
from ..experiments.shared import Shared
from ..results.store import key_of
from ..train import Running


@lru_cache(maxsize=1)
def shared_in(folder: str) -> Shared:
    """What this process holds in common for all of its runs."""
    return Shared(Path(folder))


def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Train and score; the run's folder is kept, and one that was killed goes on.

    inputs: experiment (flat), folder (of the run), shared (folder of what runs have in common),
    test (False: the test part is not looked at).
    """
    experiment = Experiment.of(inputs["experiment"])
    folder = Path(inputs["folder"])
    running = Running(out=folder, resume=(folder / FILE).is_file(), trackers=())
    shared = shared_in(inputs["shared"])
    found = carry_out(experiment, running, lambda _: None, shared, score=inputs.get("test", True))
    record = found.record
    return {
        "results": dict(record["results"]),
        "parameters": dict(record["parameters"]),
        "origin": origin_of(record["record"]),
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
