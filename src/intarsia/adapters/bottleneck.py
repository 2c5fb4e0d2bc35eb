"""Bottleneck adapters: one cell, placed as in Houlsby (arXiv:1902.00751), Pfeiffer
(arXiv:2005.00247), AdaptFormer (arXiv:2205.13535) or Adapter+ (arXiv:2406.06820)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Cell, Method, Paper, Site
from ..core.cell import Units
from ..core.errors import FoldError, TargetError
from ..core.schema import check, setting

Linear = Callable[[Tensor], Tensor]

ACTIVATIONS = MappingProxyType({"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU})
NORMS = ("none", "layer", "rms", "residual")
SCALES = ("layer", "channel")


@dataclass(frozen=True)
class Published:
    """The place of a published adapter, and its published settings."""

    roles: tuple[str, ...]
    position: str
    activation: str
    norm: str
    scale: float | str
    init: str = "zero"


PLACEMENTS = MappingProxyType(
    {
        "adaptformer": Published(("mlp",), "parallel", "relu", "residual", 0.1),
        "pfeiffer": Published(("mlp",), "sequential", "relu", "none", 1.0),
        "houlsby": Published(("attention", "mlp"), "sequential", "gelu", "none", 1.0, "houlsby"),
        "adapter+": Published(("block",), "sequential", "gelu", "none", "channel", "houlsby"),
    }
)


@dataclass(frozen=True)
class Bottleneck(Method):
    """A bottleneck adapter, s * up(act(down(norm(x)))).

    A setting that is None is as published for the placement.

    Raises: ConfigError on any other setting.
    Source: AdaptFormer (arXiv:2205.13535), Pfeiffer (arXiv:2005.00247), Houlsby (arXiv:1902.00751),
    Adapter+ (arXiv:2406.06820).
    Not for merging into weights: the activation makes it non-linear; `fold` can widen an MLP.
    """

    bottleneck: int = setting(
        64, "The width r inside the adapter, in hidden units.", least=1, fix="Try 16."
    )
    placement: str | None = setting(
        None,
        'The place of the adapter: "adaptformer", parallel to the MLP; "pfeiffer", after the '
        'MLP, inside its branch; "houlsby", after attention and after the MLP, inside their '
        'branches; "adapter+", after the whole block; None = "adaptformer", or "pfeiffer" where '
        "the MLP is no module of its own (BERT).",
        choices=tuple(PLACEMENTS),
    )
    activation: str | None = setting(
        None,
        'The function act between the projections, "gelu", "relu" or "silu"; None = as '
        "published for the placement.",
        choices=tuple(ACTIVATIONS),
    )
    norm: str | None = setting(
        None,
        'The normalisation of the input: "none"; "layer" or "rms", a LayerNorm or RMSNorm of '
        'the cell; "residual", a LayerNorm of the residual stream, computed from the output of '
        "the host's LayerNorm before the site; None = as published, and where no LayerNorm "
        "feeds the site a norm of the host's own kind.",
        choices=tuple(NORMS),
    )
    scale: float | str | None = setting(
        None,
        'The factor s: a number, "layer" (one learned number) or "channel" (one for each '
        "output, learned); None = as published for the placement.",
        choices=tuple(SCALES),
    )
    init: str | None = setting(
        None,
        'The first weights: "zero" (Kaiming down, zero up) or "houlsby" (both normal, sigma '
        "0.01, cut at 2 sigma); None = as published for the placement.",
        choices=("zero", "houlsby"),
    )
    dropout: float = setting(
        0.0, "The share of the bottleneck's units that is zeroed in training.", least=0, below=1
    )

    def __post_init__(self) -> None:
        check(self)

    def resolved(self, name: str) -> str | float:
        """Return the value of a setting; where it is None, the one published for the placement.

        name: "activation", "norm", "scale" or "init".
        """
        value = getattr(self, name)
        return getattr(self.published, name) if value is None else value

    def norm_at(self, site: Site) -> str:
        """Return the kind of norm (one of NORMS) that the adapter has at `site`.

        site: the host module, and site.norm the LayerNorm that feeds it, or None. Where the
        settings leave the norm to the placement, and no LayerNorm feeds the site, it is of the kind
        of the host's own.
        """
        norm = str(self.resolved("norm"))
        by_host = self.norm is None and norm == "residual" and site.norm is None
        return site.norms if by_host else norm

    @property
    def published(self) -> Published:
        return PLACEMENTS[self.placement or "adaptformer"]

    @property
    def elsewhere(self) -> Bottleneck | None:
        """The settings for a host without modules for its MLPs; None if `placement` was given."""
        return replace(self, placement="pfeiffer") if self.placement is None else None

    @property
    def roles(self) -> tuple[str, ...]:
        return self.published.roles

    @property
    def position(self) -> str:
        return self.published.position

    def build(self, site: Site, *, generator: torch.Generator) -> BottleneckCell:
        return BottleneckCell(self, site, generator=generator)


class ResidualNorm(nn.Module):
    """LayerNorm of the residual stream h, computed from the host's LayerNorm of h.

    The input is x = n(h) * gamma_f + beta_f, where n(h) is the standardised h. Therefore
    LN(h) = (x - beta_f) / gamma_f * gamma + beta is an affine map of x. It equals a second
    LayerNorm of h with the host's eps.
    Raises: TargetError if no LayerNorm feeds the site, or a gamma_f is 0.
    """

    host_weight: Tensor
    host_bias: Tensor

    def __init__(self, site: Site) -> None:
        """Copy the host's gamma_f and beta_f as constants; begin with gamma = 1 and beta = 0."""
        super().__init__()
        name, fix = f"norm='residual' at {site.path!r}", "Use norm='layer' or norm='none'."
        if site.norm is None:
            got = "no LayerNorm that feeds the site"
            raise TargetError(name, got=got, want="a pre-norm block", fix=fix)
        # gamma_f and beta_f, (d,) each, of the LayerNorm before the site
        weight, bias = (t.detach().clone() for t in site.norm)
        # x * 1 / gamma_f recovers the standardised stream, which a zero gain has lost
        if not weight.is_meta and bool((weight == 0).any()):
            got = f"{int((weight == 0).sum())} zero gains in the host's LayerNorm"
            want = "none: they lose the residual stream"
            raise TargetError(name, got=got, want=want, fix=fix)
        self.register_buffer("host_weight", weight)
        self.register_buffer("host_bias", bias)
        self.weight = nn.Parameter(torch.ones_like(weight, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros_like(bias, dtype=torch.float32))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return gain g and shift b, (d,) each, with forward(x) = x * g + b."""
        # LN(h) = gamma * n(h) + beta, where n(h) = (x - beta_f) / gamma_f by the host's LayerNorm
        gain = self.weight / self.host_weight
        return gain, self.bias - gain * self.host_bias

    def forward(self, x: Tensor) -> Tensor:
        gain, shift = self.affine()
        return torch.addcmul(shift.to(x.dtype), x, gain.to(x.dtype))


class BottleneckCell(Cell):
    """s * up(act(down(norm(x)))).  x: (..., d_in) -> (..., d_out)."""

    def __init__(self, config: Bottleneck, site: Site, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        width = site.reads
        with torch.random.fork_rng(devices=[]):  # `_reset` overwrites nn.Linear's initialisation
            self.down = nn.Linear(width, config.bottleneck)
            self.up = nn.Linear(config.bottleneck, site.outputs)
        self.norm = {
            "none": lambda: nn.Identity(),
            "layer": lambda: nn.LayerNorm(width, eps=1e-6),
            "rms": lambda: nn.RMSNorm(width, eps=1e-6),
            "residual": lambda: ResidualNorm(site),
        }[config.norm_at(site)]()
        self.act = ACTIVATIONS[str(config.resolved("activation"))]()
        self.dropout = nn.Dropout(config.dropout)
        scale = config.resolved("scale")
        self.scale: float | nn.Parameter
        # a learned scale, one number or one for each output; else a constant
        if isinstance(scale, str):
            self.scale = nn.Parameter(torch.ones(site.outputs if scale == "channel" else 1))
        else:
            self.scale = float(scale)
        init = str(config.resolved("init"))
        # names of the maps that are zero at the start: the model is then unchanged
        self.zero_sides = frozenset({"up"}) if init == "zero" else frozenset[str]()
        self._reset(init, generator)

    def _reset(self, init: str, generator: torch.Generator) -> None:
        """Draw the weights from `generator`; all biases become 0."""
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)
        if init == "houlsby":
            for layer in (self.down, self.up):
                nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02, generator=generator)
        else:
            nn.init.kaiming_uniform_(self.down.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(self.up.weight)

    def compute(self, x: Tensor, down: Linear, up: Linear) -> Tensor:
        """Return the adapter's output for x, with these two projections instead of its own.

        x: (..., d_in). down: any map d_in -> r; up: any map r -> d_out. A mixture of adapters
        passes the projections of an expert here. Returns (..., d_out).
        """
        return self.scale * up(self.dropout(self.act(self._normed(x, down))))

    def _normed(self, x: Tensor, down: Linear) -> Tensor:
        """Return down(norm(x)).  x: (..., d_in) -> (..., r)."""
        # an affine map of x is folded into down's small weight: faster than a norm of each token,
        # and the backward pass keeps no second copy of x
        if isinstance(self.norm, ResidualNorm) and type(down) is nn.Linear:
            gain, shift = self.norm.affine()
            # W (x * g + b) + c = (W diag(g)) x + (W b + c)
            bias = down.weight @ shift.to(down.weight.dtype)
            bias = bias if down.bias is None else down.bias + bias
            weight = (down.weight * gain).to(down.weight.dtype)
            return F.linear(x, weight, bias)
        return down(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.cast(x), self.down, self.up)

    def units(self) -> Units:
        """Return the adapter as plain hidden units, which can be appended to the host's MLP.

        With Wd, bd and Wu, bu the weights and biases of down and up, s the scale, and the norm an
        affine map x -> g x + b, the units have input weights Wd diag(g), biases Wd b + bd, output
        weights s Wu, and the constant s bu is added to the MLP's output. norm="residual" recovers
        the residual stream from the output of the host's LayerNorm.
        Raises: FoldError for a norm that is no affine map of its input, or cannot be inverted.
        """
        down, up = self.down.weight, self.up.weight
        gain, shift = torch.ones_like(down[0]), torch.zeros_like(down[0])
        if isinstance(self.norm, ResidualNorm):
            gain, shift = self.norm.affine()
        elif not isinstance(self.norm, nn.Identity):
            got = f"a cell that normalises its input ({type(self.norm).__name__})"
            want = "norm='none' or norm='residual', which are affine maps of it"
            raise FoldError("fold", got=got, want=want, fix="Keep the adapter attached.")
        # a gain of 0 in the host's LayerNorm makes the residual norm infinite there
        if not (torch.isfinite(gain).all() and torch.isfinite(shift).all()):
            zeros = int((gain.isinf() | gain.isnan()).sum())
            got = f"{zeros} zero gains in the host's LayerNorm, or infinite ones"
            want = "none: the residual stream cannot be recovered there"
            raise FoldError("fold", got=got, want=want, fix="Keep the adapter attached.")
        scale = torch.as_tensor(self.scale, dtype=up.dtype).reshape(-1, 1)  # (1 | out, 1)
        # a `CodedCell` takes the biases away
        inner, outer = (0 if side.bias is None else side.bias for side in (self.down, self.up))
        bias, outside = down @ shift + inner, up.new_zeros(len(up)) + scale[:, 0] * outer
        return Units(down * gain, bias, self.act, scale * up, outside)


CARD = Card(
    "bottleneck",
    kind="adapter",
    config=Bottleneck,
    paper=Paper(
        "2205.13535",
        2022,
        "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
    ),
    tags=frozenset({"folds", "zero_start"}),
    tiny={"bottleneck": 4, "activation": "gelu"},
    summary="One small MLP next to or behind a host's module.",
    family="adapters",
    names=("AdaptFormer", "Bottleneck adapter"),
)
