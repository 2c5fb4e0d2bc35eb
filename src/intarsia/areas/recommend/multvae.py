"""MultVAE: a variational autoencoder of users' items, multinomial likelihood (arXiv:1802.05814)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...core import Card, Paper
from ...core.schema import check, setting
from ...data.interactions import Interactions
from .ranker import Ranker, UserItems
from .recommender import Settings


@dataclass(frozen=True)
class MultVae(Settings):
    """Model x / |x| -> dropout -> tanh layer -> mu, log sigma^2 -> z -> tanh layer -> softmax.

    x: a user's items, 0 or 1 each.  L = -sum_i x_i log p_i + beta KL(q(z|x) || N(0, 1)), the mean
    over users; beta rises from 0 to its value over the first fifth of the steps.  The first and the
    last layer are tables with a row for each item, which `Dsl` makes sparse.

    Not for new items: the tables have rows for those of the training alone.
    Raises: ConfigError for a setting out of range.
    It scores new users by their history, without training again.
    Source: paper, sections 2.2 and 2.3.
    """

    width: int = setting(600, "The units of the hidden layers.", least=1)
    code: int = setting(200, "The width of the latent vector z.", least=1)
    dropout: float = setting(
        0.5, "The share of a user's items that is zeroed in training.", least=0, below=1
    )
    beta: float = setting(
        0.2, "The weight of the KL divergence after the first fifth of the steps.", least=0
    )

    data_of: ClassVar[str] = "ranking"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 100, "batch_size": 128, "lr": 1e-3, "weight_decay": 0.0}
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, data: Interactions, *, seed: int = 0) -> MultVaeModel:
        return MultVaeModel(self, data, generator=torch.Generator().manual_seed(seed))


class MultVaeModel(Ranker):
    """Model of `MultVae`.  users (B,) -> scores (B, items + 1)."""

    settings: MultVae

    def __init__(
        self, settings: MultVae, events: Interactions, *, generator: torch.Generator
    ) -> None:
        super().__init__(settings, events)
        n, w, c = len(events.item_ids) + 1, settings.width, settings.code
        self.read_item, self.rank_item = nn.Embedding(n, w), nn.Embedding(n, w)
        self.read_bias, self.rank_bias = nn.Parameter(torch.zeros(w)), nn.Parameter(torch.zeros(n))
        self.to_code, self.from_code = nn.Linear(w, 2 * c), nn.Linear(c, w)
        for layer in (self.read_item, self.rank_item, self.to_code, self.from_code):
            nn.init.xavier_normal_(layer.weight, generator=generator)
        for layer in (self.to_code, self.from_code):
            nn.init.zeros_(layer.bias)
        self.beta = settings.beta

    def before_step(self, step: int, steps: int) -> None:
        """Anneal beta: raise it linearly to its value over the first fifth of the steps."""
        self.beta = self.settings.beta * min(1.0, step / max(1, steps // 5))

    def samples(self, events: Interactions) -> Dataset[Any]:
        """Return a data set with each user once, next to her last item, which the loss ignores."""
        users, first = torch.from_numpy(events.users).unique_consecutive(return_inverse=True)
        # The end of each user's run of events, less 1.
        last = torch.bincount(first).cumsum(0) - 1
        return UserItems(users, torch.from_numpy(events.items)[last] + 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mu and log sigma^2 of users' codes.  x: (B, items + 1) -> (B, code) both."""
        x = F.dropout(F.normalize(x, dim=1), self.settings.dropout, self.training)
        hidden = torch.tanh(x @ self.read_item.weight + self.read_bias)
        mu, log_variance = self.to_code(hidden).chunk(2, 1)
        return mu, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Compute logits from codes.  z: (B, code) -> (B, items + 1), -inf at 0, no item."""
        logits = torch.tanh(self.from_code(z)) @ self.rank_item.weight.T + self.rank_bias
        none = torch.arange(logits.shape[1], device=z.device) == 0
        return logits.masked_fill(none, -torch.inf)

    def losses(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """Compute the two terms of the negative evidence bound for a batch of users.

        users: (B,); items: unused, a user's row holds all their items.  -> {"items": multinomial
          log-likelihood, negated; "kl": beta KL(q(z) || N(0, 1))}, scalars.
        """
        x = self.seen[users].to(self.rank_bias.dtype)
        mu, log_variance = self.encode(x)
        # the reparameterised draw of z
        z = mu + torch.randn_like(mu) * (log_variance / 2).exp()
        logp = self.decode(z).log_softmax(1)[:, 1:]
        kl = (mu.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / 2
        return {"items": -(x[:, 1:] * logp).sum(1).mean(), "kl": self.beta * kl}

    def all_scores(self, users: Tensor) -> Tensor:
        return self.decode(self.encode(self.seen[users].to(self.rank_bias.dtype))[0])

    def scores_of_history(self, history: Sequence[int]) -> Tensor:
        x = self.rank_bias.new_zeros(1, len(self.rank_bias))
        x[0, list(history)] = 1
        return self.decode(self.encode(x)[0])[0]


CARD = Card(
    "multvae",
    kind="model",
    config=MultVae,
    paper=Paper("1802.05814", 2018, "Variational Autoencoders for Collaborative Filtering"),
    tiny={"width": 8, "code": 4},
    summary="A user's items as one draw of a multinomial, by a variational autoencoder.",
    family="recommenders",
    names=("Mult-VAE",),
    exceptions={"is_an_estimator": "events are no table of rows; intarsia.fit trains it"},
)
