"""Encoder of sessions: a pre-norm Transformer over the vectors of their items."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import at_least
from ...core.errors import ConfigError, ShapeError

HEAD = 16  # width of a head
Cache = tuple[Tensor, Tensor]  # keys and values so far, (B, heads, t, HEAD) both


class Attention(nn.Module):
    """Attention softmax(q k^T / sqrt(16)) v, heads of width 16.  (B, n, d), (B, m, d) -> (B, n, d).

    mask: (B or 1, n, m) bool, True = visible.
    Raises: ConfigError for a width that heads of 16 do not divide.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width < HEAD or width % HEAD:
            fix = f"Use {max(1, round(width / HEAD)) * HEAD}."
            raise ConfigError("width", got=width, want=f"a multiple of {HEAD}", fix=fix)
        self.heads, self.dropout = width // HEAD, dropout
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.o = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, HEAD)).transpose(1, 2)  # (B, heads, n, 16)

    def cache(self, x: Tensor) -> Cache:
        """Compute keys and values of x (B, m, d), (B, heads, m, 16) both."""
        k, v = self.kv(x).chunk(2, -1)
        return self._split(k), self._split(v)

    def read(self, x: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
        """Attend from new places to keys and values that were computed before.

        x: (B, n, d); cache: keys and values, (B, heads, m, 16) both; mask: (B or 1, n, m) bool,
          True = visible, None = all.  -> (B, n, d).
        """
        p = self.dropout if self.training else 0.0
        by_head = None if mask is None else mask[:, None]  # the same for all heads
        y = F.scaled_dot_product_attention(self._split(self.q(x)), *cache, by_head, dropout_p=p)
        return self.o(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.read(x, self.cache(memory), mask)


def mlp(width: int, dropout: float) -> nn.Sequential:
    """Build the MLP d -> 4d -> d with a GELU."""
    return nn.Sequential(
        nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
    )


class SessionBlock(nn.Module):
    """Block x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, dropout)
        self.drop = nn.Dropout(dropout)
        self.norm_mlp, self.mlp = nn.LayerNorm(width), mlp(width, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Apply attention and MLP, each behind a norm and added to x.

        x: (B, n, d), states; mask: (B or 1, n, n) bool, True = visible.  -> (B, n, d).
        """
        y = self.norm(x)
        x = x + self.drop(self.attention(y, y, mask))
        return x + self.mlp(self.norm_mlp(x))


class SessionEncoder(nn.Module):
    """Encoder of sessions to a state at every place.

    items: (B, n, d), vectors; present: (B, n) bool, False = padding -> (B, n, d).
    Sessions are padded on the left. Learned positions count from the last place, so that
    padding changes nothing; states of padding are exactly 0. A session of padding alone gives 0.
    causal: a place attends to itself and those before it.  longest: number of positions.

    Raises: ConfigError for a width that heads of 16 do not divide; ShapeError for longer sessions.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int = 2,
        longest: int = 50,
        causal: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        at_least("layers", layers, 1)
        at_least("longest", longest, 1)
        self.longest, self.causal = longest, causal
        self.position = nn.Embedding(longest, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(SessionBlock(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, items: Tensor, present: Tensor) -> Tensor:
        """Encode sessions, padded on the left, to a state at every place, (B, n, d).

        items: (B, n, d), vectors; present: (B, n) bool, False = padding. Raises: ShapeError for
          sessions above `longest` items.
        """
        n = items.shape[1]
        if n > self.longest:
            fix = "Cut the session to its last items, or build the model with a larger `longest`."
            raise ShapeError("session", got=f"{n} items", want=f"at most {self.longest}", fix=fix)
        # Positions count from the end, so that padding on the left changes nothing.
        from_end = torch.arange(n - 1, -1, -1, device=items.device)
        x = self.drop(items + self.position(from_end)) * present[..., None]
        mask = present[:, None, :].expand(-1, n, -1)  # (B, n, n)
        itself = torch.eye(n, dtype=torch.bool, device=items.device)
        if self.causal:
            mask = mask & torch.ones_like(itself).tril()
        mask = mask | itself  # padding attends to itself: a softmax over no key would be NaN
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x) * present[..., None]


def pad_sessions(sessions: Any, longest: int) -> Tensor:
    """Pad sessions with 0 on the left to one tensor of their last items, (B, n) int64, n >= 1."""
    rows = [torch.as_tensor(s, dtype=torch.int64)[-longest:] for s in sessions]
    n = max(1, *(len(row) for row in rows)) if rows else 1
    padded = torch.zeros(len(rows), n, dtype=torch.int64)
    for row, session in zip(padded, rows, strict=True):
        if len(session):
            row[-len(session) :] = session
    return padded
