"""Carry an experiment out: pictures, model, method, training, and a run folder that says all."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ..core import Method
from ..core.errors import ConfigError, UnknownName
from ..core.registry import keys, method_to_dict
from ..data import (
    ImageSet,
    InputConfig,
    Prepared,
    Splits,
    backbone,
    eval_transform,
    input_config,
    load_data,
    tensors,
    train_transform,
    trunk_fingerprint,
)
from ..hosts import adapt
from ..hosts.prefix import first_trained_block, reading_tokens, run_prefix
from ..report import save_mistakes
from ..train import Run, Running, fit
from ..train.checkpoint import write_json
from ..train.folder import RUN, prepare
from ..train.precision import DTYPES
from ..train.record import head_of
from . import experiment as experiments
from . import settings
from .experiment import BASELINES, Adapted, Experiment

Report = Callable[[str], None]
Sets = tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any] | None]  # train, val, test


def carry_out(experiment: Experiment, running: Running, report: Report) -> Run:
    """Train as the experiment says; `running.out` becomes a folder that can be resumed and read.

    Raises: what `load_data`, `backbone`, `adapt` and `fit` raise; UnknownName for a method that is
    not listed.
    """
    method = method_of(experiment.adapted)
    objective = settings.objective(experiment.objective)
    if running.out is not None and running.out.exists():
        prepare(running.out, running.resume)  # a folder in use is refused before the work begins
    data = pictures_of(experiment, report)
    if not isinstance(method, str):
        method = for_budget(method, experiment, len(data.train), report)
    model = model_of(experiment.adapted, len(data.classes), experiment.training.seed)
    inputs, trunk = input_config(model), trunk_fingerprint(model)
    train, val, test = sets_of(experiment, data, inputs)
    model = with_method(model, method, experiment, data.classes)
    about = {
        "label": experiment.label, "command": experiment.command(),
        "model": experiment.adapted.model, "trunk": trunk, "data": data.record,
        "inputs": inputs.record(augment=experiment.pictures.augment),  # pyright: ignore
        "method": method if isinstance(method, str) else method_to_dict(method),
    }  # fmt: skip
    if running.out is not None:
        prepare(running.out, running.resume)
        experiments.save(experiment, running.out)
    report(
        f"Training {experiment.label} on {len(data.train):,} pictures of "
        f"{inputs.size[0]} x {inputs.size[1]} px, {experiment.training.epochs} epochs."
    )
    options = {name: getattr(running, name) for name in running.__dataclass_fields__}
    options |= {name: getattr(experiment.recipe, name) for name in experiments.RECIPE}
    with (tokens_once if experiment.adapted.frozen_once else pictures_each_step)(
        model, (train, val, test), experiment, running
    ) as (sets, once):
        run = fit(
            model, sets[0], sets[1], test=sets[2], training=experiment.training,
            objective=objective, record=about, **options,
        )  # fmt: skip
    run = dataclasses.replace(run, record=with_seconds(run.record, once))
    if running.out is not None:
        write_json(running.out / RUN, run.record)
        if run.test is not None:
            found = run.test
            save_mistakes(running.out, data.test.image, found.logits, found.labels, data.classes)
    return run


@contextmanager
def pictures_each_step(
    model: nn.Module, sets: Sets, experiment: Experiment, running: Running
) -> Iterator[tuple[Sets, float]]:
    """The sets as they are, and no seconds spent on them."""
    yield sets, 0.0


@contextmanager
def tokens_once(
    model: nn.Module, sets: Sets, experiment: Experiment, running: Running
) -> Iterator[tuple[Sets, float]]:
    """Inside, the model reads tokens; gives them for each set, and the seconds of the first.

    Raises: ConfigError with augmentation, which changes a picture in every epoch, or recomputation.
    """
    if experiment.pictures.augment != "none" or running.recompute:
        raise ConfigError(
            "--frozen-once", got="--augment or --recompute with it", want="it alone",
            fix="Leave --frozen-once out: every step then computes every block.",
        )  # fmt: skip
    dtype = DTYPES[experiment.training.precision]
    with reading_tokens(model, first_trained_block(model)) as prefix:
        start = time.perf_counter()
        train = run_prefix(prefix, sets[0], dtype=dtype)
        seconds = time.perf_counter() - start
        val, test = (
            None if images is None else run_prefix(prefix, images, dtype=dtype)
            for images in sets[1:]
        )
        yield (train, val, test), seconds


def with_seconds(record: Mapping[str, Any], once: float) -> dict[str, Any]:
    """The record with what was computed once for the training pictures counted as training time."""
    results = dict(record["results"])
    if once:
        results |= {"seconds": round(results["seconds"] + once, 3), "seconds_once": round(once, 3)}
    return dict(record) | {"results": results}


def pictures_of(experiment: Experiment, report: Report) -> Splits:
    """The three parts of the data."""
    asked = experiment.pictures
    seed = experiment.training.seed if asked.split_seed is None else asked.split_seed
    return load_data(
        asked.data, seed=seed, train=asked.images, val=asked.val, test=asked.test,
        on_error="skip" if asked.skip_unreadable else "raise", progress=report,
    )  # fmt: skip


def model_of(adapted: Adapted, classes: int, seed: int) -> nn.Module:
    """The backbone with a new head, before anything is added."""
    return backbone(
        adapted.model, classes=classes, size=adapted.size, seed=seed, pretrained=adapted.pretrained
    )


def sets_of(experiment: Experiment, data: Splits, inputs: InputConfig) -> Sets:
    """Training, validation and test as the model sees them."""
    augment: Any = experiment.pictures.augment
    if augment == "none":
        train = held(data.train, inputs)
    else:
        train = Prepared(data.train, train_transform(inputs, augment=augment))
    return train, None if data.val is None else held(data.val, inputs), held(data.test, inputs)


def held(images: ImageSet, inputs: InputConfig) -> Dataset[Any]:
    """A set as the model sees it in evaluation, in memory if it fits there."""
    try:
        return tensors(images, eval_transform(inputs))
    except ConfigError:  # more than half of the free memory
        return Prepared(images, eval_transform(inputs))


def method_of(asked: Adapted) -> Method | str:
    """The method's config, or the name of a baseline.

    Raises: UnknownName, ConfigError.
    """
    if asked.method in BASELINES:
        if asked.settings:
            raise ConfigError(
                f"--set with method {asked.method!r}", got=", ".join(asked.settings),
                want="none: it has no settings", fix="Leave --set out.",
            )  # fmt: skip
        return asked.method
    if asked.method not in keys():
        raise UnknownName("method", asked.method, (*BASELINES, *keys()))
    return settings.method(asked.method, asked.settings)


def for_budget(found: Method, experiment: Experiment, images: int, report: Report) -> Method:
    """What the method itself would choose for so many images and epochs, where nothing was said.

    A config class may offer `for_budget(images, epochs, **settings)`; it is asked unless `active`
    was set.
    """
    choose = getattr(type(found), "for_budget", None)
    given = {name.partition(".")[0] for name in settings.pairs(experiment.adapted.settings)}
    if choose is None or "active" in given:
        return found
    epochs = experiment.training.epochs
    chosen = choose(images=images, epochs=epochs, **{n: getattr(found, n) for n in given})
    why = (inspect.getdoc(choose) or "").partition("\n")[0]
    report(
        f"{experiment.adapted.method}: active={chosen.active} of {chosen.experts} parts for "
        f"{images:,} images x {epochs} epochs. {why} (--set active=K decides it yourself.)"
    )
    return chosen


def with_method(
    model: nn.Module, method: Method | str, experiment: Experiment, classes: tuple[str, ...]
) -> nn.Module:
    """The model with the method's cells, or with what a baseline trains."""
    asked = experiment.adapted
    if isinstance(method, str):
        return _baseline(model, method, asked)
    count = asked.last_blocks
    if count is not None and count < 1:
        raise ConfigError("--last-blocks", got=count, want="at least 1", fix="Try 6.")
    return adapt(
        model, method, targets=list(asked.targets) or None,
        layers=None if count is None else range(-count, 0),
        seed=experiment.training.seed, classes=classes,
    )  # fmt: skip


def _baseline(model: nn.Module, name: str, asked: Adapted) -> nn.Module:
    if asked.last_blocks is not None or asked.targets:
        raise ConfigError(
            f"--last-blocks or --target with method {name!r}", got="places for cells",
            want="none: it adds no cells", fix="Leave them out.",
        )  # fmt: skip
    head = head_of(model)
    learns = model if name == "full" else head
    if not isinstance(learns, nn.Module):
        raise ConfigError(
            f"head of {type(model).__name__}", got="none", want="a classifier to train",
            fix="Use another model.",
        )  # fmt: skip
    model.requires_grad_(False)
    learns.requires_grad_(True)
    return model
