"""Reward of a session: the probability that this user likes its items (OneRec, section 3.4)."""

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
from .session_encoder import SessionEncoder, pad_sessions


class SessionReward(nn.Module):
    """Reward R(u, S) by self-attention among the items of S, and the mean of the user's history.

    x: (B, H + S), places of items from 1; the last S are the session -> logits (B, S) that each
    item is liked. The reward of a session is the mean probability, see `reward`.
    items: their number;  settings: with H = history and S = session.  It has one tower, for liking;
    the paper has one for each of watch time, view, follow and like.

    reward = SessionReward(items, settings);  fit(reward, reward.rows(events), task=reward.task)
    Raises: DataError in `rows` for events without ratings.
    """

    def __init__(
        self, items: int, settings: OneRec, *, width: int = 32, layers: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        at_least("items", items, 1)
        self.settings = settings
        # torch's own random numbers draw the weights; the caller's continue as if nothing was drawn
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
        """Return windows of rated events: (history and session, which items were liked).

        events: sorted by user and time. Raises: DataError for events without ratings.
        """
        if np.isnan(events.ratings).any():
            fix = "Give every event a rating, or score sessions by a model of your own."
            raise DataError("events of a reward", got="no ratings", want="ratings", fix=fix)
        windows = SessionWindows(events, self.settings, liked_only=False)
        s = self.settings.session
        x = torch.cat(
            [self._padded([h for h, _ in windows]), torch.stack([i for _, i in windows])], 1
        )
        liked = np.stack([events.ratings[start : start + s] >= LIKED for _, start in windows.index])
        return TensorDataset(x, torch.from_numpy(liked).float())

    def _padded(self, histories: Any) -> Tensor:
        """Pad histories to (B, H) exactly."""
        rows = pad_sessions(histories, self.settings.history)
        return nn.functional.pad(rows, (self.settings.history - rows.shape[1], 0))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, S) that each item of a session is liked.

        x: (B, H + S), histories and sessions, as numbers of items from 1, 0 = padding.
        """
        history, session = x.split([x.shape[1] - self.settings.session, self.settings.session], 1)
        present = (history > 0)[..., None]
        user = (self.item(history) * present).sum(1) / present.sum(1).clamp_min(1)  # (B, d)
        states = self.encoder(self.item(session), session > 0)
        # sums and products of item states and the user, the tower's input
        features = torch.cat([states + user[:, None], states * user[:, None]], 2)
        return (self.tower(features) + self.bias(session))[..., 0]

    @torch.no_grad()
    def reward(self, histories: Tensor, sessions: Tensor) -> Tensor:
        """Compute the mean probability that a session's items are liked.

        histories: (B, n), numbers of items from 1; sessions: (B, W, S), W for each history.  -> (B,
          W).
        """
        width, device = sessions.shape[1], self.bias.weight.device
        rows = self._padded(list(histories)).repeat_interleave(width, 0)
        with evaluating(self):
            logits = self(torch.cat([rows.to(device), sessions.flatten(0, 1).to(device)], 1))
        return logits.sigmoid().mean(1).view(-1, width)
