"""What a benchmark compares: methods with their settings, of one size unless a name says another.

Learning rates are those of a ViT, set by hand, one for each family but where its rate leads astray,
as of MoSL, a product of two split sides. Those of a network with batch norms were chosen on
validation pictures of an EfficientNet (docs/log), but for what does not fit it.
`tuned` searches around either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..core.errors import UnknownName
from ..core.registry import keys
from ..experiments.experiment import HEADS, Experiment
from ..experiments.pool import Arm

T = TypeVar("T")
ADAPTER_LR, CONV_LR, FULL_LR = 5e-3, 3e-3, 1e-4
SIZE = 16  # width of a bottleneck, rank of LoRA
WIDE = 64  # as published for AdaptFormer and MoSA beyond VTAB-1k


@dataclass(frozen=True)
class Choice:
    """A method with its settings, as a benchmark runs it.

    method, settings, objective: as `intarsia fit` takes them.  lr: of the `honest` protocol;
    conv_lr: in its place in a network with batch norms.
    half: each step looks at every image twice, so that the same time buys half of the epochs.
    recipe: values of `Recipe` by name, as ("ema", 0.99).
    """

    method: str
    settings: tuple[str, ...] = ()
    objective: str = "plain"
    lr: float = ADAPTER_LR
    conv_lr: float = CONV_LR
    half: bool = False
    recipe: tuple[tuple[str, float], ...] = ()

    def into(self, start: Experiment) -> Experiment:
        """An experiment with this method in it, in the last blocks alone where that can be."""
        chosen = start.changed(
            method=self.method, settings=self.settings, objective=self.objective, lr=self.lr
        ).changed(**dict(self.recipe))
        if self.method == "linear":  # its features are the same in every epoch
            chosen = chosen.changed(frozen_once=True)
        return chosen.suited()


BenchArm = Arm[Choice]


def among_batch_norms(arm: BenchArm) -> BenchArm:
    """The same at its rate for a network with batch norms."""
    return replace(arm, settings=replace(arm.settings, lr=arm.settings.conv_lr))


RECIPES = {"ema": ("ema", 0.99), "smoothing": ("smoothing", 0.1)}
"""What any method can take: "lora ema" is LoRA with a moving average of its weights."""


def with_recipe(arm: BenchArm, name: str) -> BenchArm:
    """The same with one of RECIPES."""
    recipe = (*arm.settings.recipe, RECIPES[name])
    return Arm(f"{arm.name} {name}", replace(arm.settings, recipe=recipe), arm.version)


def by_task(arm: BenchArm) -> BenchArm:
    """The same with a head for each of joint tasks, over its own objective."""
    objective = arm.settings.objective
    over = "" if objective == "plain" else f"+{objective}"
    return replace(arm, settings=replace(arm.settings, objective=f"{HEADS}{over}"))


def _arm(name: str, *choice: Any, **more: Any) -> BenchArm:
    return Arm(name, Choice(*choice, **more))


def _bottleneck(placement: str, *more: str, size: int = SIZE) -> tuple[str, ...]:
    return (f"bottleneck={size}", f"placement={placement}", "activation=gelu", *more)


def _over(placement: str, *more: str, size: int = SIZE) -> tuple[str, ...]:
    return tuple(f"over.{word}" for word in _bottleneck(placement, *more, size=size))


ARMS = (
    _arm("linear", "linear", conv_lr=0.1),
    _arm("full", "full", lr=FULL_LR),
    _arm("bitfit", "bitfit", lr=2e-3, conv_lr=5e-2),
    _arm("norms", "norms", lr=2e-3, conv_lr=5e-2),
    _arm("last-1", "last-k", ("blocks=1",), lr=5e-4, conv_lr=2e-2),
    _arm("vpt-shallow", "vpt-shallow", ("prompts=10",)),
    _arm("vpt-deep", "vpt-deep", ("prompts=10",)),
    _arm("ssf", "ssf", lr=2e-3),
    _arm("houlsby", "bottleneck", _bottleneck("houlsby")),
    _arm("pfeiffer", "bottleneck", _bottleneck("pfeiffer")),
    _arm("adaptformer", "bottleneck", _bottleneck("adaptformer")),
    _arm("adapter+", "bottleneck", _bottleneck("adapter+")),
    _arm("adaptformer-64", "bottleneck", _bottleneck("adaptformer", size=WIDE)),
    _arm("lora", "lora", (f"rank={SIZE}",), conv_lr=1e-3),
    _arm("dora", "peft-dora", (f"r={SIZE}",), lr=1e-3, conv_lr=2e-3),
    _arm("ia3", "peft-ia3", conv_lr=2e-2),
    _arm("loha", "peft-loha", (f"r={SIZE}",), lr=1e-3, conv_lr=5e-3),
    _arm(
        "r-drop adaptformer",
        "bottleneck",
        _bottleneck("adaptformer", "dropout=0.1"),
        "two_pass:add=1",
        half=True,
    ),
    _arm("adamix", "adamix", _over("adaptformer", "dropout=0.1"), "two_pass", half=True),
    _arm("mosa", "mosa", _over("adaptformer")),
    _arm("mosa-64", "mosa", _over("adaptformer", size=WIDE)),
    _arm("mosa pfeiffer", "mosa", _over("pfeiffer")),
    _arm("mosa houlsby", "mosa", _over("houlsby")),
    _arm("mosa adapter+", "mosa", _over("adapter+")),
    _arm("mosl", "mosa", ("over=lora", f"over.rank={SIZE}", "split=both"), lr=1e-3, conv_lr=2e-3),
)

ASKED = (
    _arm("pace", "pace", _over("adaptformer"), half=True),
    _arm("pace one-pass", "pace", (*_over("adaptformer"), "one_pass=true")),
    _arm("drop_connect", "drop_connect", _over("adaptformer")),
    _arm("convpass", "convpass", (f"width={SIZE}",)),
    _arm("glora", "peft-glora", (f"r={SIZE}",), lr=1e-3, conv_lr=1e-3),
)
"""Those that are run when they are named, beside the table of all."""


def arm(name: str) -> BenchArm:
    """The arm of that name, or any other method of `intarsia fit` as it is by default.

    A change that freezes nothing gets the rate of full fine-tuning. A name with one of RECIPES
    behind it is that method with this in its training.
    Raises: UnknownName.
    """
    first, _, last = name.rpartition(" ")
    if first and last in RECIPES:
        return with_recipe(arm(first), last)
    if all(found.name != name for found in (*ARMS, *ASKED)):
        if name in keys("change"):
            return _arm(name, name, lr=FULL_LR)
        if name in (*keys(), *keys("baseline")):
            return _arm(name, name)
    return named("method of the benchmark", name, (*ARMS, *ASKED))


def named(kind: str, name: str, among: Sequence[T]) -> T:
    """The one of that name.  Raises: UnknownName."""
    known = {getattr(one, "name"): one for one in among}  # noqa: B009
    if name not in known:
        raise UnknownName(kind, name, list(known))
    return known[name]
