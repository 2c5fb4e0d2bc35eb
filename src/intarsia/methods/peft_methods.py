"""PEFT's own methods as baselines: PEFT's code, in places found by role, and a trained head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from ..core import Card, Paper
from ..core.change import Change, Plan
from ..core.errors import UnknownName
from ..core.schema import check, setting
from ..hosts.attach.through_peft import plain_settings, through_peft


@dataclass(frozen=True)
class PeftMethod(Change):
    """A method of PEFT, by the name of its card without "peft-".

    Raises: UnknownName for a method or a setting that PEFT has not.
    """

    method: str = setting("lora", 'The name of PEFT\'s method, such as "lora".')
    roles: tuple[str, ...] = setting(("qkv",), "The host's layers that are changed, see `Method`.")
    last_blocks: int = setting(
        0, "The number of blocks that are changed, counted from the last; 0 = all.", least=0
    )
    settings: Mapping[str, Any] = setting(
        help="The settings of PEFT's own config: numbers, words and switches.",
        factory=lambda: dict[str, Any](),
        hash=False,
    )

    stores: ClassVar[str] = "nothing"  # PEFT's own files have it

    def __post_init__(self) -> None:
        """Check the method's name and PEFT's settings, and fill in PEFT's defaults."""
        check(self)
        if self.method not in _METHODS:
            raise UnknownName("method of PEFT", self.method, _METHODS)
        object.__setattr__(self, "roles", tuple(self.roles))
        # PEFT's defaults are stored with ours, so that a later release of PEFT changes no saved
        # run.
        defaults = plain_settings(self._kind)
        for name in self.settings:
            if name not in defaults:
                raise UnknownName(f"setting of {self.card_key!r}", name, [*_PLACEMENT, *defaults])
        object.__setattr__(self, "settings", {**defaults, **self.settings})

    @property
    def preserves(self) -> frozenset[str]:
        """The property that stays: outputs, except with FourierFT, which draws its start."""
        return frozenset() if self.method == "fourierft" else frozenset({"outputs"})

    @property
    def card_key(self) -> str:
        return f"peft-{self.method}"

    @property
    def _kind(self) -> str:
        return _METHODS[self.method][0]

    def settings_to_dict(self) -> dict[str, Any]:
        """Return all settings in one dict, ours and PEFT's, as `of_settings` takes them."""
        return {**self.settings, "roles": list(self.roles), "last_blocks": self.last_blocks}

    def with_settings(self, **changes: Any) -> PeftMethod:
        """Return a copy with some settings changed, PEFT's among them."""
        return of_settings(self.method, **(self.settings_to_dict() | changes))

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Put PEFT's layers into the host and return PEFT's model."""
        return through_peft(
            host,
            self._kind,
            self.settings,
            roles=self.roles,
            last_blocks=self.last_blocks,
            seed=plan.seed,
        )

    def fold(self, host: nn.Module) -> nn.Module:
        """Merge PEFT's layers into the stock model by PEFT's code.  Raises: what PEFT raises."""
        model: Any = host
        # PEFT removes its own layers and returns the stock model.
        return model.merge_and_unload()


_PLACEMENT = ("roles", "last_blocks")


def of_settings(method: str, **settings: Any) -> PeftMethod:
    """Make a method of PEFT from settings that are given together as keywords.

    method: such as "lora"; settings: `roles` and `last_blocks`, which say where, and any of PEFT's.
    """
    # Keywords of ours are told from PEFT's by their names.
    placement = {name: settings.pop(name) for name in _PLACEMENT if name in settings}
    return PeftMethod(method, settings=settings, **placement)


OURS = ("lora", "fourierft")
"""Names of PEFT's methods that are also names of methods of ours, which a bare name stands for."""

# name -> PEFT's type, description, arXiv number, year, title, settings that differ
_METHODS: dict[str, tuple[str, str, str, int, str, dict[str, Any]]] = {
    "lora": (
        "LORA",
        "Low-rank changes",
        "2106.09685",
        2021,
        "LoRA: Low-Rank Adaptation of Large Language Models",
        {},
    ),
    "dora": (
        "LORA",
        "Low-rank changes of the weights' directions",
        "2402.09353",
        2024,
        "DoRA: Weight-Decomposed Low-Rank Adaptation",
        {"use_dora": True},
    ),
    "glora": (
        "GLORA",
        "Low-rank factors and summands of weights, scales and shifts of biases",
        "2306.07967",
        2023,
        "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning",
        {},
    ),
    "ia3": (
        "IA3",
        "Scales of keys, values and hidden units",
        "2205.05638",
        2022,
        "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        {"roles": ("qkv", "mlp_linear")},
    ),
    "loha": (
        "LOHA",
        "Hadamard products of low-rank changes",
        "2108.06098",
        2021,
        "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
        {},
    ),
    "lokr": (
        "LOKR",
        "Kronecker products of low-rank changes",
        "2212.10650",
        2022,
        "KronA: Parameter Efficient Tuning with Kronecker Adapter",
        {},
    ),
    "oft": (
        "OFT",
        "Rotations of the weights, block by block",
        "2306.07280",
        2023,
        "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
        {},
    ),
    "hra": (
        "HRA",
        "Householder reflections of the weights",
        "2405.17484",
        2024,
        "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection "
        "Adaptation",
        {},
    ),
    "vera": (
        "VERA",
        "Scales of frozen random low-rank changes",
        "2310.11454",
        2023,
        "VeRA: Vector-based Random Matrix Adaptation",
        {},
    ),
    "randlora": (
        "RANDLORA",
        "Scales of many frozen random low-rank changes",
        "2502.00987",
        2025,
        "RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
        {},
    ),
    "fourierft": (
        "FOURIERFT",
        "Changes with a few Fourier coefficients",
        "2405.03003",
        2024,
        "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
        {},
    ),
    "miss": (
        "MISS",
        "Changes by shared shards",
        "2409.15371",
        2024,
        "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure",
        {},
    ),
    "delora": (
        "DELORA",
        "Low-rank changes with a bounded strength",
        "2503.18225",
        2025,
        "Decoupling Angles and Strength in Low-rank Adaptation",
        {},
    ),
    "lntuning": (
        "LN_TUNING",
        "Gains and biases of every norm",
        "2312.11420",
        2023,
        "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
        {"roles": ("norm",)},
    ),
}

CARDS = tuple(
    Card(
        f"peft-{name}",
        kind="baseline",
        config=partial(of_settings, name, **changed),
        paper=Paper(arxiv, year, title),
        summary=f"{description}, by PEFT's own code, and the head.",
        family="peft",
        names=() if name in OURS else (name,),
        tiny={"r": 8} if name == "miss" else {},
        exceptions={"documents_its_settings": "they are PEFT's, which documents them"},
    )
    for name, (_, description, arxiv, year, title, changed) in _METHODS.items()
)
