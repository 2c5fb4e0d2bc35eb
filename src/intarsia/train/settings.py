"""The settings of a run, each declared once (see `core.schema`); importing them needs no torch."""

# The types of options are read from the fields, so that they are no text (no `annotations` here);
# torch's types are quoted, for only Python sets them.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .. import processes, schedules
from ..core.checks import BALANCED, DEVICES, above, check_device, named_numbers
from ..core.errors import ConfigError, UnknownName
from ..core.registry import listed
from ..core.schema import check, setting

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from ..processes.parallelism import Parallelism
    from ..schedules import ByFit, LayerSchedule, SparseSchedule
    from .options import Options
    from .stack import Seat

OBJECTIVES = ("plain", "two_pass", "one_backward", "local_variance", "pace")
"""Names of the functions of `train.objectives` that are objectives."""
RATE = 1e-3  # of AdamW, where neither the caller nor the method names one
OptimizerFactory = Callable[["nn.Module", float, float], "Optimizer"]
LrFactor = Callable[[int, int], float]
Schedule = Callable[["nn.Module", int, int], None]
ClassWeights = str | Mapping[str, float] | Sequence[float]
Settings = TypeVar("Settings")


def check_weights(weights: ClassWeights) -> None:
    """Raise ConfigError for class weights that are impossible whatever the classes are."""
    if weights == BALANCED:
        return
    named = named_numbers("class_weights", weights) if isinstance(weights, str) else weights
    for value in named.values() if isinstance(named, Mapping) else named:
        above("class_weights", value, 0, fix="Try 1.0 for a class that counts as usual.")


@dataclass(frozen=True)
class Training:
    """The hyper-parameters that papers print.

    batch_size counts the samples of an optimiser step, over all parts and processes.
    precision: "bf16" or "fp16" hold frozen weights once in that type (and leave them so) and the
    trained ones in fp32 under autocast; fp16 scales the loss and needs an accelerator.
    warmup: the rate rises linearly from lr / warm-up steps.
    lr: None = 1e-3; of a head alone none: it is fitted to convergence, see `train.probe`.

    Raises: ConfigError or UnknownName for a setting that cannot be.
    """

    epochs: int = setting(20, "Passes over the training images.", least=1)
    batch_size: int = setting(32, "Images per step.", least=1)
    lr: float | None = setting(
        None,
        "AdamW learning rate; the method's own if not given: 3e-3 for adapters, 1e-4 for full; a "
        "linear probe then has none and is fitted to convergence.",
        least=0,
        fix="Try 1e-3.",
    )
    weight_decay: float = setting(1e-4, "AdamW weight decay.", least=0)
    warmup: float = setting(0.1, "Share of the steps in which the rate rises.", least=0, below=1)
    precision: str = setting(
        "fp32",
        "Precision of the training: fp32, bf16 or fp16.",
        choices=("fp32", "bf16", "fp16"),
        panel="Running",
        fix="bf16 suits most machines.",
    )
    accumulate: int = setting(
        1, "Gradient accumulation steps: less memory, same step.", least=1, panel="Running"
    )
    seed: int = setting(0, "Seed of all that is drawn at random.", least=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        """Check each setting, and that a batch divides into equal parts.  Raises: ConfigError."""
        check(self)
        if self.batch_size % self.accumulate:
            got = f"{self.accumulate} parts of {self.batch_size} samples"
            fix = "Choose a divisor of batch_size."
            raise ConfigError("accumulate", got=got, want="equal parts", fix=fix)

    @property
    def rate(self) -> float:
        """The learning rate of AdamW, RATE where none was given."""
        return RATE if self.lr is None else self.lr


@dataclass(frozen=True)
class Recipe:
    """The other settings that change the learned model; the defaults are plain AdamW.

    optimizer: (model, lr, weight_decay) -> Optimizer; None = AdamW.  lr_factor: (step, steps) ->
    multiple of lr; None = cosine after the warm-up.
    schedule: (model, step, steps), called before each step; it must depend on these only, so that
      a resumed run sees the same; or a `schedules.ByFit`; or a `schedules.SparseSchedule`: the
      checkpoint holds its masks; or a `LayerSchedule`.
    mixup, cutmix: of timm's Mixup.  class_weights: see `train.weights.weights_of`; None = all
      classes count the same.  ema: None = the weights of the last step; see `train.learner`.
    select: of a schedule that prunes little by little, only epochs that have its density are
      compared; the val part must share no sample with train.  patience: implies select="val".

    Raises: ConfigError or UnknownName for a setting that cannot be.
    """

    optimizer: "OptimizerFactory | None" = setting(None, "Makes the optimiser.", python=True)
    lr_factor: "LrFactor | None" = setting(None, "Multiple of lr at a step.", python=True)
    schedule: "Schedule | ByFit | SparseSchedule | LayerSchedule | None" = setting(
        None, "What changes in the model from step to step.", python=True
    )
    mixup: float = setting(0.0, "Alpha of mixup.", least=0)
    cutmix: float = setting(0.0, "Alpha of cutmix.", least=0)
    smoothing: float = setting(0.0, "Label smoothing.", least=0, below=1)
    ema: float | None = setting(
        None,
        "Decay of a moving average of the trained weights, which is scored and is the result; "
        "0.99.",
        above=0,
        below=1,
        fix="Try 0.99, or leave it out.",
    )
    class_weights: ClassWeights | None = setting(
        None,
        "Weight of each class in the loss: balanced, or a=1,b=2 by name (others 1).",
        offers=(BALANCED,),
        test=check_weights,
    )
    clip: float | None = setting(
        None, "Largest gradient norm.", above=0, fix="Try 1.0, or leave it out."
    )
    select: str = setting(
        "last",
        "Epoch whose weights are the result: last, or val, the best on the val part.",
        choices=("last", "val"),
        fix="A test set is scored once, after training; it chooses nothing.",
    )
    patience: int | None = setting(
        None,
        "Stop after so many epochs without a better score on val; the best epoch is the result.",
        least=1,
    )

    def __post_init__(self) -> None:
        check(self)
        mixes = self.mixup or self.cutmix
        if self.class_weights is not None and mixes:
            want = "images with one right answer, for a weight is that of a class"
            fix = "Leave mixup and cutmix out, or the weights."
            raise ConfigError("class_weights", got="mixed images with them", want=want, fix=fix)
        if self.schedule is not None:
            self._check_schedule(bool(mixes))
        if self.patience is not None:
            object.__setattr__(self, "select", "val")

    def _check_schedule(self, mixes: bool) -> None:
        """Raise ConfigError if the schedule does not go with the other settings."""
        # packages import a class when it is asked for: only here, where there is a schedule
        name = type(self.schedule).__name__
        if mixes and isinstance(self.schedule, schedules.ByFit):
            want = "images with one right answer, for it follows the training accuracy"
            fix = "Leave mixup and cutmix out, or use ActiveSchedule."
            raise ConfigError("schedule", got=f"{name} with mixed images", want=want, fix=fix)
        masks = schedules.SparseSchedule, schedules.LayerSchedule
        if self.ema is not None and isinstance(self.schedule, masks):
            want = "weights that no mask replaces: their mean over steps has other zeros"
            got, fix = f"{self.ema:g} with {name}", "Leave one of the two out."
            raise ConfigError("ema", got=got, want=want, fix=fix)


@dataclass(frozen=True)
class Running:
    """The device and the folder of a run, and how it is carried out; results differ by rounding.

    out: the run folder, None = nothing is written.  resume: continue from its checkpoint.
    checkpoint_steps, checkpoint_seconds: whichever comes first; None = not by that.
    most_seconds: a step that would not end in time is not begun, except for the first. Rates and
    schedules see as many steps as are expected to fit, so that a clock decides the result.
    trackers: None = TensorBoard if it is installed.  workers: 0 = this process reads.
    device: None = what accelerate chooses.  recompute: forget activations and compute them again
      in the backward.  compile: pays for long runs on an accelerator.
    parallel: how processes share the experts of mixtures, as intarsia.parallel.Fssdp(); None = each
      has all. Of one process it changes nothing.
    gather: afterwards each process has the whole model again. False: with its own experts alone, so
      that none needs room for all of them; the run folder has the whole.
    seat: of a run among others that step together, see `train.stack`.

    Raises: ConfigError or UnknownName for a setting that cannot be, such as resume without a
    folder, or `parallel` with `recompute` or `compile`.
    """

    out: "Path | None" = setting(None, "The run folder.", python=True)
    resume: bool = setting(False, "Go on from the checkpoint in out.", python=True)
    checkpoint_steps: int | None = setting(
        None, "Steps between two checkpoints.", least=1, python=True
    )
    checkpoint_seconds: float | None = setting(
        30.0, "Seconds between two checkpoints.", least=0, python=True
    )
    most_seconds: float | None = setting(
        None, "Seconds of training at most; the rate falls to 0 by then.", above=0, python=True
    )
    device: str | None = setting(
        None,
        "Device to compute on: cpu, cuda, cuda:1 or mps; the best that is there if not given.",
        offers=DEVICES,
        test=check_device,
    )
    workers: int = setting(0, "Processes that read pictures.", least=0)
    recompute: bool = setting(
        False, "Compute activations again in the backward: less memory, more time."
    )
    compile: bool = setting(False, "Compile the model by torch.compile.")
    trackers: str | Sequence[str] | None = setting(
        None,
        "Tracker of the curves: csv, tensorboard, wandb, mlflow or another of accelerate; may be "
        "repeated.",
        choices=lambda: listed("tracker"),
        flag="--tracker",
    )
    parallel: "Parallelism | None" = setting(None, "How processes share experts out.", python=True)
    gather: bool = setting(True, "Each process ends with the whole model.", python=True)
    seat: "Seat | None" = setting(None, "The place in a stack of runs.", python=True)

    def __post_init__(self) -> None:
        if self.out is not None:
            object.__setattr__(self, "out", Path(self.out))
        check(self)
        if self.resume and self.out is None:
            want, fix = "the folder of the run to go on with", "Pass out='that/folder'."
            raise ConfigError("resume", got="no run folder", want=want, fix=fix)
        if self.out is None and not self.gather:
            want, fix = "a folder that then has the whole model", "Pass out='runs/first'."
            raise ConfigError("gather=False", got="no run folder", want=want, fix=fix)
        if self.parallel is not None:
            self._check_parallel()

    def _check_parallel(self) -> None:
        """Raise ConfigError unless `parallel` is a strategy that goes with the other settings."""
        if isinstance(self.parallel, type) or not isinstance(self.parallel, processes.Parallelism):
            got, fix = repr(self.parallel), "For example: intarsia.parallel.Fssdp(memory=2)"
            raise ConfigError("parallel", got=got, want="the settings of a strategy", fix=fix)
        if self.recompute or self.compile:
            name = "recompute" if self.recompute else "compile"
            fix = "Leave it out; Fssdp(rematerialise=True) saves memory."
            raise ConfigError(name, got="parallel with it", want="one of both", fix=fix)


def keywords(settings: object) -> dict[str, Any]:
    """Return settings as the keywords of `fit`."""
    return {item.name: getattr(settings, item.name) for item in fields(cast(Any, settings))}


def with_keywords(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return settings with other values; names that these settings do not have are ignored.

    Raises: ConfigError or UnknownName for a value that cannot be.
    """
    names = keywords(settings).keys() & values.keys()
    return cast(Settings, replace(cast(Any, settings), **{name: values[name] for name in names}))


def settle(
    training: Training | None, options: "Options | Mapping[str, Any]"
) -> tuple[Training, Recipe, Running]:
    """Return the three groups of settings of a run from the keywords of `fit`.

    training: values for keywords that are not given, None = the defaults.
    Raises: UnknownName for a keyword that is in none of them.
    """
    start = training or Training(), Recipe(), Running()
    names = {name for settings in start for name in keywords(settings)}
    for name in options.keys() - names:
        raise UnknownName("setting of fit", name, names, "help(intarsia.train.options.Options)")
    # each group takes the keywords that are its own
    values = cast("Mapping[str, Any]", options)
    first, recipe, running = start
    return (
        with_keywords(first, values),
        with_keywords(recipe, values),
        with_keywords(running, values),
    )
