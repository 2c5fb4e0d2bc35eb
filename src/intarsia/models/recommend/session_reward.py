"""The reward of a session: will this user like the items of it? (OneRec, section 3.4)"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ...core.checks import at_least
from ...core.errors import DataError
from ...core.modes import evaluating
from ...data.interactions import Interactions
from ...train.tasks import MultiLabel
from .onerec import LIKED, OneRec, SessionWindows
from .session_encoder import SessionEncoder, padded


class SessionReward(nn.Module):
    """R(u, S): self-attention among the items of S, each beside the mean of the user's history.

    x: (B, H + S), places of items from 1; the last S are the session -> logits (B, S), one for
    each item: will it be liked? The reward of a session is the mean probability, see `reward`.
    history, session: H and S, as of a `OneRec`.  A tower for liking alone; the paper has one for
    each of watch time, view, follow and like.

    reward = SessionReward(items, settings);  fit(reward, reward.rows(events), task=reward.task)
    Raises: DataError in `rows` for events without ratings.
    """

    def __init__(
        self, items: int, settings: OneRec, *, width: int = 32, layers: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        at_least("items", items, 1)
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.item = nn.Embedding(items + 1, width, padding_idx=0)
            self.bias = nn.Embedding(items + 1, 1)
            nn.init.zeros_(self.bias.weight)
            self.encoder = SessionEncoder(
                width, layers=layers, longest=settings.session, causal=False, dropout=0.2
            )
            self.tower = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    @property
    def task(self) -> MultiLabel:
        return MultiLabel()

    def rows(self, events: Interactions) -> TensorDataset:
        """Windows of rated events: history and session, and which items were liked."""
        if np.isnan(events.ratings).any():
            fix = "Give every event a rating, or score sessions by a model of your own."
            raise DataError("events of a reward", got="no ratings", want="ratings", fix=fix)
        windows = SessionWindows(events, self.settings, good=False)
        s = self.settings.session
        x = torch.cat(
            [self._padded([h for h, _ in windows]), torch.stack([i for _, i in windows])], 1
        )
        liked = np.stack([events.ratings[at : at + s] >= LIKED for _, at in windows.index])
        return TensorDataset(x, torch.from_numpy(liked).float())

    def _padded(self, histories: Any) -> Tensor:
        """(B, H) exactly."""
        rows = padded(histories, self.settings.history)
        return nn.functional.pad(rows, (self.settings.history - rows.shape[1], 0))

    def forward(self, x: Tensor) -> Tensor:
        history, session = x.split([x.shape[1] - self.settings.session, self.settings.session], 1)
        there = (history > 0)[..., None]
        user = (self.item(history) * there).sum(1) / there.sum(1).clamp_min(1)  # (B, d)
        own = self.encoder(self.item(session), session > 0)
        both = torch.cat([own + user[:, None], own * user[:, None]], 2)
        return (self.tower(both) + self.bias(session))[..., 0]

    @torch.no_grad()
    def reward(self, histories: Tensor, sessions: Tensor) -> Tensor:
        """Mean probability of liking.  (B, n), (B, W, S) -> (B, W)."""
        width, device = sessions.shape[1], self.bias.weight.device
        rows = self._padded(list(histories)).repeat_interleave(width, 0)
        with evaluating(self):
            logits = self(torch.cat([rows.to(device), sessions.flatten(0, 1).to(device)], 1))
        return logits.sigmoid().mean(1).view(-1, width)
