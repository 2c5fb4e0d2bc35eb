"""MoSA: split an adapter into disjoint parts, train a few at a time, merge (arXiv:2312.02923)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from ..adapters import Bottleneck, Lora
from ..core import Card, Paper, Site
from ..core.checks import at_least
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..hosts.attach.adapt import PublishedRecipe
from ..hosts.attach.prepare import linear_head, reset_head, set_dropout
from ..mixtures.over import OverMethod
from ..mixtures.routed import RoutedCell, draw_apart, two_sided
from ..mixtures.split import DECAYS, SCALINGS, SplitLinear
from ..mixtures.split_optimizer import SplitAdamW, split_adamw
from ..partitions import random_disjoint
from ..partitions.disjoint import UNITS
from ..routers import RandomRouter
from ..train.objectives import two_pass
from ..train.settings import Training

SPLITS = ("up", "down", "both")


@dataclass(frozen=True)
class Mosa(OverMethod):
    """A mixture of sparse adapters over any two-sided cell.

    The chosen projections of `over` are dealt out at random to N = `experts` disjoint parts; a
    training forward activates k = `active` of them; evaluation uses the merge, one plain adapter.

    Raises: ConfigError on a setting that cannot be.
    In short: a DropConnect for each sample with disjoint masks, which merges into the adapter. It
    regularises: where an adapter over-fits (few images, seen 20 to 60 times) its loss is lower,
    while its accuracy is that of the adapter left whole (docs/benchmarks/mosa_pairs.md).
    When to use it: for probabilities that are used as they are, where no validation part can fit a
    temperature; with one, the gain is gone. For accuracy begin with `Lora`.
    Not for ample data and few steps: every part then sees a fraction of an already short training;
    `Mosa.for_budget` knows when to leave the adapter whole.
    """

    EPOCHS: ClassVar[tuple[int, int]] = (20, 60)  # where the split pays
    FEW: ClassVar[int] = 300  # images up to which one part at a time is best

    over: Bottleneck | Lora = setting(
        help="The adapter that is split, a Bottleneck or a Lora.",
        factory=lambda: Bottleneck(activation="gelu"),
    )
    experts: int = setting(4, "The number N of disjoint parts.", least=1, fix="Try 4.")
    active: int = setting(
        1,
        "The number k of parts that a training forward activates; 1 is the paper, N the plain "
        "adapter.",
        least=1,
        fix="k = 1 is the paper, k = experts is the plain adapter.",
    )
    split: str = setting(
        "up",
        'The projections that are dealt out: "up" (the hierarchical strategy: the other side '
        'stays dense and shared), "down" or "both".',
        choices=SPLITS,
    )
    draw: str = setting(
        "sample",
        'The samples that share a draw: "sample", each image has its own k parts, inside a '
        'Swin\'s attention each window; "batch", one draw for all (the paper).',
        choices=("sample", "batch"),
    )
    scaling: str = setting(
        "inverted", "The scale of the active parts, see `SplitLinear`.", choices=SCALINGS
    )
    decay: str = setting(
        "owned",
        'The weights that decay acts on, see `SplitLinear`; "official" needs the optimiser '
        '`split_adamw`, and under any other it is "owned".',
        choices=DECAYS,
    )
    unit: str = setting(
        "element",
        "The unit of weights that is dealt out as a whole, see `random_disjoint`.",
        choices=tuple(UNITS),
    )

    def __post_init__(self) -> None:
        """Check the settings: an adapter of two projections, and fitting combinations."""
        check(self)
        if not isinstance(self.over, Bottleneck | Lora):
            got, fix = type(self.over).__name__, "Pass the adapter that is to be split."
            raise ConfigError("over", got=got, want="Bottleneck or Lora", fix=fix)
        if self.decay == "official" and (self.scaling, self.active) != ("paper", 1):
            subject, want = "decay='official'", "scaling='paper', active=1"
            got = f"scaling={self.scaling!r}, active={self.active}"
            raise ConfigError(subject, got=got, want=want, fix="Use decay='owned' elsewhere.")
        # the router says what else can be wrong
        RandomRouter(self.experts, self.active, self.draw, generator=torch.Generator())

    @classmethod
    def for_budget(cls, images: int, epochs: int, **settings: Any) -> Mosa:
        """Choose k for a budget: one part or half of them for 20 to 60 epochs, else all.

        A rule from searches on validation images: the split regularises, one part at a time up to
        300 images, half of the parts above. With few epochs every part needs all the updates it
        can get, and with many nothing was gained: the adapter stays whole (k = N) there.
        settings: of Mosa; an `active` among them wins.  Raises: ConfigError for no image or epoch.
        """
        at_least("images", images, 1)
        at_least("epochs", epochs, 1)
        experts = int(settings.get("experts", cls.experts))
        # Outside of these epochs all parts are trained, see above.
        first, last = cls.EPOCHS
        active = 1 if images <= cls.FEW else max(1, experts // 2)
        settings.setdefault("active", active if first <= epochs <= last else experts)
        return cls(**settings)

    def suited_to(self, images: int, epochs: int, given: Collection[str] = ()) -> Mosa:
        """Return settings with k for a budget, see `for_budget`; `active` is not overwritten."""
        if "active" in given:
            return self
        return self.for_budget(images, epochs, **{name: getattr(self, name) for name in given})

    def build(self, site: Site, *, generator: torch.Generator) -> MosaCell:
        """Build an adapter with projections that are split among experts."""
        body = two_sided(self.over.build(site, generator=generator))
        return MosaCell(self, body, generator)


def Mosl(rank: int = 16, **settings: object) -> Mosa:
    """Make MoSA over LoRA: both sides split, drawn apart (paper, section on other methods)."""
    return Mosa(over=Lora(rank), **({"split": "both"} | settings))  # pyright: ignore


class MosaCell(RoutedCell):
    """The cell of `Mosa`: the merged adapter in evaluation, k random parts in training."""

    def __init__(self, config: Mosa, body: Any, generator: torch.Generator) -> None:
        """Split the projections of an adapter into N disjoint parts, each with a random router."""
        layers: dict[str, nn.Module] = {}
        routers: dict[str, RandomRouter] = {}
        for side in ("down", "up"):
            if config.split not in (side, "both"):
                continue
            linear: nn.Linear = getattr(body, side)
            # Step 1: deal the entries of the projection out to N disjoint parts.
            partition = random_disjoint(
                {"weight": linear.weight.shape},
                config.experts,
                generator=generator,
                unit=config.unit,
            )
            # Step 2: one stored weight; a forward reads its active parts.
            layers[side] = SplitLinear(
                linear,
                partition,
                active=config.active,
                scaling=config.scaling,
                decay=config.decay,
                zero_start=side in body.zero_sides,
            )
            # Each side draws its parts on its own; the paper's scaling holds for one k alone.
            routers[side] = draw_apart(
                config.experts, config.active, config.draw, generator=generator
            )
            routers[side].fixed = config.scaling == "paper"
        super().__init__(body, layers, routers)
        self.config = config


@dataclass(frozen=True)
class Official(PublishedRecipe):
    """The published training of MoSA, quirks included (released code; 100 epochs of ViT-B/16).

    AdaptFormer parallel to every MLP: own LayerNorm of the residual stream, GELU, scale 0.1,
    dropout 0.1; one draw for each batch; every expert stepped at every step; AdamW with eps 1e-6
    outside the bias correction and decay 0.01 after the step, gains of the adapter's norms decayed
    too; learning rate set once per epoch, so that epoch 0, at 0, trains nothing.

    `PUBLISHED` has the settings of each set. To run it:
      model = intarsia.apply(model, official)
      intarsia.fit(model, train, **official.fit_options)
    Not as a default: it reproduces, `Mosa` improves.
    """

    dropout: ClassVar[float] = 0.1  # of the backbone's embedding and MLPs, too
    needs_head: ClassVar[bool] = True

    bottleneck: int = setting(
        64, "The width inside the adapter: 64, or 16 for VTAB-1k.", least=1, fix="Try 16."
    )
    experts: int = setting(4, "The number of disjoint parts, as in `Mosa`.", least=1, fix="Try 4.")
    split: str = setting("up", "The projections that are dealt out, as in `Mosa`.", choices=SPLITS)
    lr: float = setting(1e-3, "The largest learning rate.", above=0, fix="Try 1e-3.")
    deep: bool = setting(False, "Whether the loss has the deep alignment term.")
    epochs: int = setting(100, "The passes over the training images.", least=1)
    warmup_epochs: int = setting(10, "The epochs in which the learning rate rises.", least=0)
    batch_size: int = setting(128, "The images of a step.", least=1)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def for_training(cls, training: Training) -> Official:
        """Return the recipe for a training's rate, epochs and batches; a tenth of them warms up."""
        warmup = max(1, training.epochs // 10)
        return replace(super().for_training(training), warmup_epochs=warmup)

    def prepare(self, host: nn.Module, seed: int) -> None:
        """Set dropout in the pretrained model, and start the head as published, in place.

        Raises: TargetError for no such dropouts; ConfigError unless there is one linear head.
        """
        head = linear_head(host)
        set_dropout(host, self.dropout)
        reset_head(head, generator=torch.Generator().manual_seed(seed))

    @property
    def method(self) -> Mosa:
        """The adapters, with the settings of the released code."""
        over = Bottleneck(
            self.bottleneck, "adaptformer", "gelu", "residual", 0.1, dropout=self.dropout
        )
        return Mosa(
            over, self.experts, split=self.split, draw="batch", scaling="paper", decay="official"
        )

    @property
    def objective(self) -> dict[str, Any]:
        """The weights of the terms of `train.two_pass`, by its keywords."""
        # The released code sums the deep term over six blocks, and divides it by all twelve.
        return {"add": 0.0, "reg": 1.0, "detach": True, "deep": 0.01 / 12 if self.deep else 0.0}

    @property
    def settings(self) -> dict[str, Any]:
        """The keywords of the training loop."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "weight_decay": 0.01,
            "optimizer": self.optimizer,
            "lr_factor": self.lr_factor,
        }

    @property
    def fit_options(self) -> dict[str, Any]:
        """The keywords of `fit`, the objective among them."""
        return self.settings | {"objective": partial(two_pass, **self.objective)}

    def optimizer(self, model: nn.Module, lr: float, weight_decay: float) -> SplitAdamW:
        """Make the released code's AdamW, which steps N copies, on the one tensor for all.

        model: the adapted model; lr, weight_decay: of AdamW.
        """
        return split_adamw(
            model,
            lr,
            weight_decay,
            norm_decays=True,
            eps=1e-6,
            update="dense",
            variant="huggingface",
        )

    def lr_factor(self, step: int, steps: int) -> float:
        """Compute the factor of the learning rate: epoch / warm-up epochs, then half a cosine.

        step: the step's number; steps: the number of all steps. Constant within an epoch.
        """
        # The published schedule is set once an epoch.
        epoch, warm = step * self.epochs // steps, self.warmup_epochs
        if epoch < warm:
            return epoch / warm
        # Half a cosine over the epochs after the warm-up.
        return 0.5 * (1 + math.cos(math.pi * (epoch - warm) / max(1, self.epochs - warm)))


PUBLISHED = MappingProxyType(
    {
        "cub": Official(),
        "nabirds": Official(lr=5e-4),
        "dogs": Official(lr=5e-4),
        "flowers": Official(lr=5e-3),
        "cars": Official(experts=2, split="down", lr=5e-3, deep=True),
        "cifar100": Official(lr=5e-4),
        "food101": Official(lr=5e-4),
        "aircraft": Official(lr=5e-3),
        "vtab": Official(16, lr=5e-3),
        "multi-task": Official(experts=2, split="both", lr=5e-4),
    }
)


_PAPER = Paper(
    "2312.02923",
    2023,
    "Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training",
)

CARDS = (
    Card(
        "mosa",
        kind="adapter",
        config=Mosa,
        paper=_PAPER,
        tags=frozenset({"stochastic", "folds", "zero_start"}),
        tiny={"over": Bottleneck(4, activation="gelu")},
        summary="Split an adapter into disjoint parts, train them stochastically, merge them into "
        "one.",
        family="adapter mixtures",
        names=("MoSA", "Split & Merge", "Split and Merge", "MoSL"),
    ),
    Card(
        "official",
        kind="recipe",
        config=Official,
        paper=_PAPER,
        tiny={"bottleneck": 4},
        summary="The published training of MoSA: cells, objective, optimiser and schedule.",
        family="adapter mixtures",
        names=("mosa, official",),
    ),
)
