"""The settings of a run: small frozen dataclasses, and their keywords."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

from torch import nn
from torch.optim import Optimizer

from ..core.checks import above, at_least, below_one, between, one_of, whole
from ..core.errors import ConfigError, UnknownName
from ..processes.parallelism import Parallelism
from ..schedules import ByFit, LayerSchedule, SparseSchedule
from .optimisers import LrFactor, adamw, cosine
from .stack import Seat
from .weights import ClassWeights, check_weights

PRECISIONS = ("fp32", "bf16", "fp16")
SELECTIONS = ("last", "val")

OptimizerFactory = Callable[[nn.Module, float, float], Optimizer]
Schedule = Callable[[nn.Module, int, int], None]
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Training:
    """The hyper-parameters that papers print.

    batch_size: samples per optimiser step, over all parts and processes.
    accumulate: gradient accumulation steps: the parts of a process's share of a batch.
    lr, weight_decay: of AdamW; warmup: share of all steps, linear from lr / warm-up steps.
    precision: "fp32"; "bf16" or "fp16": frozen weights held once in that type (and left so), the
      trained ones in fp32 under autocast; fp16 scales the loss and needs an accelerator.

    Raises: ConfigError on a setting that cannot be.
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    precision: str = "fp32"
    accumulate: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            whole(name, getattr(self, name), 1)
        at_least("lr", self.lr, 0, fix="Try 1e-3.")
        at_least("weight_decay", self.weight_decay, 0)
        whole("seed", self.seed)
        between("seed", self.seed, 0, 2**63 - 1)
        below_one("warmup", self.warmup)
        one_of("precision", self.precision, PRECISIONS, fix="bf16 suits most machines.")
        if self.batch_size % self.accumulate:
            got = f"{self.accumulate} parts of {self.batch_size} samples"
            fix = "Choose a divisor of batch_size."
            raise ConfigError("accumulate", got=got, want="equal parts", fix=fix)


@dataclass(frozen=True)
class LossOptions:
    """What is done with the labels of classes before the loss.

    mixup, cutmix: alpha of timm's Mixup; smoothing: of the labels.
    class_weights: how much a class counts, see `train.weights.weights_of`; None = all the same.

    Raises: ConfigError on a setting that cannot be.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    class_weights: ClassWeights | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            at_least(name, getattr(self, name), 0)
        below_one("smoothing", self.smoothing)
        check_weights(self.class_weights)
        if self.class_weights is not None and (self.mixup or self.cutmix):
            want = "images with one right answer, for a weight is that of a class"
            fix = "Leave mixup and cutmix out, or the weights."
            raise ConfigError("class_weights", got="mixed images with them", want=want, fix=fix)


@dataclass(frozen=True)
class Recipe:
    """The other settings that change what is learned; the defaults are plain AdamW.

    optimizer: (model, lr, weight_decay) -> Optimizer.  lr_factor: (step, steps) -> multiple of lr,
    None = cosine after the warm-up.  schedule: (model, step, steps), called before each step; it
    must depend on these only, so that a resumed run sees the same; or a `schedules.ByFit`;
    or a `schedules.SparseSchedule`, whose masks the checkpoint holds; or a `LayerSchedule`.
    clip: largest gradient norm.
    select: "last" epoch, or the best on "val" (which must share no sample with train); of
      a schedule that prunes little by little, among the epochs that have its density.
    patience: stop after so many scores on val in a row that are no better than the best, whose
      epoch is then the result; implies select="val".  loss: see `LossOptions`.
    ema: decay of a moving average of the trained weights, which is scored and is the result; None =
      the weights of the last step. See `train.average`.

    Raises: ConfigError on a setting that cannot be.
    """

    optimizer: OptimizerFactory = adamw
    lr_factor: LrFactor | None = None
    schedule: Schedule | ByFit | SparseSchedule | LayerSchedule | None = None
    clip: float | None = None
    select: str = "last"
    patience: int | None = None
    loss: LossOptions = LossOptions()
    ema: float | None = None

    def __post_init__(self) -> None:
        self._check_ema()
        if isinstance(self.schedule, ByFit) and (self.loss.mixup or self.loss.cutmix):
            raise ConfigError(
                "schedule",
                got=f"{type(self.schedule).__name__} with mixed images",
                want="images with one right answer, for it follows the training accuracy",
                fix="Leave mixup and cutmix out, or use ActiveSchedule.",
            )
        if self.clip is not None:
            above("clip", self.clip, 0, fix="Try 1.0, or None.")
        fix = "A test set is scored once, after training; it chooses nothing."
        one_of("select", self.select, SELECTIONS, fix=fix)
        if self.patience is not None:
            whole("patience", self.patience, 1)
            object.__setattr__(self, "select", "val")

    def _check_ema(self) -> None:
        if self.ema is None:
            return
        above("ema", self.ema, 0, fix="Try 0.99, or leave it out.")
        below_one("ema", self.ema, fix="Try 0.99.")
        if isinstance(self.schedule, SparseSchedule | LayerSchedule):
            got = f"{self.ema:g} with {type(self.schedule).__name__}"
            want = "weights that no mask replaces: their mean over steps has other zeros"
            raise ConfigError("ema", got=got, want=want, fix="Leave one of the two out.")

    def factor(self, step: int, steps: int, warmup: float) -> float:
        """The multiple of lr at a step."""
        return (self.lr_factor or cosine(warmup))(step, steps)


@dataclass(frozen=True)
class Compute:
    """On what, and in which order, a step is computed.

    device: "cpu", "cuda", "cuda:1", "mps"; None = what accelerate chooses.
    recompute: forget activations and compute them again in the backward: less memory, a third more
      time.  compile: torch.compile the forward; pays for long runs on an accelerator.
    parallel: how processes share the experts of mixtures, as intarsia.parallel.Fssdp(); None = each
      has all. Of one process it changes nothing.
    gather: afterwards each process has the whole model again. False: with its own experts alone, so
      that none needs room for all of them; the run folder has the whole.
    seat: of a run among others that step together, see `train.stack`.

    Raises: ConfigError for `parallel` with `recompute` or `compile`, or what is no strategy.
    """

    device: str | None = None
    recompute: bool = False
    compile: bool = False
    parallel: Parallelism | None = None
    gather: bool = True
    seat: Seat | None = None

    def __post_init__(self) -> None:
        if self.parallel is None:
            return
        if isinstance(self.parallel, type) or not isinstance(self.parallel, Parallelism):
            got, fix = (
                repr(self.parallel),
                "For example: parallel=intarsia.parallel.Fssdp(memory=2)",
            )
            raise ConfigError("parallel", got=got, want="the settings of a strategy", fix=fix)
        if self.recompute or self.compile:
            other = "recompute" if self.recompute else "compile"
            fix = "Leave it out; Fssdp(rematerialise=True) saves memory."
            raise ConfigError(other, got="parallel with it", want="one of both", fix=fix)


@dataclass(frozen=True)
class Running:
    """How a run is carried out; this changes what is learned by rounding at most.

    out: the run folder, None = nothing is written.  resume: go on from its checkpoint.
    checkpoint_steps, checkpoint_seconds: whichever comes first; None = not by that.
    trackers: names that accelerate knows; None = TensorBoard if it is installed.
    workers: processes that read data, 0 = this one.  compute: see `Compute`.

    Raises: ConfigError on a setting that cannot be, such as resume without a folder.
    """

    out: Path | None = None
    resume: bool = False
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = 30.0
    trackers: Sequence[str] | None = None
    workers: int = 0
    compute: Compute = Compute()

    def __post_init__(self) -> None:
        if self.out is not None:
            object.__setattr__(self, "out", Path(self.out))
        whole("workers", self.workers, 0)
        if self.checkpoint_steps is not None:
            whole("checkpoint_steps", self.checkpoint_steps, 1)
        if self.checkpoint_seconds is not None:
            at_least("checkpoint_seconds", self.checkpoint_seconds, 0)
        if self.resume and self.out is None:
            want, fix = "the folder of the run to go on with", "Pass out='that/folder'."
            raise ConfigError("resume", got="no run folder", want=want, fix=fix)
        if self.out is None and not self.compute.gather:
            want, fix = "a folder that then has the whole model", "Pass out='runs/first'."
            raise ConfigError("gather=False", got="no run folder", want=want, fix=fix)


class Options(TypedDict, total=False):
    """Keywords of `fit`: the fields of Training, Recipe and Running."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: float
    precision: str
    accumulate: int
    seed: int
    optimizer: OptimizerFactory
    lr_factor: LrFactor | None
    schedule: Schedule | ByFit | SparseSchedule | LayerSchedule | None
    mixup: float
    cutmix: float
    smoothing: float
    class_weights: ClassWeights | None
    ema: float | None
    clip: float | None
    select: str
    patience: int | None
    out: str | Path | None
    resume: bool
    checkpoint_steps: int | None
    checkpoint_seconds: float | None
    trackers: Sequence[str] | None
    workers: int
    device: str | None
    recompute: bool
    compile: bool
    parallel: Parallelism | None
    gather: bool
    seat: Seat | None


INSIDE = (
    LossOptions,
    Compute,
)  # settings inside of settings: their keywords are those of the whole


def keywords(settings: object) -> dict[str, Any]:
    """Settings as the keywords of `fit`."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, settings)):
        value = getattr(settings, field.name)
        found |= keywords(value) if isinstance(value, INSIDE) else {field.name: value}
    return found


def with_keywords(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings with other values for some of their `keywords`; other names are left alone.

    Raises: ConfigError for a value that cannot be.
    """
    new: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, settings)):
        value = getattr(settings, field.name)
        if isinstance(value, INSIDE):
            new[field.name] = with_keywords(value, given)
        elif field.name in given:
            new[field.name] = given[field.name]
    return cast(Settings, dataclasses.replace(cast(Any, settings), **new))


def settle(training: Training | None, options: Options) -> tuple[Training, Recipe, Running]:
    """The three settings from one set of keywords; keywords win over `training`.

    Raises: UnknownName for a keyword that is in none of them.
    """
    for name in options.keys() - Options.__annotations__.keys():
        raise UnknownName(
            "setting of fit", name, Options.__annotations__, "help(intarsia.train.settings.Options)"
        )
    return (
        with_keywords(training or Training(), options),
        with_keywords(Recipe(), options),
        with_keywords(Running(), options),
    )
