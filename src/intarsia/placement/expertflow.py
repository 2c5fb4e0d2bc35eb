"""ExpertFlow (arXiv:2410.17954): experts predicted from tokens, cached by that, steps regrouped.

Another paper of 2025 has the same name (2510.26730); this is the one on predictive caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..core import Card, Paper
from ..core.errors import ConfigError, DataError
from ..core.files import writing
from ..core.reading import open_tensors
from ..core.schema import check, setting
from ..core.sealing import OPEN, check_file, seal_file
from .cache import Key, Policy
from .policies import FLOW, NextUse
from .trace import Trace


@runtime_checkable
class Predictor(Protocol):
    """Predictor of the experts that a step will use, before it begins."""

    def chances(self, tokens: Tensor) -> Tensor:
        """Return the chance (L, E) that some token of the step, ids (B,), uses each expert."""
        ...


@dataclass(frozen=True)
class TokenTable:
    """Table of P(layer's expert | token id), counted on a trace; for unseen tokens, of all tokens.

    share: (V + 1, L, E) float32, the last row of all tokens. ExpertFlow's predictor is a small
    transformer over the ids, trained on the routes. The table replaces it because it needs no
    training and is about as good: on a mixture of 16 experts it predicts .71 of a token's experts,
    such a transformer of .37 million parameters .79, and decoding was 1.31 and 1.28 times as fast
    as with LRU for one stream, 1.64 and 1.72 for four. Any `Predictor` can be used instead.
    """

    share: Tensor

    @classmethod
    def of(cls, trace: Trace, smoothing: float = 1.0) -> TokenTable:
        """Count how often each token id has each expert, in a recorded routing.

        trace: with token ids; smoothing: number of average tokens that are added to the counts of
          each id, so that rare ids are near the mean.
        Raises: DataError for a trace without token ids.
        """
        if trace.token is None:
            fix = "Record one: intarsia trace MODEL TEXT --out t.safetensors"
            raise DataError("trace", got="no token ids", want="ids of the tokens", fix=fix)
        membership = torch.stack(
            [trace.membership(layer) for layer in range(trace.layers)], 1
        )  # (N, L, E)
        mean = membership.mean(0)
        size = int(trace.token.max()) + 1
        count = torch.bincount(trace.token, minlength=size).double()
        total = torch.zeros(size, *mean.shape, dtype=torch.float64)
        # counts of (token id, layer, expert)
        total.index_add_(0, trace.token, membership)
        share = (total + smoothing * mean) / (count + smoothing)[:, None, None]
        # the last row, the mean of all tokens, answers for ids that were not seen
        return cls(torch.cat([share, mean[None]]).float())

    def per_token(self, tokens: Tensor) -> Tensor:
        """Return the chance of each expert for every token on its own.

        tokens: (B,) ids; an id that was not seen gets the mean. Returns (B, L, E).
        """
        tokens = tokens.flatten().cpu()
        unknown = len(self.share) - 1
        return self.share[torch.where((tokens < 0) | (tokens > unknown), unknown, tokens)]

    def chances(self, tokens: Tensor) -> Tensor:
        """Return the chance that at least one of the tokens uses each expert, (L, E).

        1 - prod_t (1 - P_t), P_t the chance for token t alone. tokens: (B,) ids.
        """
        return 1 - (1 - self.per_token(tokens)).prod(0)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file."""
        with writing(path) as scratch:
            save_file({"share": self.share.contiguous()}, scratch, metadata=OPEN)
            seal_file(scratch)
        return Path(path)

    @classmethod
    def load_file(cls, path: str | Path) -> TokenTable:
        """Read the table that `save` wrote to a safetensors file.

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
    """Return the share of the tokens' k experts that are among the k likeliest of the table.

    trace: recorded routing with token ids, other than the table's.
      Returns 0 ... 1.
    """
    assert trace.token is not None
    # as many guesses a layer as a token has experts
    likely = table.per_token(trace.token).topk(trace.active, 2).indices  # (N, L, k)
    expert = trace.expert.long()
    present = expert >= 0
    predicted = (expert[:, :, :, None] == likely[:, :, None, :]).any(3) & present
    return float(predicted.sum() / present.sum())


class PredictedNextUse(NextUse):
    """`NextUse` policy that uses predicted chances for the later layers of the present step."""

    def __init__(self, layers: int, experts: int, decay: float, likely: float) -> None:
        super().__init__(layers, experts, decay)
        # the predicted chance from which on an expert is read ahead
        self.likely = likely
        self.predicted: list[list[float]] = []
        self.ahead: list[Key] = []  # by layer, the likeliest first

    def foresee(self, chances: Tensor | None) -> None:
        """Accept the predicted chances of the next step, and list the experts to read ahead.

        chances: (L, E); None = no prediction.
        """
        super().foresee(chances)
        self.predicted = [] if chances is None else chances.tolist()
        some = [
            (layer, -q, expert)
            for layer, row in enumerate(self.predicted)
            for expert, q in enumerate(row)
            if q >= self.likely
        ]
        self.ahead = [(layer, expert) for layer, _, expert in sorted(some)]

    def coming(self) -> Sequence[Key]:
        return [key for key in self.ahead if key[0] > self.layer]

    def expected(self, key: Key) -> float:
        """Return the expected number of layers that are computed until an expert's next use.

        It is away + (1 - q) L / p: away, the layers until the expert's own layer is next; q, the
        predicted chance in this step; p, the chance in other steps, by past uses; L, layers of the
        model. Without a prediction, or for a layer that is past, as `NextUse`. key: (layer,
        expert).
        """
        if self.chances is None or key[0] <= self.layer:
            return super().expected(key)
        q = self.predicted[key[0]][key[1]]
        p = max(self.chance(key), 1e-9)
        return self.away(key) + (1 - q) * self.layers / p


@dataclass(frozen=True)
class Predictive:
    """Cache policy that evicts the expert expected to be used latest, with a prediction.

    The prediction is of the present step; without a predictor this is `Expected`. A wrong
    prediction costs time and changes no output; an expert that was predicted and not used in its
    layer is evicted first again.

    Raises: ConfigError for a decay outside 0.5 ... 1, or a likely below 0.
    Not for models where tokens say little of their experts.
    Source: arXiv:2410.17954, section 3.3.
    """

    decay: float = setting(
        0.98,
        "The factor of an expert's share of uses for each step, as in `Expected`.",
        least=0.5,
        most=1,
    )
    likely: float = setting(
        0.35,
        "The chance from which on an expert of a later layer is read before its layer asks, "
        "where the link is free and no slot holds an expert needed sooner.",
        least=0,
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, layers: int, experts: int) -> Policy:
        return PredictedNextUse(layers, experts, self.decay, self.likely)


def regroup(routes: Tensor, groups: int = 2, sweeps: int = 20) -> list[list[int]]:
    """Group sequences into equal batches that use few experts each, by swapping sequences.

    It minimises sum_b |OR_{s in b} routes_s|, the active experts summed over batches b.
    routes: (S, L, E), the experts of each sequence's next token, bool or chances, which count from
      a half; groups: number of batches, which divides S; sweeps: passes at most. The start is the
      order of arrival, and only swaps that lower the sum are made, so that the result is never
      worse. Returns each batch's sequences.

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
        # try every pair of sequences in different batches, and swap the best pair
        best, pair = 0, None
        for a in range(count):
            for b in range(a + 1, count):
                if batch[a] != batch[b]:
                    gain = _swap_gain(users, asks, batch, a, b)
                    if gain > best:
                        best, pair = gain, [a, b]
        if pair is None:
            break
        batch[pair] = batch[pair[::-1]]
    return [(batch == g).nonzero().flatten().tolist() for g in range(groups)]


def _swap_gain(users: Tensor, asks: Tensor, batch: Tensor, a: int, b: int) -> int:
    """Return by how many experts two batches' active sets shrink if a and b are swapped."""
    # batch: (S,); a leaves the batch of x for the batch of y, b the other way round
    change = asks[b] - asks[a]
    x, y = users[batch[a]], users[batch[b]]
    before = (x > 0).sum() + (y > 0).sum()
    return int(before - (x + change > 0).sum() - (y - change > 0).sum())


def active(routes: Tensor, batches: Sequence[Sequence[int]]) -> int:
    """Count the experts that some sequence of a batch uses, summed over batches.

    routes: (S, L, E) bool, the experts of each sequence.
    """
    return sum(int(routes[list(batch)].any(0).sum()) for batch in batches)


def predicted_steps(trace: Trace, predictor: Predictor, streams: int) -> list[Tensor]:
    """Return the predicted chances (L, E) of the experts in each decode step, for `replay`.

    trace: recorded routing with token ids; predictor: such as a `TokenTable`; streams: sequences
      decoded at once, see `Trace.steps`.
    """
    assert trace.token is not None
    return [predictor.chances(trace.token[rows]) for rows in trace.steps(streams)]


CARD = Card(
    "expertflow",
    kind="cache",
    config=Predictive,
    paper=Paper("2410.17954", 2024, FLOW),
    summary="The expert with the latest next use, as tokens foretell it, gives its slot.",
    family="caches of experts",
    names=("ExpertFlow",),
)
