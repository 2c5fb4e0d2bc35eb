"""Read-ME's pre-gate: a small causal transformer over token ids chooses once for all layers.

arXiv:2410.19123, section 3.2. The choice needs no hidden state, so that it is known before the
model runs: requests can be batched by it, and experts brought in (`placement.batching`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Routing
from ..core.checks import at_least, between
from ..core.errors import ConfigError, ShapeError
from ..gating.gate import keep_pairs
from ..gating.router import Router, check_counts


@dataclass(frozen=True)
class PreGate:
    """logits = W norm(z), z a causal transformer of one block over the embeddings of token ids.

    experts: E; active: k, of weight 1 each (released code: 1; text: 2); vocabulary: of the
    tokenizer; width: the embedding's; heads: the attention's.

    Raises: ConfigError for settings that cannot be.
    Not for models without token ids.
    Source: arXiv:2410.19123, section 3.2.
    """

    experts: int = 4
    active: int = 1
    vocabulary: int = 49152
    width: int = 64
    heads: int = 4

    def __post_init__(self) -> None:
        check_counts(self.experts, self.active)
        between("vocabulary", self.vocabulary, 1, math.inf)
        at_least("heads", self.heads, 1)
        at_least("width", self.width, 1, f"Try {16 * self.heads}.")
        if self.width % self.heads:
            got, want = f"{self.width} in {self.heads} heads", "a width that they divide"
            raise ConfigError("width", got=got, want=want, fix=f"Try {16 * self.heads}.")

    def net(self, *, embedding: Tensor | None = None, generator: torch.Generator) -> PreGateNet:
        """Return the network that chooses experts from token ids, for all layers of a model.

        embedding: (V, n) of the model, from which the network's embedding is copied; None = draw
          it. generator: source of the random weights.
        """
        return PreGateNet(self, embedding=embedding, generator=generator)


class PreGateNet(nn.Module):
    """(B, T) token ids -> (B, T, E) logits, each of the ids up to its own alone.

    embedding: (V, n) of the model; the gate's begins as its first `width` columns.
    Rotary positions say how far apart tokens are. The newest logits are cached, because every
    layer asks for the logits of the same ids.
    Raises: ShapeError for an embedding that does not fit the settings.
    """

    def __init__(
        self, config: PreGate, *, embedding: Tensor | None = None, generator: torch.Generator
    ) -> None:
        super().__init__()
        d = config.width

        def drawn(outputs: int, inputs: int) -> nn.Parameter:
            bound = 1 / math.sqrt(inputs)
            weight = torch.empty(outputs, inputs)
            return nn.Parameter(nn.init.uniform_(weight, -bound, bound, generator=generator))

        self.config = config
        words = drawn(config.vocabulary, d)
        if embedding is not None:
            if embedding.shape[0] != config.vocabulary or embedding.shape[1] < d:
                got, want = tuple(embedding.shape), f"({config.vocabulary}, at least {d})"
                fix = "Set vocabulary and width of PreGate to fit."
                raise ShapeError("embedding of the model", got=got, want=want, fix=fix)
            words = nn.Parameter(embedding[:, :d].detach().float().clone())
        self.words = words
        self.qkv, self.out = drawn(3 * d, d), drawn(d, d)
        self.up, self.down = drawn(2 * d, d), drawn(d, 2 * d)
        self.norms = nn.ModuleList(nn.RMSNorm(d) for _ in range(3))
        self.head = drawn(config.experts, d)
        self.to(words.device)  # the model's, where an embedding is given
        self._newest: tuple[Tensor, Tensor, int, Tensor] | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, E) for token ids (B, T)."""
        x = F.embedding(ids, self.words)  # (B, T, d)
        b, t, d = x.shape
        # attention, then an MLP, both with a residual connection
        qkv = F.linear(self.norms[0](x), self.qkv).view(b, t, 3, self.config.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, n)
        q, k = _rotated(q), _rotated(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(b, t, d), self.out)
        x = x + F.linear(F.silu(F.linear(self.norms[1](x), self.up)), self.down)
        # one logit for each expert
        return F.linear(self.norms[2](x), self.head)

    def cached_logits(self, ids: Tensor) -> Tensor:
        """Return `forward(ids)`, computed once for all layers of one forward of the model.

        ids: token ids (B, T). Returns logits (B, T, E). The newest result is reused while ids and
          parameters are unchanged; with gradients it is not stored.
        """
        with_gradient = torch.is_grad_enabled()
        cached = self._newest
        # the same tensor, not written to since, with the same parameters; a graph is never shared
        if cached is not None and cached[0] is ids and not with_gradient:
            unchanged = cached[2] == self._version() and torch.equal(cached[1], ids)
            if unchanged:
                return cached[3]
        logits = self(ids)
        self._newest = None if with_gradient else (ids, ids.clone(), self._version(), logits)
        return logits

    def _version(self) -> int:
        """Return a number that grows whenever a parameter is written to."""
        return sum(p._version for p in self.parameters())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_newest": None}


def _rotated(x: Tensor) -> Tensor:
    """Rotate pairs of entries (B, H, T, n) by an angle that grows with the position (rotary)."""
    n = x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(n, device=x.device) / max(1, n))
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * rate  # (T, n)
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


class PreGateRouter(Router):
    """A layer's router, which asks the gate that all layers share.  x: (..., d) -> Routing.

    k experts a token, of weight 1 each. Ids are the context's: `set_ids`, or the forward's own
    `input_ids`.

    Raises: ConfigError in a forward without ids; ShapeError for ids of another batch.
    Not while generating with a cache: the gate reads the ids before, too. Turn the cache off.
    """

    equal_counts = True

    def __init__(self, gate: PreGateNet) -> None:
        super().__init__(gate.config.experts)
        self.gate = gate

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Choose the k experts of largest logit for each token, from the token ids alone.

        Raises: ConfigError without ids; ShapeError if their number is not N.
        """
        ids = self.context.ids if self.context.ids is not None else self.context.input_ids
        if ids is None:
            fix = "Call the model with input_ids, or intarsia.gating.set_ids(model, ids) before it."
            raise ConfigError("ids", got="none", want="the ids of the tokens", fix=fix)
        if ids.dim() != 2 or ids.numel() != len(rows):
            got, want = f"ids {tuple(ids.shape)} for {len(rows)} tokens", "one for each token"
            fix = "Pass the ids of this very batch, and use_cache=False."
            raise ShapeError("ids", got=got, want=want, fix=fix)
        logits = self.gate.cached_logits(ids).flatten(0, 1)  # (N, E)
        index = logits.topk(self.gate.config.active).indices  # (N, k)
        weight = rows.new_ones(index.shape)
        routing = Routing.from_topk(index.to(rows.device), weight, self.experts)
        return routing if valid is None else keep_pairs(routing, valid[routing.token])
