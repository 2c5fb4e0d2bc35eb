"""A few trained Fourier coefficients of a weight's change, FourierFT (arXiv:2405.03003)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Cell, Paper, Site
from ..core.checks import at_least
from ..core.errors import ConfigError


@dataclass(frozen=True)
class Fourier:
    """y = (W + alpha Re(IDFT2(C))) x, with C zero but at n trained entries at fixed places.

    entries: n, for each layer; alpha: the scale; std: of the first coefficients, 0 leaves the host
    as it is; seed: of the places, which are then the same in
    all layers of one shape and are not stored; roles: which of the host's layers, see `Method`
    (the paper's are query and value, "qv", where they are layers of their own).
    IDFT2 divides by the number of weights.

    Raises: ConfigError on less than one entry; when it is built, on more than a layer has weights.
    Source: paper, section 3; places as PEFT draws them from its `random_loc_seed`.
    Not for speed: each forward transforms a matrix as large as the layer's. Fold for inference.
    """

    entries: int = 1000
    alpha: float = 300.0
    std: float = 1.0
    seed: int = 777
    roles: tuple[str, ...] = ("qkv",)

    position = "parallel"

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", tuple(self.roles))
        at_least("entries", self.entries, 1, fix="The paper's is 1000.")
        at_least("std", self.std, 0)

    def build(self, site: Site, *, generator: torch.Generator) -> FourierCell:
        return FourierCell(self, site, generator=generator)


class FourierCell(Cell):
    """alpha Re(IDFT2(C)) x.  x: (..., reads) -> (..., outputs).

    coefficients: (n,), N(0, std^2) at first.  place: (n,) int64, flat places in C (outputs, reads).
    """

    place: Tensor

    def __init__(self, config: Fourier, site: Site, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.shape = config, (site.outputs, site.reads)
        weights = site.outputs * site.reads
        if config.entries > weights:
            want = f"at most the {weights} of a {site.outputs} x {site.reads} weight"
            fix = "Lower the number, or leave this layer out."
            raise ConfigError(f"entries of {site.path!r}", got=config.entries, want=want, fix=fix)
        order = torch.randperm(weights, generator=torch.Generator().manual_seed(config.seed))
        self.register_buffer("place", order[: config.entries], persistent=False)
        self.coefficients = nn.Parameter(
            config.std * torch.randn(config.entries, generator=generator)
        )

    def delta(self) -> Tensor:
        # half precision has no Fourier transform
        values = self.coefficients.to(torch.promote_types(self.coefficients.dtype, torch.float32))
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        spectrum = flat.index_copy(0, self.place, values).view(self.shape)  # C, eq. 2
        change = self.config.alpha * torch.fft.ifft2(spectrum).real  # eq. 3 and 4
        return change.to(self.coefficients.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.cast(x), self.delta())


CARD = Card(
    "fourier",
    kind="adapter",
    config=Fourier,
    paper=Paper(
        "2405.03003", 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform"
    ),
    tags=frozenset({"linear", "folds"}),
    tiny={"entries": 12},
    summary="A few trained Fourier coefficients, at fixed places, of a linear layer's change.",
    family="sparse deltas",
    names=("FourierFT",),
)
