"""Carry an experiment out: pictures, model, method, training, and a run folder that says all."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ..core import interrupts
from ..core.errors import ConfigError
from ..core.schema import to_json
from ..data import (
    Fold,
    ImageSet,
    ImageTensors,
    InputConfig,
    Prepared,
    Splits,
    backbone,
    eval_transform,
    hold_out,
    input_config,
    load_data,
    tasks,
    tensors,
    train_transform,
    trunk_fingerprint,
)
from ..data.corpora import is_text
from ..fitting import fit_as
from ..folders.verbs import apply
from ..reports.numbers import plural
from ..reports.runs import save_mistakes
from ..sparse.prune.rows import training_rows
from ..train import Metrics, Run, Running, task_accuracy, task_heads
from ..train.folder import owned
from ..train.loop import Sets
from ..train.objectives import Objective
from ..train.processes import device_named, on_main, processes
from ..train.scores import best_temperature
from ..train.settings import keywords
from ..train.weights import weights_of
from . import experiment as experiments
from . import language, once, settings
from .experiment import Adapted, Experiment
from .own_rates import converges, with_own_rate
from .restoring import with_teacher
from .shared import SharedWork, Spent

Report = Callable[[str], None]


def carry_out(
    experiment: Experiment,
    running: Running,
    report: Report,
    shared: SharedWork | None = None,
    *,
    score: bool = True,
    untrimmed: bool = False,
    evaluate_every: int = 1,
    temperature: float | None = None,
    search: Mapping[str, Any] | None = None,
    fold: Fold | None = None,
    choice: Mapping[str, Any] | None = None,
) -> Run:
    """Train as the experiment says; return the run with its results.

    running: where and how it runs; its `out` is the folder to which the run is written, so that it
    can be resumed and read. report: gets lines of progress. shared: results that several runs have
    in common, such as decoded pictures, are stored there; the outcome is the same without it.
    score: False leaves the test part alone, as a search must. untrimmed: True computes the whole
    model in every step, also what frozen parts compute alike each time; for tests. evaluate_every:
    epochs from one validation to the next. temperature: softmax temperature of the `tempered_loss`
    of a run without a validation part. search: how the learning rate was found, for the record.
    fold: the share of the training pictures that is held out and becomes the validation part.
    choice: how the whole experiment was chosen, for the record, with the method's "label". Texts
    are carried out by `language`.
    Raises: what `load_data`, `backbone`, `apply` and `fit` raise; UnknownName for a method that is
    not listed.
    """
    interrupts.check()
    if is_text(experiment.pictures.data):
        return language.carry_out(experiment, running, report, score=score, search=search)
    method = method_of(experiment)
    recipe = recipe_of(method, experiment)
    device_named(running.device)  # one that is not there is refused, too
    shared = shared or SharedWork()
    # a folder in use is refused before the work begins
    with owned(running.out, running.resume, experiment.pictures.data):
        return _on_pictures(
            experiment,
            method,
            recipe,
            running,
            report,
            shared,
            score=score,
            untrimmed=untrimmed,
            evaluate_every=evaluate_every,
            temperature=temperature,
            search=search,
            fold=fold,
            choice=choice,
        )


def _on_pictures(
    experiment: Experiment,
    method: Any,
    recipe: dict[str, Any],
    running: Running,
    report: Report,
    shared: SharedWork,
    *,
    score: bool,
    untrimmed: bool,
    evaluate_every: int,
    temperature: float | None,
    search: Mapping[str, Any] | None,
    fold: Fold | None,
    choice: Mapping[str, Any] | None,
) -> Run:
    """Train an experiment on pictures in a reserved run folder; return the run with its results."""
    # method: settings of its method. recipe: keywords of `fit`; its objective and class weights
    # depend on the data and are completed here. running: where and how it runs, with the run's
    # folder. shared: store of what several runs have in common. score: False does not look at the
    # test part. untrimmed: every step computes all of the model. evaluate_every: epochs between
    # validations. temperature: of the softmax, for the loss of a run without validation part.
    # search, choice: how rate and experiment were chosen, for the record. fold: share of the
    # training pictures that is held out for validation.
    report(f"Reading the pictures of {experiment.pictures.data}.")
    data = shared.get("pictures", pictures_key(experiment), lambda: pictures_of(experiment, report))
    recipe["objective"] = with_teacher(
        recipe["objective"],
        settings.teacher_of(experiment.objective),
        lambda teacher: model_of(teacher.adapted, len(data.classes), teacher.training.seed),
        lambda name: backbone(name, classes=len(data.classes), size=experiment.adapted.size),
        tuple(data.classes),
    )
    recipe["objective"] = by_task(recipe["objective"], experiment, data)
    if weights := recipe["class_weights"]:
        recipe["class_weights"] = weights_of(weights, data.classes, data.train.labels)
    data = data if fold is None else hold_out(data, fold)  # its training part is now smaller
    method, budget_settings = for_budget(method, experiment, len(data.train), report)
    adapted, seed, classes = experiment.adapted, experiment.training.seed, len(data.classes)
    key = trunk_key(adapted) | {"classes": classes, "seed": seed}
    # a copy, since the method changes the model in place and other runs share the original
    model = copy.deepcopy(shared.get("model", key, lambda: model_of(adapted, classes, seed)))
    experiment = with_own_rate(experiment, model)
    record = record_of(model, method, experiment, data) | {"chosen": budget_settings}
    record |= {"search": search} if search else {}
    record |= {"choice": choice, "label": choice["label"]} if choice else {}
    identity = {"inputs": record["inputs"], "pictures": hashes(data)}
    sets = sets_of(experiment, data, input_config(model), shared, identity, score=score)
    identity = identity | {"trunk": record["trunk"]}  # tokens depend on it, pixels do not
    model = with_method(model, method, experiment, data.classes, sets[0])
    model.to(device_named(running.device))
    on_main(processes(), lambda: experiments.save(experiment, running.out))  # to be resumable
    report(_beginning(experiment, len(data.train), record["inputs"]["size"]))
    options = keywords(running) | recipe
    options |= {"training": experiment.training, "record": record, "evaluate_every": evaluate_every}
    # a probe that is fitted to convergence looks at each picture once in any case
    probe = converges(experiment)
    frozen = experiment.adapted.frozen_once and not probe
    computed = once.tokens_once if frozen else once.pictures_each_step
    with ExitStack() as stack:
        enter = stack.enter_context
        sets, spent = enter(computed(model, sets, experiment, running, shared, identity))
        if not (
            probe or untrimmed or running.recompute or running.compile
        ):  # they need the whole forward
            trim_inputs = method, recipe["objective"], experiment
            sets, trimming = enter(once.trimmed(model, sets, *trim_inputs, shared, identity))
            spent = spent.plus(trimming)
        train, val, test = sets
        finish = partial(finished, data=data, spent=spent, temperature=temperature)
        return fit_as(method)(model, train, val, test=test, finish=finish, **options)


def finished(run: Run, *, data: Splits, spent: Spent, temperature: float | None = None) -> Run:
    """Complete a run's record with its task, times and temperature; save its test mistakes.

    data: the pictures it was trained and tested on. spent: time of computations done once before
    training, such as features of frozen blocks; it is added to the run's. temperature: the softmax
    temperature for a run without a validation part; else it is fitted on that part.
    """
    if run.out is not None and isinstance(metrics := run.test, Metrics):
        out, image = run.out, data.test.image
        save = partial(save_mistakes, out, image, metrics.logits, metrics.labels, data.classes)
        on_main(processes(), save)
    if temperature is not None and run.val is None and isinstance(run.test, Metrics):
        run = with_temperature(run, run.test, temperature)
    record = once.with_seconds(with_own_task(run, data), spent)
    # a search keeps the best temperature, which a final run without validation then uses
    if run.test is None and isinstance(val := run.val, Metrics):  # for a run that counts
        fitted = best_temperature(val.logits, val.labels)
        record["results"] = record["results"] | {"temperature": fitted}
    return dataclasses.replace(run, record=record)


def _beginning(experiment: Experiment, pictures: int, size: Sequence[int]) -> str:
    """Return the message with which a training begins.  size: height and width, px."""
    pixels = " x ".join(map(str, size))
    if converges(experiment):
        return f"Fitting {experiment.label} to {pictures:,} pictures of {pixels} px."
    epochs = plural(experiment.training.epochs, "epoch")
    return f"Training {experiment.label} on {pictures:,} pictures of {pixels} px, {epochs}."


def with_temperature(run: Run, test: Metrics, temperature: float) -> Run:
    """Return the run with its test loss at a softmax temperature that was fitted on validation."""
    test = test.tempered_by(temperature)
    results = dict(run.record["results"]) | {"test": test.scores()}
    return dataclasses.replace(run, test=test, record=dict(run.record) | {"results": results})


def record_of(
    model: nn.Module, method: Any, experiment: Experiment, data: Splits
) -> dict[str, Any]:
    """Return what a run's run.json holds besides the results of the training loop."""
    return {
        "label": experiment.label,
        "command": experiment.command(),
        "experiment": experiment.flat(),
        "model": experiment.adapted.model,
        "trunk": trunk_fingerprint(model),
        "data": data.record,
        "inputs": input_config(model).record(augment=experiment.pictures.augment),  # pyright: ignore
        "method": settings.describe_method(method),
    }


def recipe_of(method: Any, experiment: Experiment) -> dict[str, Any]:
    """Return keywords of `fit` that are no fields of `Training`: objective, schedule, and so on.

    method: settings of the method; a published recipe brings an objective and a schedule of its
    own.
    Raises: ConfigError for options that exclude each other.
    """
    options = to_json(experiment.recipe)
    options["objective"] = settings.objective(experiment.objective, method)
    # a pruned model keeps its zeros, even without a schedule
    options |= settings.schedule_of(experiment.schedule, method)
    if settings.teacher_of(experiment.objective) and experiment.adapted.frozen_once:
        want, fix = "pictures, which the teacher sees, too", "Leave --frozen-once out."
        raise ConfigError("--teacher", got="--frozen-once with it", want=want, fix=fix)
    # a published recipe brings its own objective and schedule; the command line's stay out
    published = method.fit_options
    if published is None:
        return options
    if experiment.objective != "plain" or experiment.adapted.frozen_once:
        subject, got = (
            f"method {experiment.adapted.method!r}",
            "--objective or --frozen-once with it",
        )
        want = "neither: the recipe has its objective, and dropout in every block"
        raise ConfigError(
            subject, got=got, want=want, fix="Leave them out, or use its method alone."
        )
    training_fields = {f.name for f in dataclasses.fields(experiment.training)} - {"weight_decay"}
    return options | {
        name: value for name, value in published.items() if name not in training_fields
    }


def by_task(objective: Objective, experiment: Experiment, data: Splits) -> Objective:
    """Return the objective, with one classification head for each task if the experiment asks.

    experiment: says so by an objective named "task_heads". data: its record lists the classes of
    each task.
    Raises: ConfigError for data that are one task.
    """
    if not experiment.objective.startswith(experiments.HEADS):
        return objective
    if "tasks" not in data.record:
        subject = f"--objective {experiment.objective}"
        got, want = f"{experiment.pictures.data}, one task", "several tasks in one label space"
        raise ConfigError(subject, got=got, want=want, fix="Name them as SUITE/TASK+TASK.")
    return partial(task_heads, groups=list(data.record["tasks"].values()), over=objective)


def with_own_task(run: Run, data: Splits) -> dict[str, Any]:
    """Return a run's record; for joint tasks, add the accuracy among each picture's own classes."""
    results = dict(run.record["results"])
    if "tasks" in data.record and isinstance(run.test, Metrics):
        groups = list(data.record["tasks"].values())
        # an answer is right if its logit is the highest among its own task's classes
        share = task_accuracy(run.test.logits, run.test.labels, groups)
        results["test"] = results["test"] | {"own_task_accuracy": share}
    return dict(run.record) | {"results": results}


def pictures_key(experiment: Experiment) -> dict[str, Any]:
    """Return everything that the pictures of an experiment depend on, as a key of `SharedWork`."""
    pictures = experiment.pictures
    seed = experiment.training.seed if pictures.split_seed is None else pictures.split_seed
    return dataclasses.asdict(pictures) | {"split_seed": seed}


def hashes(data: Splits) -> dict[str, str]:
    """Return the SHA-256 of each part's pictures and labels."""
    return {part: part_record["sha256"] for part, part_record in data.record["parts"].items()}


def trunk_key(adapted: Adapted) -> dict[str, Any]:
    """Return everything that the trunk of a model depends on, as a part of a key."""
    return {name: getattr(adapted, name) for name in ("model", "size", "pretrained")}


def pictures_of(experiment: Experiment, report: Report) -> Splits:
    """Read the pictures of an experiment; return their training, validation and test parts."""
    pictures = experiment.pictures
    seed = experiment.training.seed if pictures.split_seed is None else pictures.split_seed
    # `--images` below 1 is a share of the training part, else a number of pictures
    share = pictures.images is not None and 0 < pictures.images < 1
    size: dict[str, Any] = {"fraction" if share else "train": pictures.images}
    return load_data(
        pictures.data,
        seed=seed,
        **size,
        shots=pictures.shots,
        val=pictures.val,
        test=pictures.test,
        on_error="skip" if pictures.skip_unreadable else "raise",
        progress=report,
    )


def model_of(adapted: Adapted, classes: int, seed: int) -> nn.Module:
    """Return the backbone with a new classification head, before a method changes it."""
    return backbone(
        adapted.model, classes=classes, size=adapted.size, seed=seed, pretrained=adapted.pretrained
    )


def sets_of(
    experiment: Experiment,
    data: Splits,
    inputs: InputConfig,
    shared: SharedWork,
    identity: Mapping[str, Any],
    *,
    score: bool = True,
) -> Sets:
    """Return training, validation and test part as tensors that the model can take.

    identity: the key under which they are stored there. score: False makes no test part.
    Raises: ConfigError for an augmentation that would change the labels.
    """
    augment = experiment.pictures.augment

    def of(part: str, images: ImageSet) -> Dataset[Any]:
        """Return one part's pictures without augmentation, prepared once."""
        return held(images, inputs, shared, once.of_part(identity, part))

    task = tasks.find(experiment.pictures.data)
    if augment != "none" and task and not task.crops:
        got = f"{augment!r} for {experiment.pictures.data}"
        want = "'none': its labels are places, angles and counts, which a crop or flip changes"
        raise ConfigError("--augment", got=got, want=want, fix="Leave it out.")
    if augment == "none":
        # pictures that never change are prepared once and kept; augmented ones in every epoch
        train = of("train", data.train)
    else:
        look: Any = train_transform(inputs, augment=augment)  # pyright: ignore
        train = Prepared(data.train, look, seed=experiment.training.seed)
    val = None if data.val is None else of("val", data.val)
    return train, val, of("test", data.test) if score else None


def held(
    images: ImageSet, inputs: InputConfig, shared: SharedWork | None = None, identity: Any = None
) -> Dataset[Any]:
    """Return pictures as the model takes them in evaluation, in memory if they fit there.

    images: the pictures; those that do not fit are decoded whenever they are used. shared: where
    prepared pictures are stored for other runs, under the key `identity`; None = nowhere.
    """
    look = eval_transform(inputs)
    try:
        if shared is None:
            return tensors(images, look)
        # several runs of one process prepare the same pictures once
        pixels, _ = shared.tensors("pixels", identity, lambda: tensors(images, look))
        return ImageTensors(*pixels.tensors, digests=images.digests)
    except ConfigError:  # more than half of the free memory
        # then each picture is decoded again whenever it is needed
        return Prepared(images, look)


def method_of(experiment: Experiment) -> Any:
    """Return the settings of the experiment's method.  Raises: as `settings.chosen` does."""
    return settings.chosen(experiment.adapted, experiment.training)


def for_budget(
    method: Any, experiment: Experiment, images: int, report: Report
) -> tuple[Any, dict[str, Any]]:
    """Let a method choose settings that nobody gave, for this number of images and epochs.

    method: its settings; only mixtures choose, how many of their experts are active. Returns the
    method's settings, and those that were chosen by name.
    """
    names = {name.partition(".")[0] for name in settings.pairs(experiment.adapted.settings)}
    epochs = experiment.training.epochs
    suited = method.suited_to(images, epochs, names)
    if suited is method:
        return method, {}
    # the first line of the method's own docstring says why
    reason = (inspect.getdoc(type(method).for_budget) or "").partition("\n")[0]
    report(
        f"{experiment.adapted.method}: active={suited.active} of {suited.experts} parts for "
        f"{images:,} images x {epochs} epochs. {reason} (--set active=K decides it yourself.)"
    )
    return suited, {"active": suited.active}


def with_method(
    model: nn.Module,
    method: Any,
    experiment: Experiment,
    classes: tuple[str, ...],
    train: Any = None,
) -> nn.Module:
    """Return the model, changed by the method of an experiment, for example with adapters added.

    train: the training part, from which a pruner takes its calibration rows.
    """
    change = settings.change_of(method, experiment.adapted, classes)
    return apply(model, change, training_rows(change, train), seed=experiment.training.seed)
