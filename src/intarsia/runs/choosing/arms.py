"""Arms of a benchmark: methods with their settings, of one size unless a name says another.

Learning rates are a ViT's, set by hand, one for each family but where its rate leads astray,
as of MoSL, a product of two split sides. The rates of a network with batch norms were chosen on
validation pictures of an EfficientNet, but for what does not fit it.
`tuned` searches around either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from ...core.errors import UnknownName
from ...core.registry import keys
from ..experiment import HEADS, Experiment
from ..pool import Arm


class HasName(Protocol):
    """Method that is chosen by its name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=HasName)
ADAPTER_LR, CONV_LR, FULL_LR = 5e-3, 3e-3, 1e-4
SIZE = 16  # width of a bottleneck, rank of LoRA
WIDE = 64  # as published for AdaptFormer and MoSA beyond VTAB-1k


@dataclass(frozen=True)
class Choice:
    """A method with its settings, as a benchmark runs it.

    method, settings, objective: as `intarsia fit` takes them.  lr: rate of the `honest`
    protocol, None = the method's own; conv_lr: the rate in its place in a network with batch norms.
    half: each step looks at every image twice, so that the same time buys half of the epochs.
    recipe: values of `Recipe` by name, as ("ema", 0.99).
    """

    method: str
    settings: tuple[str, ...] = ()
    objective: str = "plain"
    lr: float | None = ADAPTER_LR
    conv_lr: float | None = CONV_LR
    half: bool = False
    recipe: tuple[tuple[str, float], ...] = ()

    def into(self, start: Experiment) -> Experiment:
        """Return an experiment (all settings of one training run) that trains this method.

        start: the experiment that gives the pictures, model, epochs and seeds. Settings of it
        that the method cannot use are dropped, such as a limit to the last blocks of a model.
        """
        experiment = start.changed(
            method=self.method, settings=self.settings, objective=self.objective, lr=self.lr
        ).changed(**dict(self.recipe))
        if self.method == "linear":  # its features are the same in every epoch
            experiment = experiment.changed(frozen_once=True)
        return experiment.suited()


BenchArm = Arm[Choice]


def among_batch_norms(arm: BenchArm) -> BenchArm:
    """Return the arm at its rate for a network with batch norms."""
    return replace(arm, settings=replace(arm.settings, lr=arm.settings.conv_lr))


RECIPES = {"ema": ("ema", 0.99), "smoothing": ("smoothing", 0.1)}
"""Additions to any method's training: "lora ema" is LoRA with a moving average of its weights."""


def with_recipe(arm: BenchArm, name: str) -> BenchArm:
    """Return the arm with one of RECIPES in its training."""
    recipe = (*arm.settings.recipe, RECIPES[name])
    return Arm(f"{arm.name} {name}", replace(arm.settings, recipe=recipe))


def by_task(arm: BenchArm) -> BenchArm:
    """Return a method changed for several tasks that are trained jointly: one head for each task.

    arm: the method with its settings; its own training objective is computed on those heads.
    """
    objective = arm.settings.objective
    over = "" if objective == "plain" else f"+{objective}"
    return replace(arm, settings=replace(arm.settings, objective=f"{HEADS}{over}"))


def _make_arm(name: str, *positional: Any, **keywords: Any) -> BenchArm:
    """Make an arm; positional and keywords are as for `Choice`."""
    return Arm(name, Choice(*positional, **keywords))


def _bottleneck_settings(placement: str, *settings: str, size: int = SIZE) -> tuple[str, ...]:
    """Return the settings of a bottleneck adapter of width `size` at a placement."""
    return (f"bottleneck={size}", f"placement={placement}", "activation=gelu", *settings)


def _settings_over(placement: str, *settings: str, size: int = SIZE) -> tuple[str, ...]:
    """Return the settings of a method with such a bottleneck adapter as its `over`."""
    return tuple(f"over.{word}" for word in _bottleneck_settings(placement, *settings, size=size))


ARMS = (
    _make_arm("linear", "linear", lr=None, conv_lr=None),  # fitted to convergence
    _make_arm("full", "full", lr=FULL_LR),
    _make_arm("bitfit", "bitfit", lr=2e-3, conv_lr=5e-2),
    _make_arm("norms", "norms", lr=2e-3, conv_lr=5e-2),
    _make_arm("last-1", "last-k", ("blocks=1",), lr=5e-4, conv_lr=2e-2),
    _make_arm("vpt-shallow", "vpt-shallow", ("prompts=10",)),
    _make_arm("vpt-deep", "vpt-deep", ("prompts=10",)),
    _make_arm("ssf", "ssf", lr=2e-3),
    _make_arm("houlsby", "bottleneck", _bottleneck_settings("houlsby")),
    _make_arm("pfeiffer", "bottleneck", _bottleneck_settings("pfeiffer")),
    _make_arm("adaptformer", "bottleneck", _bottleneck_settings("adaptformer")),
    _make_arm("adapter+", "bottleneck", _bottleneck_settings("adapter+")),
    _make_arm("adaptformer-64", "bottleneck", _bottleneck_settings("adaptformer", size=WIDE)),
    _make_arm("lora", "lora", (f"rank={SIZE}",), conv_lr=1e-3),
    _make_arm("dora", "peft-dora", (f"r={SIZE}",), lr=1e-3, conv_lr=2e-3),
    _make_arm("ia3", "peft-ia3", conv_lr=2e-2),
    _make_arm("loha", "peft-loha", (f"r={SIZE}",), lr=1e-3, conv_lr=5e-3),
    _make_arm(
        "r-drop adaptformer",
        "bottleneck",
        _bottleneck_settings("adaptformer", "dropout=0.1"),
        "two_pass:add=1",
        half=True,
    ),
    _make_arm(
        "adamix", "adamix", _settings_over("adaptformer", "dropout=0.1"), "two_pass", half=True
    ),
    _make_arm("mosa", "mosa", _settings_over("adaptformer")),
    _make_arm("mosa-64", "mosa", _settings_over("adaptformer", size=WIDE)),
    _make_arm("mosa pfeiffer", "mosa", _settings_over("pfeiffer")),
    _make_arm("mosa houlsby", "mosa", _settings_over("houlsby")),
    _make_arm("mosa adapter+", "mosa", _settings_over("adapter+")),
    _make_arm(
        "mosl", "mosa", ("over=lora", f"over.rank={SIZE}", "split=both"), lr=1e-3, conv_lr=2e-3
    ),
)

EXTRA = (
    _make_arm("pace", "pace", _settings_over("adaptformer"), half=True),
    _make_arm("pace one-pass", "pace", (*_settings_over("adaptformer"), "one_pass=true")),
    _make_arm("drop_connect", "drop_connect", _settings_over("adaptformer")),
    _make_arm("convpass", "convpass", (f"width={SIZE}",)),
    _make_arm("glora", "peft-glora", (f"r={SIZE}",), lr=1e-3, conv_lr=1e-3),
)
"""Arms that run only if they are named, beside those of the full table."""


def arm(name: str) -> BenchArm:
    """Return the arm of this name: a method with the settings that a benchmark gives it.

    name: an arm of ARMS or EXTRA; or a method that `intarsia fit` knows, which then has its default
    settings. " ema" or " smoothing" after it, as in "lora ema", adds a moving average of the
    weights or label smoothing to its training (RECIPES). A method of the kind "change", which
    leaves all weights trainable, gets the learning rate of full fine-tuning.
    Raises: UnknownName.
    """
    # "lora ema" is the method "lora" with the recipe "ema"
    first, _, last = name.rpartition(" ")
    if first and last in RECIPES:
        return with_recipe(arm(first), last)
    if all(known_arm.name != name for known_arm in (*ARMS, *EXTRA)):
        if name in keys("change"):
            return _make_arm(name, name, lr=FULL_LR)
        if name in (*keys(), *keys("baseline")):
            return _make_arm(name, name)
    return named("method of the benchmark", name, (*ARMS, *EXTRA))


def named(kind: str, name: str, among: Sequence[T]) -> T:
    """Return the item of `among` that has this name.

    kind: what the items are, as the error calls them ("method of the benchmark").
    Raises: UnknownName.
    """
    by_name = {item.name: item for item in among}
    if name not in by_name:
        raise UnknownName(kind, name, list(by_name))
    return by_name[name]
