"""Bi-Adapter: adapters of one bit per weight, trained as such (arXiv:2307.16867)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..adapters import Bottleneck
from ..adapters.coded import CodedCell
from ..core import Card, Method, Paper, Site
from ..core.checks import above
from ..formats import Gaussian
from ..mixtures.over import OverMethod

FLOAT = 32  # bits at which nothing is coded


@dataclass(frozen=True)
class BiAdapter(OverMethod):
    """Any adapter with its weight matrices W replaced by q(z) std(W) + mean(W) while it trains.

    z = (W - mean) / (std + 1e-5); q rounds to the nearest of 2^b levels made for N(0, 1), and the
    gradient passes through it. Bits are better spent on width than on floats.

    over: the adapter, such as Bottleneck or Lora. The paper's sits beside the MLP, reads the
      residual stream before its LayerNorm, with dropout 0.1 and a scale chosen for each data set;
      the default reads what the MLP reads and has AdaptFormer's scale, 0.1.
    bits: b, 1 to 8; 32 = the float adapter.
    codebook: "median" (the paper) or "lloyd", see `intarsia.formats.Gaussian`.
    biases: keep those of the linear maps, in float; the paper has none.
    start: sigma of the normal, cut at 2 sigma, from which a weight that would start at zero (the
      up-projection) starts: a constant has no spread to code.

    Raises: ConfigError on a setting that cannot be, or a cell without weight matrices.
    Source: paper, section 3; `intarsia.hosts.out.pack` writes the small file.
    Not for adapters that must add nothing at the start; not for speed: the forward is a float one.
    """

    over: Method = field(default_factory=lambda: Bottleneck(32, norm="none"))
    bits: int = 1
    codebook: str = "median"
    biases: bool = False
    start: float = 1e-3

    def __post_init__(self) -> None:
        """Check the settings: an inner adapter for each host module, `start` above 0, known bits.

        Raises: ConfigError.
        """
        self.refuse_shared()
        above("start", self.start, 0, "Try 1e-3.")
        if self.bits != FLOAT:
            Gaussian(self.bits, self.codebook)  # says what else can be wrong

    @property
    def format(self) -> Gaussian | None:
        """The format of a stored weight matrix; None = floats as they are."""
        return None if self.bits == FLOAT else Gaussian(self.bits, self.codebook)

    def build(self, site: Site, *, generator: torch.Generator) -> CodedCell:
        """Build the inner adapter of a host module, with its weights rounded in each forward.

        site: the host module and its widths; generator: the source of first weights. The rounding
          is to 2^b levels, b = `bits`; the parameters themselves stay floats.
        """
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
