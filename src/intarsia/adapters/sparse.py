"""A sparse change of a weight, at fixed entries: the delta of LT-SFT (arXiv:2110.07560)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Cell, Method, Paper, Site
from ..core.errors import ConfigError, UnknownName
from ..core.schema import check, setting


@dataclass(frozen=True)
class Sparse(Method):
    """A sparse change of a linear layer, y = (W + D) x, where D has n entries at fixed places.

    Raises: ConfigError on a density outside 0 < d <= 1, or entries in another form.
    Source: the delta of LT-SFT, section 3. With random places it is SHiRA, which PEFT also has.
    Not for speed: every forward writes out D and multiplies with it, which doubles the layer's
    products. To train entries of a plain model, use `LtSft` without `adapt`. Merge for inference.
    """

    density: float = setting(
        0.02,
        "The share of a weight's entries that D has, at least one entry; the places are random.",
        above=0,
        most=1,
        fix="Try 0.02.",
    )
    entries: tuple[str, ...] = setting(
        (),
        'The number of entries of single sites, as "path=n", which goes before the density; '
        "their places are loaded with the weights, as `attach_delta` stores a delta of LT-SFT.",
    )
    roles: tuple[str, ...] = setting(
        ("qkv", "projection", "mlp_linear"), "The host's layers that are changed, see `Method`."
    )

    position = "parallel"

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "roles", tuple(self.roles))
        object.__setattr__(self, "entries", tuple(self.entries))
        self.counts()  # raises ConfigError for entries in another form

    def check_sites(self, paths: Sequence[str]) -> None:
        """Raise UnknownName if `entries` names a site that is not among `paths`."""
        for path in self.counts():
            if path not in paths:
                raise UnknownName("site in entries", path, paths)

    def counts(self) -> dict[str, int]:
        """Return how many trained entries each adapted layer in the setting `entries` has, by path.

        Raises: ConfigError for text that is not "path=n", or a repeated path.
        """
        counts: dict[str, int] = {}
        for text in self.entries:
            path, equals, count = text.rpartition("=")
            if not equals or not path or not count.isdecimal() or path in counts:
                want = "a site's path and a number, each path once"
                fix = "For example: entries=('blocks.0.mlp.fc1=40',)."
                raise ConfigError("entries", got=repr(text), want=want, fix=fix)
            counts[path] = int(count)
        return counts

    def build(self, site: Site, *, generator: torch.Generator) -> SparseCell:
        """Return the module that makes W + D of a layer's W: D is 0 but at drawn, trained entries.

        Raises: ConfigError for more entries than the layer has weights.
        """
        weights = site.outputs * site.reads
        count = self.counts().get(site.path, max(1, round(self.density * weights)))
        if count > weights:
            want = f"at most the {weights} of a {site.outputs} x {site.reads} weight"
            fix = "Lower the number, or attach the delta to the model it was made for."
            raise ConfigError(f"entries of {site.path!r}", got=count, want=want, fix=fix)
        # an empty index stands for all places, which need no storage
        if count == weights:
            index = torch.empty(0, dtype=torch.int64, device="cpu")
        else:
            order = torch.randperm(weights, generator=generator, device="cpu")
            index = order[:count].sort().values
        return SparseCell(site, index, torch.zeros(count))


class SparseCell(Cell):
    """D x, where D (outputs, reads) is zero except at `index`.  x: (..., reads) -> (..., outputs).

    index: (n,) flat places in D, int64, increasing; empty = all places, with outputs * reads
    values. values: (n,), trained. Both are in the cell's state.
    """

    index: Tensor

    def __init__(self, site: Site, index: Tensor, values: Tensor) -> None:
        super().__init__()
        self.shape = site.outputs, site.reads
        self.values = nn.Parameter(values)
        self.register_buffer("index", index.to(self.values.device))

    @property
    def full(self) -> bool:
        """True if all entries of D are trained."""
        return self.values.numel() == math.prod(self.shape)

    def places(self) -> Tensor:
        """Return the flat index, in the layer's weight, of each trained value, (n,) int64."""
        if self.full:
            return torch.arange(self.values.numel(), device=self.values.device)
        return self.index

    def delta(self) -> Tensor:
        """Return D (outputs, reads), with the trained values at their places and 0 elsewhere."""
        if self.full:
            return self.values.view(self.shape)
        flat = self.values.new_zeros(math.prod(self.shape))
        return flat.index_copy(0, self.index, self.values).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.cast(x), self.delta())


CARD = Card(
    "sparse",
    kind="adapter",
    config=Sparse,
    paper=Paper("2110.07560", 2021, "Composable Sparse Fine-Tuning for Cross-Lingual Transfer"),
    tags=frozenset({"linear", "folds", "zero_start"}),
    tiny={"density": 0.3},
    summary="A change of a few fixed entries of a linear layer.",
    family="sparse deltas",
    names=("Sparse fine-tuning",),
)
