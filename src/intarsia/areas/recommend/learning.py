"""Training of a recommender on events: the loop of `fit`, or in closed form without any step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...core.errors import ConfigError
from ...data.interactions import Interactions
from ...processes.parallelism import WholeModel
from ...train.folder import owned, write_learned
from ...train.loop import Job
from ...train.run import Finish, Run, fit_once
from ...train.settings import settle
from ...train.tasks import own_losses
from ...train.tasks.choose import chosen

if TYPE_CHECKING:
    from .recommender import Recommender

PLACES = ("device", "out", "resume", "seed", "trackers")  # keywords that a solved model takes


def train_recommender(
    model: Recommender,
    train: Interactions,
    val: Interactions | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    finish: Finish = lambda run: run,
    **options: Any,
) -> Run:
    """Train a model on events in place, by its own losses.

    val: held-out events, which each epoch is scored on; record, finish: as of `intarsia.fit`;
      options: keywords of `fit`.
    Raises: as `fit`.
    """
    training, recipe, running = settle(None, options)
    sets = model.samples(train), None if val is None else model.questions(val), None
    task = chosen(model.task, sets[0], recipe)
    job = Job(model, sets, task, own_losses, training, recipe, running)
    return fit_once(job, dict(record or {}), 1, _write, finish)


def solve_recommender(
    model: Recommender,
    solve: Any,
    *,
    record: Mapping[str, Any] | None = None,
    finish: Finish = lambda run: run,
    **options: Any,
) -> Run:
    """Solve a model that has a closed form, where others train; return a run without steps.

    record, finish: as of `train_recommender`; options: keywords of `fit`; the keywords of steps are
      refused.
    Raises: ConfigError.
    """
    name = type(model.settings).__name__
    strange = [n for n, value in options.items() if n not in PLACES and value is not None]
    if strange:
        fix = f"Leave it out: {name} has no epochs, rates or batches."
        want = "none for a model in closed form"
        raise ConfigError("options of training", got=", ".join(strange), want=want, fix=fix)
    out = None if options.get("out") is None else Path(options["out"])
    with owned(out, bool(options.get("resume"))):
        if options.get("device"):
            model.to(options["device"])
        solve()
        return finish(Run({"record": dict(record or {})}, history=(), val=None, test=None, out=out))


def _write(
    model: nn.Module, folder: Path, record: Mapping[str, Any], parts: WholeModel | None = None
) -> None:
    """Write a model as `fit_once` asks; record: unused, a recommender's folder has no record."""
    write_learned(model, folder, parts)
