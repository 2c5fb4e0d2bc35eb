"""Two tasks on MovieLens-100k: does a user watch a film, and how many stars does it get?

The multi-task set-up of DSelect-k and COMET: vectors of the user and of the film, sixteen shared
experts, and for each task a gate of its own over them and a linear map to one number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.data.atomic_files import load_interactions
from intarsia.gating import RouterConfig, set_ids
from intarsia.mixtures import Mixture
from intarsia.train.order import Batch, Inputs
from intarsia.train.outcome import TargetLoss
from intarsia.train.scores import Named
from intarsia.train.tasks import Task

EXPERTS, WIDTH, HIDDEN, DROP = 16, 32, 256, 0.5
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
WATCH, STARS = 0.9, 0.1  # weights of both losses, one of the two pairs of the paper


def _losses(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of watching, and the squared error of the stars of rated films.

    output: (B, 2), a logit and stars; target: (B, 2), 0 or 1 and stars, NaN = not rated.
    """
    # pairs that never met have no stars
    rated = ~target[:, 1].isnan()
    watch = F.binary_cross_entropy_with_logits(output[:, 0], target[:, 0])
    off = (output[rated, 1] - target[rated, 1]).square().sum() / rated.sum().clamp(min=1)
    return watch, off


def _loss(output: Tensor, target: Tensor) -> Tensor:
    watch, off = _losses(output, target)
    return WATCH * watch + STARS * off


@dataclass(frozen=True)
class WatchAndRate(Task):
    """0.9 CE(watched) + 0.1 (stars - mean)^2, the latter over the pairs that have stars.

    Targets and outputs are (B, 2): 0 or 1, and stars, NaN where there are none.
    """

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        return inputs, target

    def loss_of(self, batch: Batch) -> TargetLoss:
        return TargetLoss(_loss, batch[1])

    def scores(self, *rows: Tensor) -> Named:
        """Compute loss, AUC of watching, and root mean squared error of the stars.

        rows: outputs and targets, (n, 2) both.
        """
        watch, off = _losses(*rows)
        return Named(
            {
                "loss": float(WATCH * watch + STARS * off),
                "auc": float(roc_auc_score(rows[1][:, 0].numpy(), rows[0][:, 0].numpy())),
                "stars": float(off.sqrt()),
            }
        )


class Watcher(nn.Module):
    """Users and films to two numbers.  x: (B, 2) places -> (B, 2)."""

    def __init__(self, router: RouterConfig, users: int, films: int, seed: int) -> None:
        """Draw the vectors of users and films, the shared experts, and a gate for each task.

        router: settings of the gates; users, films: their numbers; seed: of the weights.
        """
        super().__init__()
        width, generator = 2 * WIDTH, torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.user, self.film = nn.Embedding(users, WIDTH), nn.Embedding(films, WIDTH)
            experts = [
                nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(DROP))
                for _ in range(EXPERTS)
            ]
            self.heads = nn.ModuleList(nn.Linear(HIDDEN, 1) for _ in range(2))
        # both tasks have the same experts, and a gate of their own
        gates: list[Any] = [router.build(width, generator=generator) for _ in range(2)]
        self.mixtures = nn.ModuleList(Mixture(experts, gate) for gate in gates)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs of both tasks, watched and stars.  (B, 2).

        x: (B, 2), numbers of a user and a film.
        """
        rows = torch.cat([self.user(x[:, 0]), self.film(x[:, 1])], -1)  # (B, 64)
        set_ids(self, x[:, 1])  # a hash reads which film it is
        both = zip(self.mixtures, self.heads, strict=True)
        return torch.cat([head(mixture(rows)) for mixture, head in both], -1)


@lru_cache
def parts() -> dict[str, TensorDataset]:
    """Return (user, film) pairs with their targets, for training, validation and test.

    They are all events of MovieLens-100k, and as many pairs that never met. Events are distributed
    at random, the same for all seeds; the mean of the training part is subtracted from the stars.
    """
    events = load_interactions("ml-100k")
    draws = np.random.default_rng(0)
    # a pair as one number: user * films + film
    met = events.users * len(events.item_ids) + events.items
    unmet = np.flatnonzero(~np.isin(np.arange(len(events.user_ids) * len(events.item_ids)), met))
    never = draws.choice(unmet, len(met), replace=False)
    order = draws.permutation(len(met))
    cuts = np.rint(np.cumsum([0, *SHARES.values()]) * len(met)).astype(int)
    # of the training part alone
    mean = events.ratings[order[: cuts[1]]].mean()
    datasets: dict[str, TensorDataset] = {}
    for name, start, stop in zip(SHARES, cuts, cuts[1:], strict=False):
        rows = order[start:stop]
        # half of each part are pairs that never met
        pairs = np.concatenate([met[rows], never[start:stop]])
        x = np.stack([pairs // len(events.item_ids), pairs % len(events.item_ids)], 1)
        stars = np.concatenate([events.ratings[rows] - mean, np.full(len(rows), np.nan)])
        watched = np.repeat([1.0, 0.0], len(rows))
        target = torch.tensor(np.stack([watched, stars], 1), dtype=torch.float32)
        datasets[name] = TensorDataset(torch.tensor(x), target)
    return datasets


def watcher(router: RouterConfig, seed: int) -> Watcher:
    """Return an untrained model of all users and films of MovieLens-100k."""
    events = load_interactions("ml-100k")
    return Watcher(router, len(events.user_ids), len(events.item_ids), seed)
