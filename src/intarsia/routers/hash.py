"""Hash layers: a token's experts are a hash of its id (arXiv:2106.04426)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper, Routing
from ..core.errors import ConfigError, ShapeError
from ..core.schema import check, setting
from ..gating.gate import check_width, keep_pairs
from ..gating.router import Router, check_counts
from ..gating.settings import ACTIVE, EXPERTS

KINDS = ("id", "row")
# the finaliser of splitmix64; torch shifts int64 with the sign, hence the masks
ROUNDS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1))


@dataclass(frozen=True)
class Hash:
    """The k experts of largest hash(id, expert), for each token, with weight 1 / k.

    A fixed random map (the paper's random hash); an id has the same experts in every batch.

    Not for experts that should go by content: an id has the same ones in every text.
    Raises: ConfigError for a setting out of range; in a forward, ConfigError for ids that are
    missing, ShapeError for ids that do not fit.
    Source: arXiv:2106.04426.
    """

    experts: int = setting(8, EXPERTS)
    active: int = setting(1, ACTIVE)
    by: str = setting(
        "id",
        'The id that is hashed: "id", a whole number for each token or each sample, `input_ids` '
        'or those given to `set_ids`; "row", the bits of the input row, with which equal rows '
        "have equal experts, for layers that read raw inputs or embeddings: in later layers the "
        "last bits of a row change with every step.",
        choices=KINDS,
    )

    def __post_init__(self) -> None:
        check(self)
        check_counts(self.experts, self.active)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> HashRouter:
        return HashRouter(self, width, generator=generator)


class HashRouter(Router):
    """The router of `Hash`.  x: (..., width) -> Routing of shape (rows, E), k experts a row.

    salt: (E,), factors: (width,) where rows are hashed, int64, both in the checkpoint.
    Ids are the context's: `ids`, (B, T), one for each token, or (B,), one for each sample; without
    them the forward's `input_ids`.
    """

    salt: Tensor
    factors: Tensor
    by_expert = ("salt",)
    normalised = equal_counts = True

    def __init__(
        self, config: Hash, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config.experts)
        self.config = config
        self.register_buffer("salt", _numbers(config.experts, generator))
        if config.by == "row":
            # an odd factor loses no bit of the number it multiplies
            self.register_buffer("factors", _numbers(width, generator) | 1)

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Give each token the k experts with the largest hash of (token id, expert)."""
        ids = self._row_ids(rows) if self.config.by == "row" else self._token_ids(len(rows))
        ids = ids.to(rows.device)
        # one score per token and expert; the k largest are the token's experts
        score = mixed(ids[:, None] + self.salt)  # (N, E)
        index = score.topk(self.config.active).indices
        weight = rows.new_full(index.shape, 1 / self.config.active)
        routing = Routing.from_topk(index, weight, self.experts)
        return routing if valid is None else keep_pairs(routing, valid[routing.token])

    def _row_ids(self, rows: Tensor) -> Tensor:
        """Return an id for each row, made of its bits: equal rows have equal ids, (N,) int64."""
        check_width(rows, len(self.factors))
        x = rows.detach() + 0.0  # -0 + 0 is 0
        if x.dtype == torch.float64:
            bits = x.view(torch.int64)
            bits = bits ^ (bits >> 32)  # the last digits may all be 0
        else:
            bits = x.float().view(torch.int32).long()
        return (bits * self.factors).sum(-1)

    def _token_ids(self, rows: int) -> Tensor:
        """Return an id for each of `rows` tokens, (rows,) int64, as the model's caller set them."""
        ids = self.context.ids if self.context.ids is not None else self.context.input_ids
        if ids is None:
            want = "the id of each token, such as input_ids"
            fix = (
                "Call intarsia.gating.set_ids(model, input_ids) before the model, or use by='row'."
            )
            raise ConfigError("ids", got="none", want=want, fix=fix)
        count = ids.numel()
        if rows == count:
            return ids.reshape(-1)
        if ids.dim() > 1 or not count or rows % count:
            got = f"{tuple(ids.shape)} for {rows} rows"
            want = "one for each token, or one for each sample"
            raise ShapeError("ids", got=got, want=want, fix="Pass the ids of this very batch.")
        return ids.repeat_interleave(rows // count)


def mixed(number: Tensor) -> Tensor:
    """Hash int64 numbers, so that each bit of the result depends on all bits (splitmix64).

    number: any shape; the result has the same. Different numbers have different results.
    """
    for shift, factor in ROUNDS:
        # a logical shift: the mask clears the copies of the sign that `>>` brings in
        number = (number ^ ((number >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return number


def _numbers(count: int, generator: torch.Generator | None) -> Tensor:
    """Draw `count` random int64 numbers."""
    return torch.randint(-(2**62), 2**62, (count,), generator=generator)


CARD = Card(
    "hash",
    kind="router",
    config=Hash,
    paper=Paper("2106.04426", 2021, "Hash Layers For Large Sparse Models"),
    tags=frozenset({"sparse"}),
    tiny={"experts": 4, "by": "row"},
    summary="Experts that follow from which token it is, by a hash that nothing trains.",
    family="fixed routing",
    names=("Hash layers",),
)
