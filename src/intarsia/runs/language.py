"""Carry an experiment on texts out: tokens, a language model, method, training, scores before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..core.errors import ConfigError
from ..core.registry import card
from ..core.schema import to_json
from ..data import trunk_fingerprint
from ..data.language_models import language_model
from ..data.texts import Texts, TextSplits, check_text, load_texts
from ..fitting import fit_as
from ..folders.verbs import apply
from ..reports.numbers import plural
from ..sparse.prune.rows import training_rows
from ..train import Run, Running, evaluate
from ..train.folder import owned
from ..train.precision import cast_frozen
from ..train.processes import on_main, processes
from ..train.settings import keywords
from . import settings
from .experiment import Experiment, Pictures, save
from .own_rates import with_text_rate
from .restoring import with_teacher

PICTURES_ONLY = (
    *("shots", "augment", "skip_unreadable", "size", "frozen_once"),
    *("mixup", "cutmix", "class_weights"),
)


def carry_out(
    experiment: Experiment,
    running: Running,
    report: Callable[[str], None],
    *,
    score: bool = True,
    search: Mapping[str, Any] | None = None,
) -> Run:
    """Train on texts as the experiment says, with scores on the test part before and after.

    running: where and how it runs, with the folder `out`. report: gets lines of progress. score:
    False does not look at the test part. search: how the learning rate was found, for the record.
    Raises: what `load_texts`, `language_model`, `adapt` and `fit` raise; ConfigError for options
    that mean nothing for texts; UnknownName for a method that is not listed.
    """
    check_options(experiment)
    check_text(experiment.pictures.data)
    # a folder in use is refused before the work begins
    with owned(running.out, running.resume, experiment.pictures.data):
        return _on_texts(experiment, running, report, score=score, search=search)


def _on_texts(
    experiment: Experiment,
    running: Running,
    report: Callable[[str], None],
    *,
    score: bool,
    search: Mapping[str, Any] | None,
) -> Run:
    """Train an experiment on texts in a reserved run folder; return the run with its results."""
    experiment = with_text_rate(experiment)
    adapted, seed = experiment.adapted, experiment.training.seed
    # the tokenizer is the model's, so that the model comes before the texts
    model, tokenizer = language_model(
        adapted.model, pretrained=adapted.pretrained, seed=seed, progress=report
    )
    # validation and test rows are drawn by the seed
    data = texts_of(experiment, tokenizer, report)
    record = {
        "label": experiment.label,
        "command": experiment.command(),
        "experiment": experiment.flat(),
        "model": adapted.model,
        "trunk": trunk_fingerprint(model),
        "data": data.record,
    }
    record |= {"search": search} if search else {}
    method = settings.chosen(adapted, experiment.training)
    record["method"] = settings.describe_method(method)
    model = with_method(model, method, experiment, data.train)
    # frozen weights are stored in the type of the training: bf16 halves their memory
    cast_frozen(model, experiment.training.precision)
    if score:
        report(f"Scoring {data.test.name} ({len(data.test):,} rows) before training.")
        # after the cast, so that the two scores differ by the training alone
        record["before"] = scores(model, data.test, experiment).scores()
    on_main(processes(), lambda: save(experiment, running.out))
    report(
        f"Training {experiment.label} on {data.train.tokens:,} tokens in {len(data.train):,} rows, "
        f"{plural(experiment.training.epochs, 'epoch')}."
    )
    # a teacher is a finished run's model or a pretrained one, opened only if one is named
    objective = with_teacher(
        settings.objective(experiment.objective, method),
        settings.teacher_of(experiment.objective),
        lambda teacher: model_of(teacher, report),
        lambda name: language_model(name, progress=report)[0],
    )
    options = keywords(running) | to_json(experiment.recipe)
    return fit_as(method)(
        model,
        data.train,
        data.val,
        test=data.test if score else None,
        training=experiment.training,
        record=record,
        objective=objective,
        **options,
        **settings.schedule_of(experiment.schedule, method),
    )


def model_of(experiment: Experiment, report: Callable[[str], None]) -> nn.Module:
    """Return the language model of an experiment, before a method changes it."""
    adapted, seed = experiment.adapted, experiment.training.seed
    return language_model(adapted.model, pretrained=adapted.pretrained, seed=seed, progress=report)[
        0
    ]


def check_options(experiment: Experiment) -> None:
    """Refuse options or a method for pictures alone, on texts.  Raises: ConfigError."""
    flat, method = experiment.flat(), experiment.adapted.method
    if method in settings.known() and card(method).config().needs_head:
        subject, fix = f"method {method!r}", "Use lora, or another of `intarsia list`."
        raise ConfigError(subject, got="a text", want="a method without a classifier", fix=fix)
    # an option that was left at its default was not asked for
    default = Experiment(Pictures("")).flat()
    for name in PICTURES_ONLY:
        if flat[name] != default[name]:
            subject, got = f"--{name.replace('_', '-')}", f"{flat[name]} for a text"
            raise ConfigError(
                subject, got=got, want="pictures, which it is for", fix="Leave it out."
            )


def texts_of(
    experiment: Experiment, tokenizer: Any, report: Callable[[str], None] = print
) -> TextSplits:
    """Return the training, validation and test rows of tokens of an experiment's texts."""
    source, seed = experiment.pictures, experiment.training.seed
    return load_texts(
        source.data,
        tokenizer,
        length=source.length,
        seed=seed if source.split_seed is None else source.split_seed,
        train=source.images,
        val=source.val,
        test=source.test,
        progress=report,
    )


def with_method(
    model: nn.Module, method: Any, experiment: Experiment, train: Any = None
) -> nn.Module:
    """Return the language model, changed by a method, for example with adapters added.

    No head is trained. train: the training rows, from which a pruner takes its calibration rows.
    """
    change = settings.change_of(method, experiment.adapted, head=None)
    return apply(model, change, training_rows(change, train), seed=experiment.training.seed)


def scores(model: nn.Module, texts: Texts, experiment: Experiment) -> Any:
    """Return the `TokenMetrics` of a part."""
    return evaluate(model, texts, batch_size=experiment.training.batch_size)
