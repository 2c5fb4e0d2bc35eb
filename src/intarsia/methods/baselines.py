"""Baselines: a part of the model as it is, or prompts before its tokens, trained with the head."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from ..core import Card, Paper
from ..core.change import Change, Plan
from ..core.errors import FoldError
from ..core.schema import check, setting
from ..hosts.attach.prompts import add_prompts
from ..hosts.attach.select import train_part


class _PartTuning(Change):
    """A baseline that adds nothing: `train_part` freezes all but one part of the model."""

    part: ClassVar[str]

    def __post_init__(self) -> None:
        check(self)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Freeze all but the method's part of the model, in place."""
        settings: Any = self  # a dataclass in every subclass
        # The settings of the dataclass are the keywords of `train_part`.
        return train_part(host, self.part, **asdict(settings))


@dataclass(frozen=True)
class LinearProbe(_PartTuning):
    """Training of the head alone, on the frozen trunk.

    Not where frozen features do not tell the classes apart: it changes none.
    """

    part: ClassVar[str] = "linear"
    on_top: ClassVar[bool] = True  # the first blocks are frozen, whatever the settings
    needs_head: ClassVar[bool] = True


@dataclass(frozen=True)
class FullTuning(_PartTuning):
    """Training of every weight of the model.

    Not where memory is scarce: every weight has a gradient and an optimiser's state.
    """

    part: ClassVar[str] = "full"


@dataclass(frozen=True)
class BitFit(_PartTuning):
    """Training of every bias, and of the head.

    Not for models without biases, as Llama's.
    """

    part: ClassVar[str] = "bitfit"
    last_blocks: int = setting(
        0,
        "The number of blocks, counted from the last, in which biases are trained, and behind "
        "them; 0 = all.",
        least=0,
    )


@dataclass(frozen=True)
class NormTuning(_PartTuning):
    """Training of the gains and biases of every norm, and of the head.

    Not for models whose norms have neither gain nor bias.
    """

    part: ClassVar[str] = "norms"
    last_blocks: int = setting(
        0,
        "The number of blocks, counted from the last, in which norms are trained, and behind "
        "them; 0 = all.",
        least=0,
    )


@dataclass(frozen=True)
class LastBlocks(_PartTuning):
    """Training of the last blocks, of all layers behind them, and of the head.

    Not where the first blocks have to change: they stay frozen.
    """

    part: ClassVar[str] = "last-k"
    on_top: ClassVar[bool] = True
    blocks: int = setting(
        1, "The number of blocks that are trained, counted from the last.", least=1
    )


class _PromptTuning(Change):
    """A baseline that trains prompts before the tokens, see `add_prompts`."""

    deep: ClassVar[bool]
    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check(self)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Add trained prompt tokens to the model, in place."""
        settings: Any = self
        # The settings of the dataclass are the keywords of `add_prompts`.
        return add_prompts(host, deep=self.deep, seed=plan.seed, **asdict(settings))

    def fold(self, host: nn.Module) -> nn.Module:
        """Refuse to fold prompts into weights, always: prompts are tokens, no weight holds them."""
        got = "prompts, which are tokens beside the picture's"
        fix = "Keep the prompts: save the model with intarsia.save."
        raise FoldError(f"fold {type(host).__name__}", got=got, want="a change of weights", fix=fix)


@dataclass(frozen=True)
class VptShallow(_PromptTuning):
    """Trained tokens before the first block, and a trained head.

    Not for convolutional nets, which read no tokens, nor where the model must fold.
    """

    deep: ClassVar[bool] = False
    prompts: int = setting(10, "The number of trained tokens.", least=0, fix="Try 10.")
    dropout: float = setting(
        0.0,
        "The share of the trained tokens' entries that is zeroed in training.",
        least=0,
        below=1,
    )


@dataclass(frozen=True)
class VptDeep(_PromptTuning):
    """Trained tokens in every block, and a trained head.

    Not for convolutional nets, which read no tokens, nor where the model must fold.
    """

    deep: ClassVar[bool] = True
    prompts: int = setting(
        10, "The number of trained tokens in each block.", least=0, fix="Try 10."
    )
    dropout: float = setting(
        0.0,
        "The share of the trained tokens' entries that is zeroed in training.",
        least=0,
        below=1,
    )
    last_blocks: int = setting(
        0,
        "The number of blocks, counted from the last, that have trained tokens; 0 = all.",
        least=0,
    )


def _baseline_card(key: str, config: type, summary: str, paper: Paper, *names: str) -> Card:
    family = "prompts" if issubclass(config, _PromptTuning) else "part of the model"
    return Card(
        key,
        kind="baseline",
        config=config,
        paper=paper,
        summary=summary,
        family=family,
        names=names,
    )


_PROBES = "Understanding intermediate layers using linear classifier probes"
_FROZEN = Paper("1411.1792", 2014, "How transferable are features in deep neural networks?")
_BITFIT = (
    "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models"
)
_NORMS = "The Expressive Power of Tuning Only the Normalization Layers"
_VPT = Paper("2203.12119", 2022, "Visual Prompt Tuning")

CARDS = (
    _baseline_card(
        "linear",
        LinearProbe,
        "The head alone, on the frozen trunk.",
        Paper("1610.01644", 2016, _PROBES),
        "linear probe",
    ),
    _baseline_card("full", FullTuning, "Every weight of the model.", _FROZEN, "full fine-tuning"),
    _baseline_card(
        "bitfit", BitFit, "Every bias, and the head.", Paper("2106.10199", 2021, _BITFIT)
    ),
    _baseline_card(
        "norms",
        NormTuning,
        "Gains and biases of every norm, and the head.",
        Paper("2302.07937", 2023, _NORMS),
        "norm tuning",
    ),
    _baseline_card(
        "last-k", LastBlocks, "The last blocks, what follows them, and the head.", _FROZEN
    ),
    _baseline_card(
        "vpt-shallow", VptShallow, "Trained tokens before the first block, and the head.", _VPT
    ),
    _baseline_card(
        "vpt-deep",
        VptDeep,
        "Trained tokens of its own for every block, and the head.",
        _VPT,
    ),
)
