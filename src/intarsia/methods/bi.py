"""Bi-Adapter: adapters of one bit per weight, trained as such (arXiv:2307.16867)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..adapters import Bottleneck
from ..adapters.coded import CodedCell
from ..core import Card, Method, Paper, Site
from ..core.schema import check, setting
from ..formats.gaussian import CODEBOOKS, Gaussian
from ..mixtures.over import OverMethod

FLOAT = 32  # bits at which nothing is coded


@dataclass(frozen=True)
class BiAdapter(OverMethod):
    """Any adapter with its weight matrices W replaced by q(z) std(W) + mean(W) while it trains.

    z = (W - mean) / (std + 1e-5); q rounds to the nearest of 2^b levels made for N(0, 1), and the
    gradient passes through it. Bits are better spent on width than on floats.

    Raises: ConfigError on a setting that cannot be, or a cell without weight matrices.
    Source: paper, section 3; `intarsia.folders.out.pack` writes the small file.
    Not for adapters that must add nothing at the start; not for speed: the forward is a float one.
    """

    over: Method = setting(
        help=(
            "The adapter with coded weights, such as Bottleneck or Lora. The paper's runs parallel "
            "to the MLP, reads the residual stream before its LayerNorm, with dropout 0.1 and a "
            "scale chosen for each data set; the default reads what the MLP reads and has "
            "AdaptFormer's scale, 0.1."
        ),
        factory=lambda: Bottleneck(32, norm="none"),
    )
    bits: int = setting(
        1,
        "The bits b of a weight's code; 32 = the float adapter.",
        choices=(*range(1, 9), FLOAT),
        fix="Try 1, 2 or 4.",
    )
    codebook: str = setting(
        "median",
        'The levels of the codes, "median" (the paper) or "lloyd", see '
        "`intarsia.formats.Gaussian`.",
        choices=CODEBOOKS,
    )
    biases: bool = setting(
        False, "Keep the biases of the linear maps, in float; the paper has none."
    )
    start: float = setting(
        1e-3,
        "The standard deviation sigma of the normal, cut at 2 sigma, from which a weight that "
        "would start at zero (the up-projection) starts: a constant has no spread to code.",
        above=0,
        fix="Try 1e-3.",
    )

    def __post_init__(self) -> None:
        """Check each setting, and that no layers share the inner adapter.  Raises: ConfigError."""
        check(self)
        self.refuse_shared()

    @property
    def format(self) -> Gaussian | None:
        """The format of a stored weight matrix; None = floats as they are."""
        return None if self.bits == FLOAT else Gaussian(self.bits, self.codebook)

    def build(self, site: Site, *, generator: torch.Generator) -> CodedCell:
        """Build a host module's inner adapter; each forward rounds its weights to 2^bits levels."""
        # The module around the adapter rounds its weights on the fly; parameters stay floats.
        body = self.over.build(site, generator=generator)
        return CodedCell(
            body, self.format, biases=self.biases, start=self.start, generator=generator
        )


CARD = Card(
    "bi",
    kind="adapter",
    config=BiAdapter,
    paper=Paper(
        "2307.16867",
        2023,
        "Revisiting the Parameter Efficiency of Adapters from the Perspective "
        "of Precision Redundancy",
    ),
    tags=frozenset({"folds"}),
    tiny={"over": Bottleneck(4, norm="none", activation="gelu")},
    summary="An adapter of one, two or four bits per weight, trained with its rounding.",
    family="few bits",
    names=("Bi-Adapter", "Bi-AdaptFormer", "1-bit", "1-bit adapter", "Binary adapter"),
)
