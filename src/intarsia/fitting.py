"""`fit`: the training loop, joined with the hosts and the data it does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn
from torch.utils.data import Dataset

from .core.change import steps_of
from .core.errors import ConfigError
from .core.foreign import groups_of
from .data.images import ImageSet
from .data.loaders import tensors_or_prepared
from .data.splits import Splits
from .data.texts import TextSplits
from .data.transforms import eval_transform, input_config
from .folders.saved import save
from .hosts.anatomy.blocks import blocks, layers_of
from .hosts.attach.config import IntarsiaConfig
from .hosts.attach.peft import is_adapted, is_peft
from .processes.parallelism import WholeModel
from .schedules import FixedMask, LayerSchedule, Phased, SparseSchedule, masked_weights
from .train.evaluation import evaluate as score_set
from .train.folder import PHASES, owned, write_learned
from .train.loop import Job, Sets
from .train.objectives import Objective, Staged, plain
from .train.one_pass import OnePass
from .train.optimisers import adamw
from .train.options import Options
from .train.order import classes_of
from .train.plain_data import are_labels, as_dataset
from .train.probe import converges, solve_head
from .train.run import Finish, Run, fit_once
from .train.scores import Scores
from .train.settings import Training, settle
from .train.tasks import Task
from .train.tasks.choose import chosen


def fit(
    model: nn.Module,
    train: Dataset[Any] | Splits | TextSplits,
    val: Dataset[Any] | None = None,
    *,
    test: Dataset[Any] | None = None,
    task: Task | None = None,
    objective: Objective | Staged | OnePass = plain,
    training: Training | None = None,
    record: Mapping[str, Any] | None = None,
    evaluate_every: int = 1,
    finish: Finish = lambda run: run,
    **options: Unpack[Options],
) -> Run:
    """Train the parameters of a model that are not frozen, in place.

    train: what `load_data` or `load_texts` gives, with all its parts, pictures resized and
    normalised as the model's own configuration says. Or train, val, test: image sets, or map-style
    datasets of (inputs, label), or of mappings with labels and the model's arguments (pixel_values;
    input_ids), task_ids among them for methods that route by task; or two tensors or arrays,
    (inputs, labels), or rows of token ids (n, T). `fit(model, x, y)` is fit(model, (x, y)).
    task: the loss and the scores, see `intarsia.train.tasks`; None = by the first label: a class
    index, one for each token (-100 where nothing is to be predicted), a row of 0 and 1, or numbers.
    objective: the forwards of a step, see `intarsia.train.objectives`; a `Staged` one changes on
    the way. Losses of routers are added.
    A linear head that alone is trained, by the plain loss and without `lr`, is fitted to
    convergence instead of in steps: see `intarsia.train.probe.converged_probe`.
    The last epoch is the result, unless select="val"; `test` is scored once, at the end.
    record: kept in run.json.  evaluate_every: epochs between scores on val; 0 = only at the end.
    finish: gets the result and returns the one to keep, before run.json is written; anything it
    puts into the folder is then there whenever run.json is.
    options: the fields of Training, Recipe and Running by name; they win over `training`.

    Before each step every module with a method `before_step(step, steps)` is told so.
    With out="folder" the run can be killed at any moment and continues, bit for bit, with
    resume=True. Started by `accelerate launch` or torchrun, it trains data-parallel: a batch is
    shared out among the processes, and draws are the same as in one process.

    Raises: ConfigError, DataError and UnknownName before anything is trained; TrainingError for a
    loss that is not finite or a full disk; CheckpointError for a checkpoint that is damaged or of
    another run; Interrupted (a KeyboardInterrupt) after Ctrl-C, with the checkpoint written.
    """
    _no_phases(model)
    training, recipe, running = settle(training, options)
    recipe = replace(recipe, schedule=in_blocks(model, _own_schedule(model, recipe.schedule)))
    # pictures become tensors of the model's size; texts and tensors stay as they are
    sets, origins = sets_of(model, train, val, test)
    task = chosen(task, sets[0], recipe, classes_of(train))
    job = Job(model, sets, task, objective, training, recipe, running)
    if converges(job):
        job = replace(job, solve=solve_head)
    return fit_once(job, origins | dict(record or {}), evaluate_every, write_trained, finish)


def _own_schedule(model: nn.Module, schedule: Any) -> Any:
    """Return the training schedule for a model that was changed: each change may replace it."""
    for step in () if is_adapted(model) else steps_of(model):
        schedule = step.plan.change.scheduled(step.plan, schedule)
    return schedule


def in_blocks(model: nn.Module, schedule: Any) -> Any:
    """Limit a schedule of masks to layers inside the model's blocks, unless it names its layers.

    schedule: of masks, or another one, which is returned as it is. Embeddings, stems, heads and
    depthwise convolutions stay dense; in a model without known blocks every linear map and
    convolution is masked. `FixedMask` takes all layers that have a zero, wherever they are, and
    stacked experts, too.
    """
    masks = isinstance(schedule, SparseSchedule | LayerSchedule)
    if not masks or schedule.layers is not None or is_adapted(model):
        return schedule
    if isinstance(schedule, FixedMask):
        weights = masked_weights(model, computed=True).items()
        paths = tuple(name.removesuffix(".weight") for name, w in weights if bool((w == 0).any()))
    else:
        paths = tuple(
            f"{path}.{inner}"
            for path, block in blocks(model)
            for inner, layer in layers_of(block)
            if groups_of(layer) == 1
        )
    settings: Any = schedule
    return replace(settings, layers=paths) if paths else schedule


def sets_of(
    model: nn.Module,
    train: Dataset[Any] | Splits | TextSplits,
    val: Dataset[Any] | None,
    test: Dataset[Any] | None,
) -> tuple[Sets, dict[str, Any]]:
    """Return training, validation and test set as the model takes them, and where they come from.

    train: a set, or splits with all three; their record is the origin. Pictures are resized and
    normalised as the model's own configuration says.
    Raises: ConfigError for splits with another val or test as well; DataError for pictures and
    a model that does not say how it wants them.
    """
    origins: dict[str, Any] = {}
    if isinstance(train, Splits | TextSplits):
        if val is not None or test is not None:
            got = "sets beside splits that have their own"
            fix = "Call fit(model, splits), or fit(model, splits.train, val, test=test)."
            raise ConfigError("val, test", got=got, want="splits alone", fix=fix)
        origins["data"] = train.record
        train, val, test = train.train, train.val, train.test
    if are_labels(train, val):
        train, val = as_dataset(train, val), None
    if isinstance(train, ImageSet):
        origins["inputs"] = input_config(model).record()
    return (seen_by(model, train), seen_by(model, val), seen_by(model, test)), origins


def seen_by(model: nn.Module, dataset: Any) -> Any:
    """Resize and normalise pictures as a model's configuration says; plain tensors are a data set.

    dataset: an image set, or anything else that `fit` takes; other data are returned as they are.
    """
    if not isinstance(dataset, ImageSet):
        return as_dataset(dataset)
    return tensors_or_prepared(dataset, eval_transform(input_config(model)))


def evaluate(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    task: Task | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> Scores:
    """Score a model in evaluation mode, in the dtype of its frozen weights; return the scores.

    dataset: what `fit` takes as train, val or test. task: which scores, None = by the first label,
    as in `fit`: Metrics for classes, TokenMetrics for texts. batch_size: samples in a forward pass.
    workers: processes that load data. Random experts are merged in evaluation mode, so one forward
    is enough. With several processes each takes its share, and all get the scores of the whole set.
    Raises: ConfigError for a batch_size below 1; DataError for an empty set, or labels outside the
    model's classes.
    """
    dataset = seen_by(model, dataset)
    return score_set(model, dataset, task=task, batch_size=batch_size, workers=workers)


def write_trained(
    model: nn.Module, folder: Path, record: Mapping[str, Any], parts: WholeModel | None = None
) -> None:
    """Write a trained model into its run folder: a changed model as `save` does, others as weights.

    parts: gathers weights from several processes, None = the model has all of them.
    """
    if is_peft(model) or steps_of(model):
        save(model, folder, record=record, parts=parts)
    else:
        write_learned(model, folder, parts)


def _no_phases(model: nn.Module) -> None:
    """Refuse a model with an adapter of a method that trains in phases, which `fit` does not do."""
    configs: Mapping[str, Any] = model.peft_config if is_adapted(model) else {}
    for name in model.active_adapters if is_adapted(model) else ():
        config = configs[name]
        if isinstance(config, IntarsiaConfig) and isinstance(config.settings(), Phased):
            got = f"{config.method}, which is trained in phases"
            fix = "Call intarsia.fit_in_phases(model, method, train, ...) with its settings."
            raise ConfigError(f"adapter {name!r}", got=got, want="a training in phases", fix=fix)


@dataclass(frozen=True)
class PhasedRun:
    """The result of a training in phases: the method's own, and the run of each phase, by name.

    `run` is the last phase's; its scores are the result's.
    """

    found: Any
    runs: tuple[tuple[str, Run], ...]

    @property
    def run(self) -> Run:
        return self.runs[-1][1]


def fit_in_phases(
    model: nn.Module,
    method: Phased,
    train: Dataset[Any] | Splits | TextSplits,
    val: Dataset[Any] | None = None,
    *,
    test: Dataset[Any] | None = None,
    task: Task | None = None,
    objective: Objective | Staged = plain,
    training: Training | None = None,
    record: Mapping[str, Any] | None = None,
    evaluate_every: int = 1,
    finish: Finish = lambda run: run,
    **options: Unpack[Options],
) -> PhasedRun:
    """Train a model by a method of several phases, in place: see `fit` for the arguments.

    Each phase is a `fit` of its own: the same seed, a fresh optimiser, schedule and order, and the
    epochs that were asked for times the phase's own length. With out="folder" the last phase is the
    folder's run, and those before it are runs in `phases/` inside; resume=True continues in the
    phase that was interrupted. Only the last one is scored on `test`.

    Raises: as `fit` and the method do; the model is then where the phase in question left it.
    """
    # task, objective, training, record, options: as `fit` takes them. evaluate_every: epochs
    # between scores on val. finish: gets the last phase's run and returns the result.
    settings, recipe, running = settle(training, options)
    classes = classes_of(train)
    (train, val, test), origins = sets_of(model, train, val, test)
    task = chosen(task, train, recipe, classes)
    record = origins | dict(record or {})
    runs: list[tuple[str, Run]] = []
    # a generator: between two phases the method works on the model
    steps = method.phases(model, seed=settings.seed)
    try:
        with owned(running.out, running.resume):
            while True:
                phase = next(steps)
                keywords: Any = dict(options) | {
                    "optimizer": phase.optimizer(recipe.optimizer or adamw)
                }
                keywords |= {} if phase.schedule is None else {"schedule": phase.schedule}
                # the next phase, and what the method makes of it, need the whole model
                keywords |= {**phase.options, "gather": True}
                keywords["epochs"] = max(1, round(settings.epochs * phase.length))
                if running.out is not None and not phase.last:
                    keywords["out"] = running.out / PHASES / f"{len(runs) + 1}-{phase.name}"
                # the test set is for the result alone
                sets = train, val, test if phase.last else None
                job = Job(model, sets, task, objective, *settle(training, keywords), phase.settle)
                last = [finish] if phase.last else []
                run = fit_once(job, record, evaluate_every, write_trained, *last)
                runs.append((phase.name, run))
    except StopIteration as end:
        return PhasedRun(end.value, tuple(runs))
    finally:
        steps.close()


def fit_as(method: object) -> Callable[..., Run]:
    """Return the function that trains a method: `fit`, or the last run of `fit_in_phases`."""
    if not isinstance(method, Phased):
        return fit
    phased: Phased = method

    def train_in_phases(model: nn.Module, *sets: Any, **options: Any) -> Run:
        return fit_in_phases(model, phased, *sets, **options).run

    return train_in_phases
