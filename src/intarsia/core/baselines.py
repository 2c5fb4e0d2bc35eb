"""The closed list of baselines: what a run can train beside the adapters of the registry.

Data only: `intarsia.hosts.baselines` builds them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .card import Card, Paper


@dataclass(frozen=True)
class Baseline:
    """One baseline: its name, a sentence about it, a paper, and its settings' defaults.

    family: "part of the model", "prompts" or "peft", which says what builds it.
    label: its name in a table, if it is another.  peft: the type under which PEFT knows it; its
    settings are then the plain ones of PEFT's config, and `settings` holds what differs.
    """

    name: str
    about: str
    paper: Paper
    family: str
    settings: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    label: str = ""
    peft: str = ""

    @property
    def in_blocks(self) -> bool:
        """Whether it can be kept to the last blocks, as cells can."""
        return _LAST in self.settings

    @property
    def on_top(self) -> bool:
        """Whether the first blocks are frozen whatever the settings are (but for all blocks)."""
        return self.name in ("linear", "last-k")


_FROZEN = Paper("1411.1792", 2014, "How transferable are features in deep neural networks?")
_VPT = Paper("2203.12119", 2022, "Visual Prompt Tuning")
_PROMPTS: Mapping[str, Any] = MappingProxyType({"prompts": 10, "dropout": 0.0})
_LAST = "last_blocks"  # so many from the last, 0 = all

_PARTS = (
    Baseline(
        "linear", "The head alone, on the frozen trunk.",
        Paper(
            "1610.01644", 2016, "Understanding intermediate layers using linear classifier probes"
        ),
        "part of the model", label="linear probe",
    ),
    Baseline(
        "full", "Every weight of the model.", _FROZEN, "part of the model",
        label="full fine-tuning",
    ),
    Baseline(
        "bitfit", "Every bias, and the head.",
        Paper(
            "2106.10199", 2021,
            "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
            "Language-models",
        ),
        "part of the model", {_LAST: 0},
    ),
    Baseline(
        "norms", "Gains and biases of every norm, and the head.",
        Paper("2302.07937", 2023, "The Expressive Power of Tuning Only the Normalization Layers"),
        "part of the model", {_LAST: 0}, label="norm tuning",
    ),
    Baseline(
        "last-k", "The last blocks, what follows them, and the head.", _FROZEN,
        "part of the model", {"blocks": 1},
    ),
    Baseline(
        "vpt-shallow", "Trained tokens before the first block, and the head.", _VPT, "prompts",
        _PROMPTS,
    ),
    Baseline(
        "vpt-deep", "Trained tokens of its own for every block, and the head.", _VPT, "prompts",
        {**_PROMPTS, _LAST: 0},
    ),
)  # fmt: skip

_LN = Paper(
    "2312.11420", 2023,
    "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
)  # fmt: skip
# name, PEFT's type, what it is, arXiv number, year, title, settings that differ
_THROUGH_PEFT: tuple[tuple[str, str, str, Paper, Mapping[str, Any]], ...] = (
    ("lora", "LORA", "Low-rank changes",
     Paper("2106.09685", 2021, "LoRA: Low-Rank Adaptation of Large Language Models"), {}),
    ("dora", "LORA", "Low-rank changes of the weights' directions",
     Paper("2402.09353", 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation"),
     {"use_dora": True}),
    ("ia3", "IA3", "Scales of keys, values and hidden units",
     Paper("2205.05638", 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper "
           "than In-Context Learning"), {"roles": ("qkv", "mlp_linear")}),
    ("loha", "LOHA", "Hadamard products of low-rank changes",
     Paper("2108.06098", 2021, "FedPara: Low-Rank Hadamard Product for Communication-Efficient "
           "Federated Learning"), {}),
    ("lokr", "LOKR", "Kronecker products of low-rank changes",
     Paper("2212.10650", 2022, "KronA: Parameter Efficient Tuning with Kronecker Adapter"), {}),
    ("oft", "OFT", "Rotations of the weights, block by block",
     Paper("2306.07280", 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning"),
     {}),
    ("hra", "HRA", "Householder reflections of the weights",
     Paper("2405.17484", 2024, "Bridging The Gap between Low-rank and Orthogonal Adaptation via "
           "Householder Reflection Adaptation"), {}),
    ("vera", "VERA", "Scales of frozen random low-rank changes",
     Paper("2310.11454", 2023, "VeRA: Vector-based Random Matrix Adaptation"), {}),
    ("randlora", "RANDLORA", "Scales of many frozen random low-rank changes",
     Paper("2502.00987", 2025, "RandLoRA: Full-rank parameter-efficient fine-tuning of large "
           "models"), {}),
    ("fourierft", "FOURIERFT", "Changes with a few Fourier coefficients",
     Paper("2405.03003", 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier "
           "Transform"), {}),
    ("miss", "MISS", "Changes by shared shards",
     Paper("2409.15371", 2024, "MiSS: Revisiting the Trade-off in LoRA with an Efficient "
           "Shard-Sharing Structure"), {}),
    ("delora", "DELORA", "Low-rank changes with a bounded strength",
     Paper("2503.18225", 2025, "Decoupling Angles and Strength in Low-rank Adaptation"), {}),
    ("lntuning", "LN_TUNING", "Gains and biases of every norm", _LN, {"roles": ("norm",)}),
)  # fmt: skip

BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {b.name: b for b in _PARTS}
    | {
        f"peft-{name}": Baseline(
            f"peft-{name}", f"{about}, by PEFT's own code, and the head.", paper, "peft",
            {"roles": ("qkv",), _LAST: 0} | dict(settings), peft=kind,
        )
        for name, kind, about, paper, settings in _THROUGH_PEFT
    }
)  # fmt: skip
"""By name."""

CARDS = tuple(
    Card(
        b.name,
        kind="baseline",
        config=functools.partial(dict[str, Any], b.settings),
        paper=b.paper,
        summary=b.about,
        family=b.family,
        names=(b.label,) if b.label else (),
    )
    for b in BASELINES.values()
)
