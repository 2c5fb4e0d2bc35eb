"""Low-rank adaptation (arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Card, Cell, Method, Paper, Site
from ..core.errors import TargetError
from ..core.schema import check, setting

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lora(Method):
    """Low-rank adaptation, y = W x + (alpha / r) B A x (Hu et al. 2021, section 4.1).

    Raises: ConfigError on a rank below 1 or a dropout outside 0 <= p < 1.
    Not with a rank above the layer's width, which only wastes memory.
    """

    rank: int = setting(
        16,
        "The rank r of the change B A.",
        least=1,
        fix="Try 8 or 16.",
        also=("r", "lora_r", "lora_rank"),
    )
    alpha: float | None = setting(
        None,
        "The numerator of the scale alpha / r; None = r, a scale of 1.",
        also=("lora_alpha",),
    )
    dropout: float = setting(
        0.0,
        "The share of the inputs x that is zeroed in training.",
        least=0,
        below=1,
        also=("lora_dropout",),
    )
    roles: tuple[str, ...] = setting(
        ("qkv",),
        'The host\'s layers that are changed: "qkv" (fused, or query, key and value), "qv" '
        "(query and value, also inside a fused layer, with separate A and B as in the paper), "
        '"projection", "mlp_linear".',
    )

    position = "parallel"

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "roles", tuple(self.roles))

    def build(self, site: Site, *, generator: torch.Generator) -> LoraCell:
        """Return the cell for `site`; a fused qkv layer with the role "qv" gets two LoRAs."""
        fused = site.path.rpartition(".")[2] == "qkv"
        cell = QueryValueCell if fused and "qv" in self.roles else LoraCell
        return cell(self, site, generator=generator)


class LoraCell(Cell):
    """(alpha / r) B A x.  x: (..., d_in) -> (..., d_out)."""

    def __init__(self, config: Lora, site: Site, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        rows, columns = self.sizes(config.rank, site.outputs)
        with torch.random.fork_rng(devices=[]):  # nn.Linear's initialisation is overwritten below
            self.down = nn.Linear(site.reads, rows, bias=False)  # A
            self.up = nn.Linear(config.rank, columns, bias=False)  # B
        self.dropout = nn.Dropout(config.dropout)
        self.scale = (config.rank if config.alpha is None else config.alpha) / config.rank
        self.zero_sides = frozenset({"up"})
        # A as Kaiming's, B zero: the model is unchanged at first
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(self.up.weight)

    def sizes(self, rank: int, outputs: int) -> tuple[int, int]:
        """Return the number of rows of A and of B.

        rank: r. outputs: width of the adapted layer's output.
        """
        return rank, outputs

    def compute(self, x: Tensor, down: Linear, up: Linear) -> Tensor:
        """Return (alpha / r) up(down(x)), with these two projections instead of A and B.

        x: (..., d_in). down: any map d_in -> r; up: any map r -> d_out. A mixture of LoRAs passes
        the projections of an expert here. Returns (..., d_out).
        """
        return up(self.scale * down(self.dropout(x)))  # eq. 3; scaling the r values is cheapest

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.cast(x), self.down, self.up)

    def weighted(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute weight_n cell(x_n).  x: (N, d_in), weight: (N,) -> (N, d_out)."""
        down = self.down  # weighting its r outputs is cheapest
        return self.compute(self.cast(x), lambda x: down(x) * weight[:, None], self.up)

    def delta(self) -> Tensor:
        return self.scale * (self.up.weight @ self.down.weight)


class QueryValueCell(LoraCell):
    """Two LoRAs in a fused qkv layer, for the queries and for the values; keys do not change.

    A is A_q stacked on A_v (2r, d), B is B_q stacked on B_v (2d, r).  x: (..., d) -> (..., 3d).
    Raises: TargetError for a layer with outputs that are not three equal parts.
    """

    def sizes(self, rank: int, outputs: int) -> tuple[int, int]:
        """Return the number of rows of A, 2 r (A_q over A_v), and of B, 2 d (B_q over B_v).

        Raises: TargetError if 3 does not divide `outputs`, 3 d.
        """
        if outputs % 3:
            name = "role 'qv' in a fused qkv layer"
            got, want = f"{outputs} outputs", "equally many queries, keys and values"
            raise TargetError(name, got=got, want=want, fix="Use roles=('qkv',).")
        return 2 * rank, 2 * outputs // 3

    def compute(self, x: Tensor, down: Linear, up: Linear) -> Tensor:
        """Return the change of queries, keys (zero) and values for x, with these two projections.

        x: (..., d_in); returns (..., 3 d). down: a map d_in -> 2 r with the outputs of A_q and A_v
        in sequence; up: a map r -> 2 d, of B_q and B_v.
        """
        rank = self.config.rank
        # A_q x and A_v x both pass through all of B: half of the result is not needed, but `up`
        # can then be any map, and with a small r the extra work is small
        y = up((self.scale * down(self.dropout(x))).unflatten(-1, (2, rank)))  # (..., 2, 2d)
        # (2 inputs, 2 halves of B): keep B_q A_q x and B_v A_v x, the diagonal
        query, value = y.unflatten(-1, (2, y.shape[-1] // 2)).diagonal(dim1=-3, dim2=-2).unbind(-1)
        return torch.cat([query, torch.zeros_like(query), value], -1)

    def delta(self) -> Tensor:
        """Return the change of the fused weight, (3 d, d_in); the rows of the keys are zero."""
        rank = self.config.rank
        # A_q and A_v are stacked, and so are B_q and B_v: both products in one batched call
        up, down = self.up.weight.unflatten(0, (2, -1)), self.down.weight.unflatten(0, (2, rank))
        # (2, d, d_in): the change of the queries' rows and of the values'
        query, value = self.scale * torch.bmm(up, down)
        return torch.cat([query, torch.zeros_like(query), value])


CARD = Card(
    "lora",
    kind="adapter",
    config=Lora,
    paper=Paper("2106.09685", 2021, "LoRA: Low-Rank Adaptation of Large Language Models"),
    tags=frozenset({"linear", "folds", "zero_start"}),
    tiny={"rank": 2},
    summary="A low-rank change of a linear layer.",
    family="low rank",
    names=("Low-rank adaptation",),
)
