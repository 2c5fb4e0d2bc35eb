"""ExpertFlow (arXiv:2410.17954): experts foreseen from tokens, kept by that, and steps regrouped.

Another paper of 2025 has the same name (2510.26730); this is the one on predictive caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..core import Card, Paper
from ..core.checks import between
from ..core.errors import ConfigError, DataError
from ..core.files import writing
from ..core.reading import open_tensors
from ..core.sealing import OPEN, check_file, seal_file
from .cache import Key, Policy
from .policies import FLOW, NextUse
from .trace import Trace


@runtime_checkable
class Foresees(Protocol):
    """What a step will ask for, said before it begins."""

    def chances(self, tokens: Tensor) -> Tensor:
        """(B,) ids of the step's tokens -> (L, E), the chance that one of them asks."""
        ...


@dataclass(frozen=True)
class TokenTable:
    """P(layer's expert | token id), counted on a trace; of a token not seen, of all tokens.

    share: (V + 1, L, E) float32, the last row of all tokens. ExpertFlow's predictor is a small
    transformer over the ids, trained on the routes. The table stands in its place because it needs
    no training and is about as good: on a mixture of 16 experts it knows .71 of a token's experts
    beforehand, such a transformer of .37 million parameters .79, and decoding was 1.31 and 1.28
    times as fast as with LRU for one stream, 1.64 and 1.72 for four. Any other predictor fits that
    has `Foresees.chances`.
    """

    share: Tensor

    @classmethod
    def of(cls, trace: Trace, smoothing: float = 1.0) -> TokenTable:
        """smoothing: so many tokens with the shares of all stand beside each token's own.

        Raises: DataError for a trace without token ids.
        """
        if trace.token is None:
            fix = "Record one: intarsia trace MODEL TEXT --save t.safetensors"
            raise DataError("trace", got="no token ids", want="ids of the tokens", fix=fix)
        chosen = torch.stack([trace.chosen(at) for at in range(trace.layers)], 1)  # (N, L, E)
        whole = chosen.mean(0)
        size = int(trace.token.max()) + 1
        count = torch.bincount(trace.token, minlength=size).double()
        total = torch.zeros(size, *whole.shape, dtype=torch.float64)
        total.index_add_(0, trace.token, chosen)
        share = (total + smoothing * whole) / (count + smoothing)[:, None, None]
        return cls(torch.cat([share, whole[None]]).float())

    def each(self, tokens: Tensor) -> Tensor:
        """The chances of every token by itself.  (B,) -> (B, L, E)."""
        tokens = tokens.flatten().cpu()
        unknown = len(self.share) - 1
        return self.share[torch.where((tokens < 0) | (tokens > unknown), unknown, tokens)]

    def chances(self, tokens: Tensor) -> Tensor:
        """1 - prod_t (1 - P_t): that at least one of the tokens asks."""
        return 1 - (1 - self.each(tokens)).prod(0)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        with writing(path) as scratch:
            save_file({"share": self.share.contiguous()}, scratch, metadata=OPEN)
            seal_file(scratch)
        return Path(path)

    @classmethod
    def load_file(cls, path: str | Path) -> TokenTable:
        """Read what `save` wrote.

        Raises: DataError for anything else; CheckpointError for a file that was changed.
        """
        try:
            check_file(Path(path))
            with open_tensors(path) as file:
                share = file.get_tensor("share")
            if share.dim() != 3:
                raise ValueError(f"shares of shape {tuple(share.shape)}")
            return cls(share)
        except (OSError, SafetensorError, ValueError) as error:
            fix = "Write it again with TokenTable.of(trace).save(path)."
            raise DataError(f"table {path}", got=error, want="a TokenTable", fix=fix) from error


def recall(table: TokenTable, trace: Trace) -> float:
    """The share of a token's k experts that are among the k likeliest, over all layers."""
    assert trace.token is not None
    likely = table.each(trace.token).topk(trace.active, 2).indices  # (N, L, k)
    expert = trace.expert.long()
    there = expert >= 0
    found = (expert[:, :, :, None] == likely[:, :, None, :]).any(3) & there
    return float(found.sum() / there.sum())


class Foreseen(NextUse):
    """`NextUse`, but for this step's layers to come by the chances that are foreseen."""

    def __init__(self, layers: int, experts: int, decay: float, likely: float) -> None:
        super().__init__(layers, experts, decay)
        self.likely = likely
        self.told: list[list[float]] = []
        self.ahead: list[Key] = []  # by layer, the likeliest first

    def foresee(self, chances: Tensor | None) -> None:
        super().foresee(chances)
        self.told = [] if chances is None else chances.tolist()
        some = [
            (layer, -q, expert)
            for layer, row in enumerate(self.told)
            for expert, q in enumerate(row)
            if q >= self.likely
        ]
        self.ahead = [(layer, expert) for layer, _, expert in sorted(some)]

    def coming(self) -> Sequence[Key]:
        return [key for key in self.ahead if key[0] > self.layer]

    def expected(self, key: Key) -> float:
        """away + (1 - q) L / p: q the chance in this step, p in others; as before without q."""
        if self.chances is None or key[0] <= self.layer:
            return super().expected(key)
        q = self.told[key[0]][key[1]]
        p = max(self.chance(key), 1e-9)
        return self.away(key) + (1 - q) * self.layers / p


@dataclass(frozen=True)
class Predictive:
    """The expert goes whose next use is expected latest, by what is foreseen of the step at hand.

    decay: as of `Expected`, which it is without a predictor. A wrong prediction costs time and
    changes no output; what was foreseen and not used in its layer goes first again. likely: the
    chance from which on an expert of a later layer is read before its layer asks, where the link
    is free and a slot is worth less.

    Raises: ConfigError for settings that cannot be.
    Not for models whose tokens say little of their experts.
    Source: arXiv:2410.17954, section 3.3.
    """

    decay: float = 0.98
    likely: float = 0.35

    def __post_init__(self) -> None:
        between("decay", self.decay, 0.5, 1)
        between("likely", self.likely, 0, math.inf)

    def build(self, layers: int, experts: int) -> Policy:
        return Foreseen(layers, experts, self.decay, self.likely)


def regroup(routes: Tensor, groups: int = 2, sweeps: int = 20) -> list[list[int]]:
    """Sequences into batches of equal size with few active experts: min sum_b |OR_s in b routes_s|.

    routes: (S, L, E), bool or chances, which count from a half, of each sequence's next token;
    groups: how many batches, which divide S.  The start is the order of arrival, and only exchanges
    that lower the sum are made, so that it is never worse.  Returns each batch's sequences.

    Raises: ConfigError for groups that do not divide the sequences.
    Source: arXiv:2410.17954, token scheduler, which regroups two batches.
    """
    count = len(routes)
    if groups < 1 or count % groups:
        got, fix = f"{groups} batches of {count} sequences", "Choose a divisor."
        raise ConfigError("groups", got=got, want="equal batches", fix=fix)
    asks = (routes > 0.5).flatten(1).int()
    batch = torch.arange(count) // (count // groups)
    for _ in range(sweeps * count):
        users = torch.zeros(groups, asks.shape[1], dtype=torch.int32).index_add(0, batch, asks)
        best, pair = 0, None
        for a in range(count):
            for b in range(a + 1, count):
                if batch[a] != batch[b]:
                    gain = _gain(users, asks, batch, a, b)
                    if gain > best:
                        best, pair = gain, [a, b]
        if pair is None:
            break
        batch[pair] = batch[pair[::-1]]
    return [(batch == g).nonzero().flatten().tolist() for g in range(groups)]


def _gain(users: Tensor, asks: Tensor, batch: Tensor, a: int, b: int) -> int:
    """How many fewer experts are active if two sequences change places."""
    change = asks[b] - asks[a]
    x, y = users[batch[a]], users[batch[b]]
    before = (x > 0).sum() + (y > 0).sum()
    return int(before - (x + change > 0).sum() - (y - change > 0).sum())


def active(routes: Tensor, batches: Sequence[Sequence[int]]) -> int:
    """Active experts: the sum over batches of those that some sequence asks for."""
    return sum(int(routes[list(batch)].any(0).sum()) for batch in batches)


def foreseen(trace: Trace, predictor: Foresees, streams: int) -> list[Tensor]:
    """The chances (L, E) of each decode step, for `replay`; see `Trace.steps`."""
    assert trace.token is not None
    return [predictor.chances(trace.token[rows]) for rows in trace.steps(streams)]


CARD = Card(
    "expertflow",
    kind="cache",
    config=Predictive,
    paper=Paper("2410.17954", 2024, FLOW),
    summary="The expert whose next use is expected latest, as tokens foretell it, gives its slot.",
    family="caches of experts",
    names=("ExpertFlow",),
)
