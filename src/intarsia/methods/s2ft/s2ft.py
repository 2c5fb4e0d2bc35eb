"""Structured sparse fine-tuning: train dense slices of weights (S2FT, arXiv:2412.06289)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...core import Card, Method, Paper, Site
from ...core.errors import ConfigError, ShapeError, TargetError
from ...core.schema import check, setting
from .cell import S2ftCell
from .channels import choose_channels
from .spelling import read, side_of, span

SELECTIONS = ("random", "weight", "activation", "weight_activation", "gradient")
ORDERS = ("largest", "smallest")
ROLES = {"down": "mlp_linear", "up": "mlp_linear", "output": "projection", "value": "qkv"}
# family -> ends of paths; the longest match counts; None = S2FT does not train the layer
_ENDS = {
    "down": ("down_proj", "fc2", "output.dense"),
    "up": ("up_proj", "fc1", "intermediate.dense"),
    "output": ("o_proj", "out_proj", "proj", "attention.output.dense"),
    "value": ("v_proj", "value", "qkv"),
    None: ("gate_proj", "q_proj", "k_proj", "query", "key"),
}
FAMILIES = {end: family for family, ends in _ENDS.items() for end in ends}


@dataclass(frozen=True)
class S2ft(Method):
    """Structured sparse fine-tuning: y = W x + S x[c], or y[c] = (W x)[c] + S x (Yang et al. 2024).

    S is dense and starts at 0; c are the selected channels of a layer. Down and output projections
    train columns: S (d_out, c) acts on the inputs x[c]. Up and value projections train rows:
    S (c, d_in) adds to the outputs c. Only S has gradients and optimiser state. Columns keep only
    x[c] for the backward; rows keep x. Because a fraction counts over all layers, layers get
    different numbers of channels, or none. A layer with an unknown name gets the first fraction
    above 0.

    Raises: ConfigError for fractions outside 0 ... 1, or none above 0; UnknownName for a selection.
    Source: arXiv:2412.06289 and its release, with scripts that train down=0.03, or down=0.02 and
    output=0.052, without weight decay (it would act on S, not on W + S), by AdamW with betas (.9,
    .95) and a rate that falls linearly to 0 after 100 steps of warm-up. `fit` has betas (.9, .999)
    and a cosine, as for every method here; its `optimizer` and `lr_factor` take the published ones.
    Not when accuracy on the new task matters more than keeping the old one: LoRA of the same size
    fits the new task better.
    """

    down: float = setting(
        0.03,
        "The fraction of all MLPs' inner channels that the down-projections train.",
        least=0,
        most=1,
        fix="Try 0.03.",
    )
    output: float = setting(
        0.0,
        "The fraction of all attention heads that the output projections train.",
        least=0,
        most=1,
        fix="Try 0.03.",
    )
    up: float = setting(
        0.0,
        "The fraction of all MLPs' inner channels that the up-projections train.",
        least=0,
        most=1,
        fix="Try 0.03.",
    )
    value: float = setting(
        0.0,
        "The fraction of all attention heads, or of KV groups where queries share keys, that "
        "the value projections train.",
        least=0,
        most=1,
        fix="Try 0.03.",
    )
    selection: str = setting(
        "random",
        'The choice of the channels: "random", by a seed; or by a score of the slice: "weight", '
        'its norm; "activation", the root mean square of its channel; "weight_activation", '
        'their product; "gradient", the norm of its gradient. The last three need data: '
        "`intarsia.methods.choose_channels`.",
        choices=SELECTIONS,
    )
    order: str = setting(
        "largest",
        'The slices that are trained: those with the "largest" or the "smallest" scores.',
        choices=ORDERS,
    )
    channels: tuple[tuple[str, str], ...] = setting(
        (),
        'The selected channels, as (path, "3,7,9-12") pairs, filled in by '
        "`intarsia.methods.choose_channels` and `adapt`; a layer without a pair (an "
        "`IntarsiaConfig` given to PEFT directly) draws single channels.",
    )

    position = "parallel"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be; `channels` are (layer's path, "3,7,9-12") pairs."""
        check(self)
        if not self.shares:
            got = "0 for each of down, output, up and value"
            raise ConfigError("shares", got=got, want="one above 0", fix="Try down=0.03.")
        pairs = tuple((str(path), str(text)) for path, text in self.channels)
        for _, text in pairs:
            read(text)  # refuses a text that is no list of channels
        object.__setattr__(self, "channels", pairs)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of layers that have a share."""
        return tuple(dict.fromkeys(ROLES[name] for name in self.shares))

    @property
    def shares(self) -> tuple[str, ...]:
        """The families with a share above 0."""
        return tuple(name for name in ROLES if getattr(self, name))

    def family(self, path: str) -> str | None:
        """Return a layer's family, "down", "up", "output" or "value"; None if it is not trained.

        path: of the layer; its end decides. An unknown name gets the first family with a share.
        """
        # The longest match decides: "attention.output.dense" is no "output.dense".
        ends = [end for end in FAMILIES if f".{path}".endswith(f".{end}")]
        name = FAMILIES[max(ends, key=len)] if ends else self.shares[0]
        return name if name is None or getattr(self, name) else None

    @property
    def paths(self) -> tuple[str, ...]:
        """The layers in which channels are chosen."""
        return tuple(path for path, _ in self.channels)

    def for_host(
        self,
        host: nn.Module,
        batches: Iterable[Any] = (),
        *,
        targets: Sequence[str] | str | None = None,
        layers: Sequence[int] | None = None,
        seed: int = 0,
    ) -> S2ft:
        """Return these settings with the channels to train chosen; unchanged if they have some.

        host: the model; batches: data for scores by activations or gradients; targets: names of
          layers, None = by role; layers: numbers of blocks, None = all; seed: of the random
          selection. See `choose_channels`.
        """
        if self.channels:
            return self
        return choose_channels(host, self, batches, targets=targets, layers=layers, seed=seed)

    def build(self, site: Site, *, generator: torch.Generator) -> S2ftCell:
        """Build the cell of a layer: the trained slice S on the layer's selected channels.

        site: the host module, with its path and widths; generator: draws channels if none were
          chosen.
        Raises: TargetError for a layer without a share.
        """
        family = self.family(site.path)
        if family is None:
            got = "a layer with no share of channels in these settings"
            want = "a down, up, output or value projection whose share is above 0"
            fix = "Target other layers, or set its share: S2ft(up=0.03)."
            raise TargetError(f"target {site.path!r}", got=got, want=want, fix=fix)
        return S2ftCell(side_of(family), site, self._channel_numbers(site, family, generator))

    def _channel_numbers(self, site: Site, family: str, generator: torch.Generator) -> list[int]:
        """Return a layer's channel numbers, drawn at random if none were chosen."""
        first, width = span(site, family)
        if (text := dict(self.channels).get(site.path)) is not None:
            ids = read(text)
            if not first <= ids[0] <= ids[-1] < first + width:
                got, want = f"{ids[0]} ... {ids[-1]}", f"{first} ... {first + width - 1}"
                fix = "Choose them on this model: intarsia.methods.choose_channels."
                raise ShapeError(f"channels of {site.path!r}", got=got, want=want, fix=fix)
            return ids
        # without chosen channels: a random share of them, rounded
        if not (count := int(getattr(self, family) * width + 0.5)):
            got = f"{getattr(self, family)} of {width} channels, which selects nothing"
            want = f"at least {0.5 / width:.2g}, one of them"
            raise ConfigError(family, got=got, want=want, fix="Raise the share.")
        return (first + torch.randperm(width, generator=generator)[:count].sort().values).tolist()


CARD = Card(
    "s2ft",
    kind="adapter",
    config=S2ft,
    paper=Paper(
        "2412.06289",
        2024,
        "S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
    ),
    tags=frozenset({"linear", "folds", "zero_start"}),
    tiny={"down": 0.5},
    summary="Dense slices of the weights: a few channels and heads.",
    family="sparse deltas",
    names=("Structured sparse fine-tuning",),
)
