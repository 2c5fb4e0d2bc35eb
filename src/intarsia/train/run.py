"""One run from settings to results: the checks before it, the loop, the record."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..core.checks import whole
from ..core.errors import ConfigError, DataError
from ..core.files import write_text
from ..processes.parallelism import WholeModel
from ..schedules import LayerSchedule, SparseSchedule
from . import record as records
from .advice import advice
from .folder import ADAPTER, FORMAT, README, Write, owned, write_results
from .loop import Job, Loop
from .optimisers import adamw
from .precision import cast_frozen, trained
from .processes import accelerator, on_main
from .progress import tracker_names
from .resume import trunk_hash
from .scores import Scores
from .settings import keywords
from .summary import summary


@dataclass(frozen=True, repr=False)
class Run:
    """The result of a run: scores on val and test (None without such a set), curves, and record.

    `history` holds the lines of metrics.jsonl (in the main process), `record` is run.json.
    """

    record: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    val: Scores | None
    test: Scores | None
    out: Path | None

    def __str__(self) -> str:
        """Return the run in a few lines: method, data, scores, costs and the folder."""
        return "\n".join([summary(self.record, self.val, self.test, self.out), *self.advice])

    @property
    def advice(self) -> list[str]:
        """Lines about what went wrong in a common way, each with what to do; mostly none."""
        return advice(self.record, self.history, self.test or self.val)

    __repr__ = __str__  # of a record and logits nobody reads the values in a notebook


Finish = Callable[[Run], Run]  # what a run says of itself before it is written


def fit_once(
    job: Job,
    record: Mapping[str, Any],
    evaluate_every: int,
    write: Write,
    finish: Finish = lambda run: run,
) -> Run:
    """Train a model once: a `fit`, or one phase of a method that trains in phases.

    evaluate_every: epochs between two validations, 0 for none; write: puts the trained model into
      the run's folder; finish: is called with the result before it is written, and returns the
      result to write.
    """
    model, training, out = job.model, job.training, job.running.out
    trained(model)  # raises if nothing is
    # all that can be refused is refused before a folder is made
    disjoint = _check_selection(job, evaluate_every)
    device = job.running.device
    ranks = accelerator(tracker_names(job.running.trackers, out), out, device)
    if training.precision == "fp16" and ranks.device.type == "cpu":
        subject, got = "precision", "'fp16' on a CPU"
        raise ConfigError(
            subject, got=got, want="'fp32' or 'bf16' there", fix="Use precision='bf16'."
        )
    with owned(out, job.running.resume):
        if out is not None:
            on_main(ranks, lambda: write_text(out / "README.txt", README))
        model.to(ranks.device)
        cast_frozen(model, training.precision)
        # the record is taken before the first step, the identity of frozen weights after their cast
        setup = _setup_record(job)
        loop = Loop(job)
        identity = _identity(setup, model) if out is not None else {}
        # memory from here on is training's
        resident = records.forget_peak()
        with loop.shared_out(ranks) as parts:
            with loop.running(identity):
                loop.train(evaluate_every)
                scores = loop.finish()
            results = _results(loop, scores, disjoint)
            results["peak_bytes"] = records.peak_bytes(resident)
            # `finish` may add to the folder, and returns the run that is written
            done = setup | {"record": records.plain_values(record), "results": results}
            run = Run(done, tuple(loop.log.lines), scores.get("val"), scores.get("test"), out)
            run = finish(run)
            if out is not None:
                _write_run(out, job, run, scores, ranks, parts, write)
    return run


def _write_run(
    out: Path,
    job: Job,
    run: Run,
    scores: Mapping[str, Scores],
    ranks: Accelerator,
    parts: WholeModel,
    write: Write,
) -> None:
    """Write the trained model, and then the results, into a run's folder."""
    split = "test" if "test" in scores else "val"
    metrics, last = scores.get(split), write
    if parts.shared:  # each process writes its experts
        write(job.model, out / ADAPTER, run.record, parts)
        last = None
    evaluated = job.sets[2] if split == "test" else job.sets[1]
    on_main(
        ranks,
        lambda: write_results(out, job.model, run.record, split, metrics, last, evaluated),
    )


def _check_selection(job: Job, evaluate_every: int) -> bool | None:
    """Check that validation can choose the best epoch, if that is asked for."""
    whole("evaluate_every", evaluate_every, 0, fix="Try 1.")
    train, val, _ = job.sets
    if job.settle is not None and job.settle.by_val:
        # a phase that selects by val needs val as much as select="val" does
        shared = 0 if val is None else records.shared_samples(train, val)
        if val is None or shared:
            got = "none" if val is None else f"{shared} samples of train in it"
            fix = "Pass val=... with other samples; what is chosen must not be by train or test."
            raise DataError("val", got=got, want="samples of its own to choose by", fix=fix)
    if job.recipe.select != "val":
        return None
    if val is None or not evaluate_every:
        got = "no validation set" if val is None else "evaluate_every=0"
        want = "a score on val after some epochs"
        raise ConfigError("select='val'", got=got, want=want, fix="Pass val=..., or select='last'.")
    shared = records.shared_samples(train, val)
    if shared:
        subject, want = "select='val'", "sets that share none: a model knows what it was trained on"
        got = f"{shared} images that are in both train and val"
        raise DataError(
            subject, got=got, want=want, fix="Take them out of val, or use select='last'."
        )
    # True: no common sample; None: not known
    return None if shared is None else True


def _setup_record(job: Job) -> dict[str, Any]:
    """Return the part of a run's record that is known before the first step."""
    named = dict(zip(("train", "val", "test"), job.sets, strict=True))
    schedule = job.recipe.schedule
    masks = isinstance(schedule, SparseSchedule | LayerSchedule)
    return {
        "format": FORMAT,
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": records.method_of(job.model),
        "parameters": records.parameter_counts(job.model),
        "task": records.describe(job.task),
        "objective": records.describe(job.objective),
        "training": records.plain_values(job.training),
        # the optimiser that was used, not None for the default
        "recipe": records.plain_values(
            keywords(job.recipe) | {"optimizer": job.recipe.optimizer or adamw}
        )
        | ({"schedule": records.describe(schedule)} if masks else {}),
        # strategies and stacks are described: their objects cannot be written
        "running": records.plain_values(
            keywords(job.running) | {"seat": _stack_size(job), "parallel": _parallel_record(job)}
        ),
        "data": {k: records.data_of(v) for k, v in named.items() if v is not None},
        "machine": records.machine(),
        "versions": records.versions(),
    }


def _parallel_record(job: Job) -> Any:
    """Return the strategy that distributes experts over processes, for the record; None without."""
    parallel = job.running.parallel
    return None if parallel is None else records.describe(parallel)


def _stack_size(job: Job) -> int | None:
    """Return the number of runs that step together; None for a run on its own."""
    seat = job.running.seat
    return None if seat is None else len(seat.stack.spent)


def _identity(setup: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return the settings and data that a checkpoint must have in common with the run."""
    parts = setup["data"]
    data = parts["train"]
    return {
        "method": setup["method"],
        "backbone": trunk_hash(model),
        "classes": data.get("classes"),
        "data": {k: v for k, v in data.items() if k != "classes"},
        "val": parts.get("val"),
        "test": parts.get("test"),
        "task": setup["task"],
        "objective": setup["objective"],
        "training": setup["training"],
        "recipe": setup["recipe"],
    }


def _results(loop: Loop, scores: Mapping[str, Scores], disjoint: bool | None) -> dict[str, Any]:
    best, masking = loop.at.best, loop.learner.masking
    return {
        **{split: metrics.scores() for split, metrics in scores.items()},
        **(
            {
                "routing": {n: list(load.share) for n, load in loop.at.loads.items()},
                "routing_active": {n: load.active for n, load in loop.at.loads.items()},
            }
            if loop.at.loads
            else {}
        ),
        "selection": {
            "rule": loop.recipe.select,
            "epoch": best.epoch if best else loop.epochs,
            "disjoint_from_train": disjoint,
            "stopped_after": loop.epochs if loop.at.step < loop.steps else None,
        },
        **({"solution": records.plain_values(loop.solution)} if loop.solution else {}),
        "steps": loop.at.step,
        "seconds": round(loop.at.seconds, 3),
        "cpu_seconds": round(loop.at.cpu_seconds, 3),
        **({} if masking is None else {"masks": masking.report()}),
    }
