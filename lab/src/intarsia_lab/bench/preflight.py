"""What can be told of a plan before its first run: a model that cannot be, data that are not there.

Without it either would be found again by every single run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from intarsia.core.errors import ConfigError, DataError
from intarsia.data import outline
from intarsia.hosts.anatomy.blocks import blocks
from intarsia.hosts.anatomy.prefix import SPLITTABLE
from intarsia.runs.experiment import Adapted

from ..materials.suites import reading, root
from .folder import RESULTS
from .plan import BenchPlan, Slot
from .report import records

SHOWN = 20  # missing paths in one message


def check(plan: BenchPlan, out: Path, report: Callable[[str], None]) -> None:
    """Check a plan before its first run: the model, and which pictures are on disk.

    Nothing is read or downloaded. plan: methods, tasks and seeds; out: folder of the results;
    report: gets a line on tasks with missing pictures.

    Raises: UnknownName, ConfigError and AssetError for a model that does not exist or has no such
    blocks; DataError if no task is on disk, unless all runs are there already.
    """
    check_model(plan)
    missing = absent(plan)
    # tasks with all results need no pictures
    gone = {name: missing[name] for name in unfinished(plan, out) if name in missing}
    # one task on disk is enough to begin: the runs of the others fail and are recorded
    if gone and len(missing) == len(plan.tasks):
        paths = [path for absent_paths in missing.values() for path in absent_paths]
        raise DataError(
            f"pictures of {plan.suite.name}, {len(missing)} of {len(missing)} tasks",
            got="missing:"
            + "".join(f"\n  {path}" for path in paths[:SHOWN])
            + (f"\n  and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
            + "\n",
            want="those of one task at least",
            fix=f"{plan.suite.how} The suite's folder is {root(plan.suite)} "
            "(set INTARSIA_DATA to move it).",
        )
    if gone:
        listing = "; ".join(f"{name} (missing: {paths[0]})" for name, paths in gone.items())
        report(f"Not on disk, so that every run of it will fail: {listing}")


def absent(plan: BenchPlan) -> dict[str, list[Path]]:
    """Return the missing files of each task that lacks some, by task."""
    folder = root(plan.suite)
    missing = {task.name: reading.missing(task, folder) for task in plan.tasks}
    return {name: paths for name, paths in missing.items() if paths}


def unfinished(plan: BenchPlan, out: Path) -> list[str]:
    """Return the names of tasks that have a run without a score.

    plan: methods, tasks and seeds; out: folder of the results.
    """
    file = out / RESULTS
    have = (
        {
            (r.task.name, r.method.name, r.seed, r.setup.epochs, r.setup.model)
            for r in records.read(file)
            # a failed run counts as missing: it is tried again
            if r.status == "done"
        }
        if file.exists()
        else set()
    )

    def done(place: Slot) -> bool:
        """Return True if a slot has a score with as many epochs and the same model."""
        epochs = plan.final(place).training.epochs
        return (place.task.name, place.arm.name, place.seed, epochs, plan.model) in have

    return list(dict.fromkeys(p.task.name for p in plan.places() if not done(p)))


def check_model(plan: BenchPlan) -> nn.Module | None:
    """Check that the plan's model exists, and that its last blocks can be trained alone if asked.

    With `frozen_once` the frozen first blocks run once and their outputs are stored, which needs a
    model of SPLITTABLE; a linear probe does not. Returns the model on the meta device, None for one
    on a hub.

    Raises: UnknownName, ConfigError and AssetError, as `check` does.
    """
    adapted, task, seed = plan.start.adapted, plan.tasks[0], plan.seeds[0]
    model = outline(adapted.model, size=adapted.size, pretrained=adapted.pretrained)
    if model is None:
        return None
    finals = [plan.final(Slot(task, arm, seed)).adapted for arm in plan.arms]
    for final in finals:
        if final.last_blocks is not None:
            _check_last(final, model)
    # the features that a linear probe reads can be had of any model
    split = any(f.frozen_once and f.method != "linear" for f in finals)
    if split and not isinstance(model, SPLITTABLE):
        raise ConfigError(
            f"--last-blocks with model {adapted.model!r}",
            got=type(model).__name__,
            want="a VisionTransformer or EfficientNet of timm: other blocks are computed once",
            fix="Use --last-blocks 0: all blocks are trained, in every step.",
        )
    return model


def _check_last(adapted: Adapted, model: nn.Module) -> None:
    """Check the number of last blocks to adapt.  Raises: ConfigError if the model has fewer."""
    count = len(blocks(model)) - adapted.frozen_once  # the first one is frozen then
    if not 1 <= (adapted.last_blocks or 0) <= count:
        subject = f"--last-blocks with model {adapted.model!r}"
        want = f"1 ... {count}" if count > 0 else "0: no blocks are known in it"
        raise ConfigError(
            subject, got=adapted.last_blocks, want=want, fix="0 stands for all of them."
        )
