"""MoS: low-rank adapters assembled from shards of a pool that layers share (arXiv:2410.00938)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Cell, Method, Paper, Site
from ..core.errors import ConfigError, ShapeError
from ..core.schema import check, setting
from .lora import Lora, LoraCell

PUBLISHED = 8  # the rank
LARGEST_SUGGESTION = 64  # the largest shards_per_vector that an error suggests


@dataclass(frozen=True)
class Mos(Method):
    """y = W x + (alpha / r) B A x, where A and B are assembled from pools that layers share.

    All L layers of one type (a name such as "q_proj", and a shape) share two pools, (n, d_in / l)
    and (n, d_out / l) with n = e l L. This is the number of parameters of LoRA with rank e. Each of
    a layer's r vectors is l shards in sequence. The shards are drawn once, at random.

    Raises: ConfigError on impossible settings, or settings that need more shards than the pool has;
    ShapeError for a width that l does not divide.
    Source: paper, section 3.  e = r = p is plain LoRA.
    Not for a single layer of a type, which cannot share: r cannot exceed e.
    """

    rank: int | None = setting(
        None,
        "The rank r of a layer's change, which costs no parameters; None = 8, or as many as a "
        "type with few layers has shards for.",
        least=1,
        fix="Try rank=8, e=2, l=4.",
        also=("r",),
    )
    equivalent_rank: int = setting(
        2, "The rank e of a LoRA with as many parameters.", least=1, fix="Try rank=8, e=2, l=4."
    )
    shards_per_vector: int = setting(
        4,
        "The shards l of each vector, a divisor of all widths.",
        least=1,
        fix="Try rank=8, e=2, l=4.",
    )
    private_rank: int = setting(
        1,
        "The vectors p, of a layer's r, with shards that only this layer uses.",
        least=0,
        fix="Try 1.",
    )
    dissociate: bool = setting(
        True, "Draw the shards of A and of B separately; otherwise both use the same rows."
    )
    alpha: float | None = setting(
        None,
        "The numerator of the scale alpha / r; None = r, a scale of 1.",
        also=("lora_alpha",),
    )
    dropout: float = setting(
        0.0, "The share of the inputs x that is zeroed in training.", least=0, below=1
    )
    roles: tuple[str, ...] = setting(
        ("qkv", "projection", "mlp_linear"), "The host's layers that are changed, as in `Lora`."
    )

    position = "parallel"

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "roles", tuple(self.roles))
        rank = PUBLISHED if self.rank is None else self.rank
        if self.private_rank > (smaller := min(rank, self.equivalent_rank)):
            want = f"0 ... {smaller}, the smaller rank"
            raise ConfigError("private_rank", got=self.private_rank, want=want, fix="Try 1.")

    @property
    def shares_state(self) -> bool:
        """True: the pools are one for all sites."""
        return True

    def shared_state(self, sites: Sequence[Site], *, generator: torch.Generator) -> Shards:
        """Return the trained short rows ("pools") from which layers of one type build A and B."""
        return Shards(self, sites, generator=generator)

    def build(
        self, site: Site, *, generator: torch.Generator, shared: nn.Module | None = None
    ) -> MosCell:
        """Return a layer's low-rank adapter on the rows of `shared`, or on rows of its own."""
        if isinstance(shared, Shards):
            return MosCell(self, site, shared, generator=generator)
        # no other layer shares: the cell registers, trains and saves pools of its own
        pools = self.shared_state([site], generator=generator)
        cell = MosCell(self, site, pools, generator=generator)
        cell.add_module("shared", pools)
        return cell


def kind(site: Site) -> str:
    """Return the type of a layer, its name and shape; layers of one type share a pool."""
    name = site.path.rpartition(".")[2] or "site"
    return f"{name}_{site.inputs}x{site.outputs}"


class Pool(nn.Module):
    """The shards of one type of layer.  a: (n, d_in / l), b: (n, d_out / l).

    There are e l L rows for A and for B: first the common ones, then the p l private ones of each
    layer. B is zero at first.
    Raises: ConfigError for a rank that needs more rows than there are.
    """

    def __init__(self, config: Mos, sites: Sequence[Site], *, generator: torch.Generator) -> None:
        super().__init__()
        shards_per_vector, first = config.shards_per_vector, sites[0]
        # rows of a pool: the common ones first, then each layer's private ones (section 3)
        shards = config.equivalent_rank * shards_per_vector * len(sites)
        self.private = config.private_rank * shards_per_vector  # rows of each layer
        self.common = shards - self.private * len(sites)
        self.layers = {site.path: layer for layer, site in enumerate(sites)}
        max_rank = config.private_rank + self.common // shards_per_vector
        # no rank given: the paper's, or the largest that the rows allow
        self.rank = min(PUBLISHED, max_rank) if config.rank is None else config.rank
        if self.rank > max_rank:
            name = f"rank in the {len(sites)} layers {kind(first)!r}"
            want = f"at most {max_rank}, so that no shard is used twice"
            fix = "Raise equivalent_rank, lower rank, or adapt more layers of this type."
            raise ConfigError(name, got=config.rank, want=want, fix=fix)
        self.a = nn.Parameter(torch.empty(shards, first.inputs // shards_per_vector))
        self.b = nn.Parameter(torch.zeros(shards, first.outputs // shards_per_vector))
        bound = first.inputs**-0.5  # Kaiming, with the inputs of a whole vector
        nn.init.uniform_(self.a, -bound, bound, generator=generator)

    def draw(
        self, path: str, rank: int, shards_per_vector: int, generator: torch.Generator
    ) -> Tensor:
        """Draw which rows of the pool a layer uses: common ones, each once, then its private ones.

        shards_per_vector: l, rows in each vector. Returns their indices, (r l,) int32.
        """
        common_count = rank * shards_per_vector - self.private
        common = torch.randperm(self.common, generator=generator, device="cpu")[:common_count]
        first = self.common + self.layers[path] * self.private
        private = torch.arange(first, first + self.private, device="cpu")
        return torch.cat([common, private]).int()


class Shards(nn.Module):
    """The pools of a model, by the type of layer."""

    def __init__(self, config: Mos, sites: Sequence[Site], *, generator: torch.Generator) -> None:
        """Make a pool of shared rows for each type of layer: name and shape."""
        super().__init__()
        _check_divisible(config.shards_per_vector, sites)
        kinds: dict[str, list[Site]] = {}
        for site in sites:
            kinds.setdefault(kind(site), []).append(site)
        self.pools = nn.ModuleDict(
            {name: Pool(config, members, generator=generator) for name, members in kinds.items()}
        )


def _check_divisible(shards_per_vector: int, sites: Sequence[Site]) -> None:
    """Raise ShapeError for a layer with a width that shards_per_vector does not divide."""
    common = math.gcd(*(width for site in sites for width in (site.inputs, site.outputs)))
    for site in sites:
        for width in (site.inputs, site.outputs):
            # suggest the values that divide every width, not this layer's alone
            if width % shards_per_vector:
                numbers = range(1, min(common, LARGEST_SUGGESTION) + 1)
                divisors = [number for number in numbers if common % number == 0]
                name = f"width of {site.path!r}"
                want = f"a multiple of {shards_per_vector} shards"
                fix = f"Values of shards_per_vector that divide every width: {divisors}."
                raise ShapeError(name, got=width, want=want, fix=fix)


class MosCell(Cell):
    """(alpha / r) B A x with A, B read from pools.  x: (..., d_in) -> (..., d_out).

    The cell only refers to the pools. The module that registers them as `shared` saves and trains
    them.
    """

    a: Tensor
    b: Tensor

    def __init__(
        self, config: Mos, site: Site, shared: Shards, *, generator: torch.Generator
    ) -> None:
        """Draw which rows of the shared pools make up A and B of this layer."""
        super().__init__()
        self.config = config
        self.path, self.inputs, self.outputs = site.path, site.inputs, site.outputs
        pool = shared.pools[kind(site)]
        assert isinstance(pool, Pool)
        self._pool = (pool,)  # a tuple: no second registration, and safe to load by assignment
        self.dropout = nn.Dropout(config.dropout)
        self.rank, rank, shards_per_vector = pool.rank, pool.rank, config.shards_per_vector
        self.scale = (rank if config.alpha is None else config.alpha) / rank
        # the r l shards of A, and for B the same or a draw of its own (`dissociate`)
        a_rows = pool.draw(site.path, rank, shards_per_vector, generator)
        b_rows = a_rows.clone()
        if config.dissociate:
            b_rows = pool.draw(site.path, rank, shards_per_vector, generator)
        # saved, so that a file does not depend on the random generator
        self.register_buffer("a", a_rows)
        self.register_buffer("b", b_rows)

    def sides(self) -> tuple[Tensor, Tensor]:
        """Return A (r, d_in) and the transpose of B (r, d_out), put together from shared rows.

        `pool.a` and `pool.b` are matrices of short rows, the shards; `self.a` and `self.b` are the
        indices of the rows that this layer uses.
        """
        (pool,) = self._pool
        shards = (F.embedding(i.to(p.device), p) for i, p in ((self.a, pool.a), (self.b, pool.b)))
        # l shards in sequence make one vector of length d_in or d_out
        a, b = (rows.view(self.rank, -1) for rows in shards)
        return a, b

    def forward(self, x: Tensor) -> Tensor:
        """Compute (alpha / r) B A x.  x: (..., d_in) -> (..., d_out)."""
        # a pool may lie on another device than this layer of the model
        a, b = (side.to(x.device) for side in self.sides())
        x = self.cast(x, like=a)
        return self.scale * F.linear(F.linear(self.dropout(x), a), b.T)

    def delta(self) -> Tensor:
        a, b = self.sides()
        return self.scale * (b.T @ a)

    def merged(self) -> LoraCell:
        """Return the plain LoRA of rank r that computes the same."""
        rank = self.rank
        settings = Lora(rank, self.scale * rank, self.config.dropout)
        site = Site(self.path, self.inputs, self.outputs)
        plain = LoraCell(settings, site, generator=torch.Generator())
        with torch.no_grad():
            # copies: the pools belong to other layers, too
            a, b = self.sides()
            plain.down.weight = nn.Parameter(a.clone())
            plain.up.weight = nn.Parameter(b.T.contiguous())
        return plain


CARD = Card(
    "mos",
    kind="adapter",
    config=Mos,
    paper=Paper(
        "2410.00938",
        2024,
        "MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards",
    ),
    tags=frozenset({"linear", "folds", "zero_start"}),
    tiny={"rank": 2, "equivalent_rank": 2, "shards_per_vector": 2},
    summary="Low-rank changes assembled from shards of a pool that layers share.",
    family="low rank",
    names=("Mixture of Shards",),
)
