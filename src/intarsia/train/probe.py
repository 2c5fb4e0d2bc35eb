"""The linear probe: a classifier on frozen features, fitted to convergence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..core.errors import ConfigError, DataError
from ..core.heads import heads_of
from .evaluation import each
from .folds import deal
from .objectives import plain
from .order import Batch
from .plain_data import as_dataset
from .precision import trained
from .record import bare
from .scores import Metrics, comparing_temperature, wrong_and_loss
from .settings import Recipe
from .tasks import Classes, MultiLabel, Task

if TYPE_CHECKING:
    from .loop import Job, Loop

FOLDS = 5
# C by the scaling of the features: one scale for all, each by its own deviation, rows of length 1
STRENGTHS = {
    "one": (0.0, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0),
    "each": (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0),
    "rows": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
}
MANY = 4_000_000  # numbers in the features, from which several threads pay
ITERATIONS = 2000  # of L-BFGS, at most; it converges long before
CONSTANT = 1e-8  # of the largest deviation, below which a feature counts as constant
ABSENT = -30.0  # logit of a class that the fitted rows do not show


def linear_probe(
    model: nn.Module,
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    inverse_decay: float | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> Metrics:
    """Fit a logistic regression to the features before the model's head; score it on `test`.

    Every image is computed once; see `converged_probe`. test: None = score each image of `train`
    by the probe that was fitted without its fold, one of five. inverse_decay: C of the penalty,
    smaller values pull the weights to 0 more strongly; None = by five folds of `train`.
    batch_size: samples in a forward; workers: processes that load data. The model is not changed.
    Raises: ConfigError for a model without a head; DataError if `train` shows only one class.
    """
    x, y = features(model, train, batch_size=batch_size, workers=workers)
    if len(y.unique()) < 2:
        subject, got = "classes of the training images", len(y.unique())
        raise DataError(subject, got=got, want="at least 2", fix="Add images of another class.")
    options: Any = {"batch_size": batch_size, "workers": workers}
    tested = None if test is None else features(model, test, **options)
    classes = int(torch.cat([y, y if tested is None else tested[1]]).max()) + 1
    strengths = None if inverse_decay is None else (inverse_decay,)
    fold = deal(y.numpy(), FOLDS, 0)
    probe = converged_probe(x.numpy(), y.numpy(), classes, fold=fold, strengths=strengths)
    if tested is None:
        return Metrics.of(probe.held_out, y)
    return Metrics.of(probe(tested[0]), tested[1])


@overload
def features(
    model: nn.Module,
    dataset: Tensor | np.ndarray,
    *,
    task: Task | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> Tensor: ...
@overload
def features(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    task: Task | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> tuple[Tensor, Tensor]: ...
def features(
    model: nn.Module,
    dataset: Dataset[Any] | Tensor | np.ndarray,
    *,
    task: Task | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the inputs of the model's head, (n, d) float32, and the labels (n,), on the CPU.

    They are in the dataset's order, in every process; of inputs (n, ...) alone the features alone
    are returned. task: reads the labels; None = one class for each image. batch_size: samples in a
    forward; workers: processes that load data.
    Raises: ConfigError for a model without one head.
    """
    heads = heads_of(bare(model))
    if len(heads) != 1:
        subject, got = (
            f"head of {type(model).__name__}",
            f"{len(heads)} of them" if heads else "none",
        )
        fix = "Build the model with num_classes above 0, and without distillation."
        raise ConfigError(subject, got=got, want="one classifier to look in front of", fix=fix)
    alone = isinstance(dataset, Tensor | np.ndarray)
    data: Any = as_dataset(dataset, unlabelled=True)
    # the hook sees the head's input; the forward's own output is thrown away
    inputs: list[Tensor] = []

    def instead(_logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        return inputs.pop(), batch[1]

    hook = heads[0].register_forward_pre_hook(lambda _head, args: inputs.append(args[0].float()))
    try:
        # an evaluation with the head's recorded inputs as rows
        rows, labels = each(model, data, task or Classes(), instead, batch_size, workers)
        return rows if alone else (rows, labels)
    finally:
        hook.remove()


@dataclass(frozen=True, eq=False)
class Probe:
    """Linear classifier of features x: its logits are x W' + b.

    weight: W, (classes, d) float32.  bias: b, (classes,).  strength: C, the inverse strength of the
    L2 penalty; 0 = nearest class mean, which is the limit of small C.  scaling: of the features in
    the penalty, one, each or rows.  held_out: (n, classes), the logits of each row by the probe
    that was fitted without its fold; NaN where there was none.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    scaling: str
    held_out: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of features x, (m, d), in float32."""
        return x.float() @ self.weight.T + self.bias


def converged_probe(
    x: Any,
    y: np.ndarray,
    classes: int,
    *,
    fold: np.ndarray,
    held: int = 5,
    strengths: Sequence[float] | None = None,
    scalings: Sequence[str] = ("one", "each"),
) -> Probe:
    """Fit a multinomial logistic regression to convergence, its penalty chosen on held-out folds.

    Minimises C sum_i loss(z_i W' + b, y_i) + |W|^2 / 2 by L-BFGS, for each C of `strengths` from
    the smallest and each scaling z of the features, and keeps the two with the most right answers
    on the folds; among equals, and where several labels apply, those with the smallest loss after
    one temperature. The held-out logits of a fold are at the choice of the other folds, so that
    their accuracy is no best of many; each is brought to the temperature of the whole choice.
    Features are centred and divided by the root of their mean variance (one), or each by its own
    deviation (each: columns of unlike units, or with outliers). Where there are fewer rows than
    features they are first rotated into the rows' span, in which the minimum lies.
    x: (n, d) array, or a sparse matrix of scipy, which is taken as it is.  y: (n,) class numbers;
    or (n, classes) of 0 and 1, where several labels apply: then each has a regression of its own.
    fold: (n,) fold of each row; held: so many folds are left out in turn, one alone judges the
    choice that it makes.  strengths: None = seven to ten values that suit each scaling.
    scalings: those of dense features that are compared.
    Not for features by the hundred thousand rows: all of them are in memory, in float64.
    """
    names = ("rows",) if issparse(x) else scalings
    penalties = {name: STRENGTHS[name] if strengths is None else strengths for name in names}
    # threads that wait for each other after products this small cost more than they save
    with (
        threadpool_limits(1 if issparse(x) or x.size < MANY else None),
        warnings.catch_warnings(),
    ):
        # scikit-learn takes many classes of few rows for numbers
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        return _fit_folds(x, y, classes, fold, held, penalties)


Penalty = tuple[str, float]
"""A scaling of the features, and C."""


def _fit_folds(
    x: Any,
    y: np.ndarray,
    classes: int,
    fold: np.ndarray,
    held: int,
    penalties: Mapping[str, Sequence[float]],
) -> Probe:
    """Return the probe at the best penalty, see `converged_probe`."""
    pairs: list[Penalty] = [
        (scaling, c) for scaling, strengths in penalties.items() for c in strengths
    ]
    answers = {
        pair: torch.full((len(y), classes), torch.nan, dtype=torch.float64) for pair in pairs
    }
    for number in range(held):
        left_out = fold == number
        for scaling, strengths in penalties.items():
            for c, (weight, bias) in _path(x[~left_out], y[~left_out], classes, scaling, strengths):
                answers[scaling, c][left_out] = torch.from_numpy(x[left_out] @ weight.T + bias)
    labels, numbers = torch.from_numpy(y), torch.from_numpy(fold)

    def best_by(rows: Tensor) -> Penalty:
        merit = {pair: wrong_and_loss(answers[pair][rows], labels[rows]) for pair in pairs}
        return min(pairs, key=merit.__getitem__)

    judged = numbers < held  # rows of folds that were left out
    scaling, strength = best = best_by(judged)
    held_out = answers[best].clone()
    for number in range(held if held > 1 else 0):
        rows = numbers == number
        # the choice without these rows, so that their accuracy is no best of many
        pair = best_by(judged & ~rows)
        scale = _relative_scale(answers[best][judged], answers[pair][judged], labels[judged])
        held_out[rows] = answers[pair][rows] * scale
    # from the smallest, as on the folds: a fit begins where the last one ended
    path = [c for c in penalties[scaling] if c <= strength]
    weight, bias = dict(_path(x, y, classes, scaling, path))[strength]
    tensors = (torch.from_numpy(weight).float(), torch.from_numpy(bias).float())
    return Probe(*tensors, strength, scaling, held_out.float())


def _relative_scale(target: Tensor, logits: Tensor, labels: Tensor) -> float:
    """Return the factor that brings logits to the temperature that suits the target ones."""
    if labels.ndim == 2:
        return 1.0
    return comparing_temperature(target, labels) / comparing_temperature(logits, labels)


def _path(
    x: Any, y: np.ndarray, classes: int, scaling: str, strengths: Sequence[float]
) -> Iterator[tuple[float, tuple[np.ndarray, np.ndarray]]]:
    """Yield (C, (W, b)) on the raw features for each strength, each fit begun from the last."""
    if scaling == "rows":
        rows, mean, scale = x, np.zeros(x.shape[1]), np.ones(x.shape[1])
        basis = None
    else:
        wide = np.asarray(x, dtype=np.float64)
        mean, scale = wide.mean(0), wide.std(0)
        # a feature that is constant says nothing: it keeps weight 0
        constant = scale <= CONSTANT * max(float(scale.max(initial=0.0)), 1.0)
        if scaling == "one":  # features of one unit keep what they weigh
            scale = np.full_like(scale, np.sqrt((scale**2).mean()))
        scale[constant] = np.inf
        rows, basis = (wide - mean) / scale, None
        if len(rows) < rows.shape[1]:
            _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
            basis = basis[sizes > CONSTANT * max(float(sizes.max(initial=0.0)), CONSTANT)]
            rows = rows @ basis.T
    models = _models(y)
    for c in strengths:
        weight, bias = _fitted(models, rows, y, classes, c)
        weight = (weight if basis is None else weight @ basis) / scale
        yield c, (weight, bias - weight @ mean)


def _models(y: np.ndarray) -> list[LogisticRegression]:
    """Return one regression, or one for each label where several apply; a refit continues it."""
    count = 1 if y.ndim == 1 else y.shape[1]
    return [LogisticRegression(warm_start=True, max_iter=ITERATIONS) for _ in range(count)]


def _fitted(
    models: Sequence[LogisticRegression], rows: Any, y: np.ndarray, classes: int, c: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return W (classes, d) and b (classes,) at one strength; c = 0 gives the class means."""
    if c == 0:
        return _class_means(rows, y, classes)
    weight, bias = np.zeros((classes, rows.shape[1])), np.full(classes, ABSENT)
    if y.ndim == 2:
        for label, model in enumerate(models):
            present = np.unique(y[:, label])
            if len(present) == 1:  # every row has the label, or none has
                bias[label] = ABSENT if present[0] == 0 else -ABSENT
                continue
            model.set_params(C=c).fit(rows, y[:, label])
            weight[label], bias[label] = model.coef_[0], np.asarray(model.intercept_)[0]
        return weight, bias
    present = np.unique(y)
    if len(present) == 1:
        bias[present] = 0.0
        return weight, bias
    model = models[0].set_params(C=c).fit(rows, y)
    if len(present) == 2:  # scikit-learn has one row for two classes
        weight[present[1]], bias[present] = model.coef_[0], (0.0, np.asarray(model.intercept_)[0])
    else:
        weight[present], bias[present] = model.coef_, model.intercept_
    return weight, bias


def _class_means(rows: Any, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the classifier by the nearest class mean m: W = m, b = -|m|^2 / 2, scaled by 1 / d."""
    member = np.eye(classes)[y] if y.ndim == 1 else y.astype(float)
    count = member.sum(0)
    mean = np.asarray((rows.T @ member).T) / np.maximum(count, 1)[:, None]
    if y.ndim == 2:
        rest_count = len(y) - count
        rest = np.asarray((rows.T @ (1 - member)).T) / np.maximum(rest_count, 1)[:, None]
        weight, bias = mean - rest, ((rest**2).sum(1) - (mean**2).sum(1)) / 2
    else:
        weight, bias = mean, -(mean**2).sum(1) / 2
    size = rows.shape[1]
    return weight / size, np.where(count > 0, bias / size, ABSENT)


def linear_head(model: nn.Module) -> nn.Linear | None:
    """Return the model's head if it is one linear layer, and all that is trained; else None."""
    heads = heads_of(bare(model))
    # PEFT wraps a head that it saves: the layer that is trained is inside
    inner = [m for head in heads for m in head.modules() if isinstance(m, nn.Linear)]
    learns = {id(p) for p in trained(model).values()}
    inner = [layer for layer in inner if learns & {id(p) for p in layer.parameters()}]
    if len(heads) != 1 or len(inner) != 1 or inner[0].bias is None:
        return None
    return inner[0] if learns == {id(p) for p in inner[0].parameters()} else None


def converges(job: Job) -> bool:
    """Decide whether a job is a linear probe, which is fitted to convergence instead of in steps.

    It is where no learning rate was given, one linear head is all that is trained, and the loss is
    the plain one.
    """
    recipe, task, running = job.recipe, job.task, job.running
    plain_task = isinstance(task, MultiLabel) or (
        isinstance(task, Classes) and task == Classes(classes=task.classes)
    )
    plain_recipe = recipe == Recipe(select=recipe.select, patience=recipe.patience)
    alone = running.seat is None and running.parallel is None and job.settle is None
    return (
        job.training.lr is None
        and job.objective is plain
        and plain_task
        and plain_recipe
        and alone
        and linear_head(job.model) is not None
    )


def solve_head(loop: Loop) -> Mapping[str, Any]:
    """Fit the head of a run's model to convergence, see `converged_probe`; return the choice.

    loop: the run; its seed deals the training samples into the folds that choose the penalty.
    """
    head = linear_head(loop.model)
    assert head is not None
    options = {"batch_size": max(32, loop.training.batch_size), "workers": loop.how.workers}
    x, y = features(loop.model, loop.train_set, task=loop.task, **options)
    labels, classes = y.numpy(), head.out_features
    fold = deal(labels, FOLDS, loop.training.seed)
    probe = converged_probe(x.numpy(), labels, classes, fold=fold)
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    scores = loop.task.scores(probe(x), y).scores()
    if loop.ranks.is_main_process:
        loop.log.write({"step": 0, "epoch": 0, "split": "train", **scores})
    choice = {"strength": probe.strength, "scaling": probe.scaling}
    return choice | {"folds": FOLDS, "train": scores}
