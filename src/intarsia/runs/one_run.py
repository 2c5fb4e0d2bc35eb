"""One run, in a process of the pool: how `intarsia compare` and `intarsia bench` train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ..core.registry import index
from ..core.store import key_of
from ..data import Fold
from ..data.corpora import is_text
from ..data.packages import announce
from ..hosts.together import on_one_trunk
from ..train import Running
from ..train.settings import with_keywords
from ..train.stack import Seat, stacked
from .execute import carry_out
from .experiment import FILE, Experiment
from .shared import SharedWork
from .workers import sendable


@lru_cache(maxsize=1)
def shared_in(folder: str | None) -> SharedWork:
    """Return what this process holds in common for all of its runs; None keeps it in memory."""
    return SharedWork(None if folder is None else Path(folder))


def run(inputs: Mapping[str, Any], seat: Seat | None = None) -> dict[str, Any]:
    """Train and score one experiment; an unfinished run in its folder is resumed.

    inputs, by name: experiment (flat) and folder (of the run); optional are shared (folder of
    results that runs have in common, None: memory), test (False: the test part is not looked at),
    search (how the learning rate was found, for the record), running (fields of `Running`), quiet
    (False: lines of progress are printed, not only returned), whole (True: every step computes all
    of the model, see `once.trimmed`), evaluate_every (as `fit` takes it), temperature (of
    `tempered_loss`, where the run has no validation part), fold (fields of `Fold`: the part of the
    training pictures that is held out), choice (as `carry_out` takes it). Or stack: a list of such
    inputs, of runs that step together; the result is then `ends`, for each its result or its error.
    seat: the run's place among runs that step together; None = it runs alone.
    """
    # several runs in one: they share the frozen trunk and step together
    if "stack" in inputs:
        return _stack(inputs["stack"])
    experiment = Experiment.of(inputs["experiment"])
    folder = Path(inputs["folder"])
    shared = shared_in(inputs["shared"]) if "shared" in inputs else None
    options = {"trackers": (), **inputs.get("running", {}), "seat": seat}
    # a folder with an experiment is a run that was stopped, and is resumed
    running = with_keywords(Running(out=folder, resume=(folder / FILE).is_file()), options)
    lines: list[str] = []
    quiet = inputs.get("quiet", True)
    finished = carry_out(
        experiment,
        running,
        lines.append if quiet else announce,
        shared,
        score=inputs.get("test", True),
        untrimmed=inputs.get("whole", False),
        evaluate_every=inputs.get("evaluate_every", 1),
        temperature=inputs.get("temperature"),
        search=inputs.get("search"),
        fold=Fold(**inputs["fold"]) if "fold" in inputs else None,
        choice=inputs.get("choice"),
    )
    record = finished.record
    return {
        "results": dict(record["results"]),
        "parameters": dict(record["parameters"]),
        "sizes": {part: part_record["n"] for part, part_record in record["data"].items()},
        "origin": {} if inputs.get("shared") is None else origin_of(record["record"]),
        "lines": lines,
    }


def _stack(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Run experiments with steps that are computed together; return the result or error of each."""
    results = stacked([partial(run, inputs) for inputs in runs], on_one_trunk)
    ends: list[dict[str, Any]] = []
    for end in results:
        if isinstance(end, BaseException):
            # Ctrl-C and the like are no result of one run: they end all of them
            if not isinstance(end, Exception):
                raise end
            ends.append({"result": None, "error": str(sendable(end))})
        else:
            ends.append({"result": end, "error": ""})
    return {"ends": ends}


def shape_of(experiment: Experiment, **extra: Any) -> str:
    """Return a key that runs share if their steps can be computed in one joint forward pass.

    experiment: all settings of a run; runs may share a key if they differ in nothing but seed,
    learning rate and weight decay. "" for runs that gain nothing from it: texts, and methods that
    train the whole backbone.
    """
    flat = experiment.flat()
    kind = index().get(experiment.adapted.method, {}).get("kind")
    if is_text(experiment.pictures.data) or kind in ("baseline", "change", "recipe"):
        return ""
    # these may differ between runs with steps that are computed together
    for name in ("seed", "lr", "weight_decay"):
        del flat[name]
    return key_of({**flat, **extra})


def origin_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a score came from: digests of code and pictures, and what the method chose.

    "twins" is the number of test pictures that another part has as well, which makes a score too
    good; None = not counted.
    """
    parts: Mapping[str, Any] = record["data"]["parts"]
    # pictures of the test part that another part has as well make its score too good
    shared = {k: v for k, v in record["data"]["shared_pictures"].items() if "test" in k.split()}
    return {
        "code": source(),
        "pictures": key_of({name: part["sha256"] for name, part in parts.items()}),
        "twins": sum(shared.values()) if shared else None,
        "chosen": dict(record.get("chosen", {})),
    }


@lru_cache(maxsize=1)
def source() -> str:
    """Return a digest of this package's source: results of another one may differ."""
    # the package's folder: every module may change a result
    top = Path(__file__).parents[1]
    files = sorted(top.rglob("*.py"))
    return key_of({path.relative_to(top).as_posix(): path.read_text() for path in files})
