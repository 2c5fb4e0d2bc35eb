"""A few trained Fourier coefficients of a weight's change, FourierFT (arXiv:2405.03003)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Cell, Method, Paper, Site
from ..core.errors import ConfigError
from ..core.schema import check, setting

PUBLISHED, ALPHA = 1000, 300.0  # entries of a layer


@dataclass(frozen=True)
class Fourier(Method):
    """y = (W + alpha Re(IDFT2(C))) x, with C zero but at n trained entries at fixed places.

    IDFT2 divides by the number of weights.

    Raises: ConfigError on less than one entry; when it is built, on more than a layer has weights.
    Source: paper, section 3; places as PEFT draws them from its `random_loc_seed`.
    Not for speed: each forward transforms a matrix as large as the layer's. Fold for inference.
    """

    entries: int | None = setting(
        None,
        "The trained coefficients n of each layer; None = 1,000, or all weights of a smaller "
        "layer.",
        least=1,
        fix=f"The paper's is {PUBLISHED}.",
    )
    alpha: float | None = setting(
        None,
        "The scale of the change; None = 300, or less where the first change would be larger "
        "than the first weights of a Linear.",
    )
    std: float = setting(
        1.0,
        "The standard deviation of the first coefficients; 0 leaves the host as it is.",
        least=0,
    )
    seed: int = setting(
        777,
        "The seed of the places, which are the same in all layers of one shape and are not stored.",
    )
    roles: tuple[str, ...] = setting(
        ("qkv",),
        "The host's layers that are changed, see `Method`; the paper's are query and value, "
        '"qv", where they are layers of their own.',
    )

    position = "parallel"

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "roles", tuple(self.roles))

    def build(self, site: Site, *, generator: torch.Generator) -> FourierCell:
        return FourierCell(self, site, generator=generator)


class FourierCell(Cell):
    """alpha Re(IDFT2(C)) x.  x: (..., reads) -> (..., outputs).

    coefficients: (n,), N(0, std^2) at first.  place: (n,) int64, flat places in C (outputs, reads).
    Raises: ConfigError for more coefficients than the layer has weights.
    """

    place: Tensor

    def __init__(self, config: Fourier, site: Site, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.shape = config, (site.outputs, site.reads)
        weights = site.outputs * site.reads
        entries = min(PUBLISHED, weights) if config.entries is None else config.entries
        if entries > weights:
            want = f"at most the {weights} of a {site.outputs} x {site.reads} weight"
            fix = "Lower the number, or leave this layer out."
            raise ConfigError(f"entries of {site.path!r}", got=entries, want=want, fix=fix)
        # scale the first change down where it would exceed nn.Linear's initial weights
        first = config.std * math.sqrt(entries / 2 * 3 * site.reads) / weights  # at alpha = 1
        self.alpha = min(ALPHA, 1 / max(first, 1e-9)) if config.alpha is None else config.alpha
        # the seed alone gives the places, so that they need not be stored
        order = torch.randperm(weights, generator=torch.Generator().manual_seed(config.seed))
        self.register_buffer("place", order[:entries], persistent=False)
        self.coefficients = nn.Parameter(config.std * torch.randn(entries, generator=generator))

    def delta(self) -> Tensor:
        """Return the change of the layer's weight, alpha Re(IDFT2(C)), (outputs, reads).

        C is zero but at `place`, where it has the trained coefficients; IDFT2 is the inverse
        discrete Fourier transform over both axes.
        """
        # half precision has no Fourier transform
        values = self.coefficients.to(torch.promote_types(self.coefficients.dtype, torch.float32))
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        spectrum = flat.index_copy(0, self.place, values).view(self.shape)  # C, eq. 2
        change = self.alpha * torch.fft.ifft2(spectrum).real  # eq. 3 and 4
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
