"""Work that a run does once, or leaves out, with the same result to rounding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ..core.errors import ConfigError
from ..data import ImageTensors
from ..hosts.anatomy.class_token import reading_class_token
from ..hosts.anatomy.constants import keeping_constants
from ..hosts.anatomy.packing import packing
from ..hosts.anatomy.prefix import first_trained_block, reading_tokens, run_prefix
from ..schedules import Phased
from ..train import OnePass, Running, one_backward, pace, plain, task_heads, two_pass
from ..train.loop import Sets
from ..train.order import digests_of
from ..train.precision import DTYPES, cast_frozen
from ..train.processes import processes
from ..train.progress import Bar, FirstSteps
from . import settings
from .experiment import Experiment
from .shared import SharedWork, Spent


def features_once(experiment: Experiment) -> Experiment:
    """Return the experiment; a linear probe's with its features computed once, if that is exact.

    Other methods, and probes of pictures that are cropped or mixed afresh in every step, are
    returned as they are.
    """
    recipe, unchanged = experiment.recipe, experiment.pictures.augment == "none"
    if experiment.adapted.method != "linear" or not unchanged or recipe.mixup or recipe.cutmix:
        return experiment
    if settings.teacher_of(experiment.objective) is not None:  # it sees the pictures
        return experiment
    return experiment.changed(frozen_once=True)


@contextmanager
def pictures_each_step(
    model: nn.Module, sets: Sets, experiment: Experiment, running: Running, *_: Any
) -> Iterator[tuple[Sets, Spent]]:
    """Yield the sets as they are, and no time spent: every step computes the whole model.

    sets: training, validation and test part. The counterpart of `tokens_once`, which computes
    frozen blocks once and has the same parameters; all but `sets` are unused.
    """
    yield sets, Spent()


@contextmanager
def tokens_once(
    model: nn.Module,
    sets: Sets,
    experiment: Experiment,
    running: Running,
    shared: SharedWork,
    identity: Mapping[str, Any],
) -> Iterator[tuple[Sets, Spent]]:
    """Let the model begin at its first trained block inside the context, from stored tokens.

    Tokens are the outputs of the frozen blocks below, computed once for each picture. Yields the
    sets of tokens instead of `sets` (training, validation, test pictures), and the time it took.
    experiment: the tokens have its precision. shared: where tokens are stored for other runs, under
    the key `identity`, to which part, block and dtype are added.
    Raises: ConfigError with augmentation, which changes a picture in every epoch, or recomputation.
    """
    if experiment.pictures.augment != "none" or running.recompute:
        subject = "--frozen-once"
        fix = "Leave --frozen-once out: every step then computes every block."
        raise ConfigError(subject, got="--augment or --recompute with it", want="it alone", fix=fix)
    dtype = DTYPES[experiment.training.precision]
    # everything below this block is frozen, so that its outputs are the same in every step
    block = first_trained_block(model)
    with reading_tokens(model, block) as prefix:

        def tokens(part: str, images: Dataset[Any]) -> tuple[ImageTensors, Spent]:
            """Compute the tokens of a part's pictures, or read those of another run."""
            inputs = {**of_part(identity, part), "block": block, "dtype": str(dtype)}
            dataset, spent = shared.tensors(
                "tokens", inputs, lambda: _prefix_with_bar(prefix, images, part, dtype)
            )
            return ImageTensors(*dataset.tensors, digests=digests_of(images)), spent

        # only the training part's time counts as training: a run would compute it in any case
        train, once = tokens("train", sets[0])
        val, test = (
            None if images is None else tokens(part, images)[0]
            for part, images in zip(("val", "test"), sets[1:], strict=True)
        )
        yield (train, val, test), once


def of_part(identity: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the key under which a part's pixels or tokens are stored and shared by runs.

    Runs that draw their training pictures by their seed then share the pictures they score on.
    identity: key of all parts, with the digest of each part's pictures; part: "train", "val" or
    "test".
    """
    return {**identity, "part": part, "pictures": identity["pictures"][part]}


def _prefix_with_bar(
    prefix: nn.Module, images: Dataset[Any], part: str, dtype: torch.dtype
) -> TensorDataset:
    """Compute the outputs of frozen first blocks for pictures, with a progress bar."""
    started, device = time.monotonic(), next(prefix.parameters()).device
    # on a CPU the first steps' time, from which the bar guesses the rest, depends on the size
    side = images[0][0].shape[-1] if device.type == "cpu" else None
    show, count = processes().is_main_process, len(cast(Sized, images))
    bar = Bar(count, 0, show=show, start=FirstSteps(side=side), what="frozen blocks")
    with bar.shown():

        def told(done: int) -> None:
            seconds = time.monotonic() - started
            bar.step(done, {"split": part, "epoch": 0, "seconds": seconds})

        return run_prefix(prefix, images, dtype=dtype, report=told)


@contextmanager
def trimmed(
    model: nn.Module,
    sets: Sets,
    method: object,
    objective: object,
    experiment: Experiment,
    shared: SharedWork,
    identity: Mapping[str, Any],
) -> Iterator[tuple[Sets, Spent]]:
    """Leave out, inside the context, computations of the model that cannot change the result.

    The last block computes the class token alone; where the model begins from stored tokens of
    frozen blocks, further constants of them are computed once, and the remaining frozen weights are
    packed. Nothing is left out for a method of several phases, which trains other parameters in
    each, or for an objective that reads more than logits. sets: training, validation and test rows.
    Yields the sets with the constants, and the time they took. shared: where constants are stored
    for other runs, under the key `identity`.
    """
    train, *scored = sets
    spent = Spent()
    precision = experiment.training.precision
    with ExitStack() as stack:
        if not isinstance(method, Phased) and reads_logits_only(objective):
            # step 1: the last block computes the class token only
            stack.enter_context(reading_class_token(model, train[0][0][None]))
            if experiment.adapted.frozen_once and isinstance(train, ImageTensors):
                # step 2: what frozen maps give of the tokens is constant, so that it is stored
                start = Spent.now()
                cast_frozen(model, precision)
                constants = keeping_constants(model, train, dtype=DTYPES[precision])
                train, add_constants = stack.enter_context(constants)
                spent = Spent.now().since(start)
                # step 3: large frozen weights never change: they are packed for the processor
                stack.enter_context(packing(model))
                # the other parts get the same constants, shared by runs on the same trunk
                for number, part in enumerate(("val", "test")):
                    if isinstance(part_set := scored[number], ImageTensors):
                        part_identity = of_part(identity, part)
                        scored[number] = add_constants(
                            part_set, partial(_compute_once, shared, part_identity)
                        )
        val, test = scored
        yield (train, val, test), spent


def _compute_once(
    shared: SharedWork,
    part_identity: Mapping[str, Any],
    mark: dict[str, Any],
    make: Callable[[], Tensor],
) -> Tensor:
    """Return tensors from this process's memory; call `make` for them the first time."""
    return shared.get("constants", {**part_identity, **mark}, make)


def reads_logits_only(objective: object) -> bool:
    """Return True if an objective uses nothing of a forward pass but its logits.

    objective: a function or object that computes the loss; settings are bound to it by `partial`.
    """
    # settings are bound by `partial`: look through it, and at the objective it wraps
    if isinstance(objective, partial):
        over = objective.keywords.get("over", plain)
        deep = bool(objective.keywords.get("deep"))
        return not deep and reads_logits_only(objective.func) and reads_logits_only(over)
    if isinstance(objective, OnePass):
        return True
    return objective in (plain, two_pass, one_backward, pace, task_heads)


def with_seconds(record: Mapping[str, Any], once: Spent) -> dict[str, Any]:
    """Return a run's record in which time spent once on its pictures counts as training time."""
    results = dict(record["results"])
    # no method is faster than another only because its tokens were computed beforehand
    if once.seconds:
        results |= {name: round(results[name] + spent, 3) for name, spent in once._asdict().items()}
        results["seconds_once"] = round(once.seconds, 3)
    return dict(record) | {"results": results}
