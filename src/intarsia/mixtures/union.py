"""Attention and MLP of a dense block as experts that sum to it (Union of Experts, 2503.02495).

Head h: its rows of W_q, W_k, W_v and its columns of W_o. y_t = b_o + sum_h G_th W_o,h a_h(t), which
is the dense attention if every G_th is 1; an MLP is cut along its hidden units in the same way.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Routing
from ..core.errors import ConfigError
from ..core.linear import plain_linear
from ..kernels.experts import Segments, by_expert
from ..routers.union import UnionRouter
from .experts import StackedExperts, linear_of
from .mixture import Mixture


class HeldMap(nn.Module):
    """The weights of a linear map of which every expert has a part; not a layer by itself."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def layer(self) -> nn.Linear:
        """Return the linear map, with these very parameters."""
        made = plain_linear(self.weight.detach(), None if self.bias is None else self.bias.detach())
        made.weight, made.bias = self.weight, self.bias
        return made

    def reads(self, experts: int) -> tuple[Tensor, Tensor | None]:
        """Rows by expert.  (E n, d) -> (E, n, d), and the biases (E, n)."""
        weight = self.weight.view(experts, -1, self.weight.shape[1])
        return weight, None if self.bias is None else self.bias.view(experts, -1)

    def writes(self, experts: int) -> Tensor:
        """Columns by expert.  (d, E n) -> (E, d, n)."""
        return self.weight.view(len(self.weight), experts, -1).transpose(0, 1)


class SharedBias(nn.Module):
    """The bias of a last layer, which is added once, whatever experts a token has."""

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.bias


class UnionMlp(Mixture):
    """y_t = b + sum_e G_te W2_e act(W1_e x_t + b1_e), a `Mixture` whose gate can learn from sizes.

    shell: what the MLP was, without weights, for `fold`.
    """

    def __init__(
        self,
        experts: StackedExperts,
        router: UnionRouter,
        bias: nn.Parameter | None,
        shell: nn.Module,
    ) -> None:
        super().__init__(experts, router, None if bias is None else SharedBias(bias))
        self.shell = (shell,)  # not a part: it has no weights

    def forward(self, x: Tensor) -> Tensor:
        router = cast(UnionRouter, self.router)
        if not router.teaches:
            return super().forward(x)
        rows, routing = x.reshape(-1, x.shape[-1]), self.routing(x)
        pairs = by_expert(routing.expert, self.experts.experts)
        token, weight = routing.token[pairs.order], routing.weight[pairs.order]
        made = self.experts(rows.index_select(0, token), pairs.expert)
        router.teach(rows, token, pairs.expert, made)
        made = made * weight[:, None]
        y = made.new_zeros(len(rows), made.shape[1]).index_add(0, token, made)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.shared is None else y + self.shared(x)


class UnionAttention(nn.Module):
    """What the two attentions have in common: pairs, the sum over experts, the gate's lesson.

    experts: E, each of heads / E heads in a row.
    """

    def __init__(
        self, router: UnionRouter, out: HeldMap, heads: int, width: int, shell: nn.Module
    ) -> None:
        super().__init__()
        self.router, self.heads, self.width = router, heads, width
        self.experts, self.each = router.experts, heads // router.experts
        self.shell = (shell,)
        self._out = (out,)  # under the host's own name among the modules

    def chosen(self, x: Tensor) -> tuple[Segments, Tensor]:
        """Return the pairs of x (B, T, d), and their weights (N,)."""
        routing: Routing = self.router(x)
        tokens, length = routing.tokens, x.shape[1]
        pairs = Segments.of(routing.token, routing.expert, tokens, length)
        return pairs, routing.weight.to(x.dtype)[pairs.order]

    def summed(self, x: Tensor, pairs: Segments, weight: Tensor, seen: Tensor) -> Tensor:
        """b_o + sum_e G_te W_o,e seen.  x: (B, T, d), seen: (N, heads of an expert times width)."""
        (out,) = self._out
        linear = linear_of(pairs.expert, self.experts)
        made = linear(seen, out.writes(self.experts), None)
        rows = x.reshape(-1, x.shape[-1])
        if self.router.teaches:
            self.router.teach(rows, pairs.token, pairs.expert, made)
        y = made.new_zeros(len(rows), made.shape[1])
        made = made * weight[:, None] if self.router.weighs else made
        y = y.index_add(0, pairs.token, made)
        y = y if out.bias is None else y + out.bias.to(y.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])


class SelectiveAttention(UnionAttention):
    """Every head over the tokens that it takes, and no others.  x: (B, T, d) -> (B, T, d).

    A token that a head does not take is neither query nor key there. qkv, proj: the host's layers,
    of 3 H w and of d outputs; q_norm, k_norm: over the width w of a head; drop: of the shares while
    training; behind: what follows `proj`.

    Raises: ConfigError for a mask, and for causal attention.
    """

    def __init__(
        self,
        router: UnionRouter,
        qkv: nn.Linear,
        proj: nn.Linear,
        heads: int,
        *,
        norms: tuple[nn.Module, nn.Module],
        drop: float,
        behind: nn.Module,
        shell: nn.Module,
    ) -> None:
        out = HeldMap(proj)
        super().__init__(router, out, heads, qkv.out_features // (3 * heads), shell)
        self.qkv, self.proj = HeldMap(qkv), out
        self.q_norm, self.k_norm = norms
        self.drop, self.proj_drop = drop, behind

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        if attn_mask is not None or is_causal:
            got, fix = "a mask over pairs of tokens", "Call the model without one."
            raise ConfigError("attention of a union", got=got, want="none", fix=fix)
        pairs, weight = self.chosen(x)
        rows = x.reshape(-1, x.shape[-1]).index_select(0, pairs.token)
        z = linear_of(pairs.expert, self.experts)(rows, *self._reads())  # (N, 3 g w)
        q, k, v = z.view(len(rows), 3, self.each, self.width).unbind(1)
        q, k, v = (pairs.pad(t).transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        drop = self.drop if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=pairs.keys(), dropout_p=drop)
        seen = pairs.unpad(seen.transpose(1, 2)).flatten(1)  # (N, g w)
        return self.proj_drop(self.summed(x, pairs, weight, seen))

    def _reads(self) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values of each expert.  (E, 3 g w, d), (E, 3 g w)."""
        n, d = self.each * self.width, self.qkv.weight.shape[1]
        weight = self.qkv.weight.view(3, self.experts, n, d).transpose(0, 1)
        bias = self.qkv.bias
        if bias is not None:
            bias = bias.view(3, self.experts, n).transpose(0, 1).reshape(self.experts, 3 * n)
        return weight.reshape(self.experts, 3 * n, d), bias

    def naive(self, x: Tensor, routing: Routing) -> Tensor:
        """Return the twin of the way through pairs: expert by expert, sequence by sequence."""
        gates = routing.dense().view(*x.shape[:2], self.experts)
        kept = torch.zeros_like(gates, dtype=torch.bool).view(-1, self.experts)
        kept[routing.token, routing.expert] = True
        kept = kept.view_as(gates)
        weight, bias = self._reads()
        y = x.new_zeros(*x.shape[:2], len(self.proj.weight))
        if self.proj.bias is not None:
            y = y + self.proj.bias
        for b in range(len(x)):
            for e in range(self.experts):
                at = kept[b, :, e].nonzero()[:, 0]
                if not len(at):
                    continue
                z = F.linear(x[b, at], weight[e], None if bias is None else bias[e])
                q, k, v = z.view(len(at), 3, self.each, self.width).permute(1, 2, 0, 3)
                shares = (self.q_norm(q) @ self.k_norm(k).mT * self.width**-0.5).softmax(-1)
                seen = (shares @ v).transpose(0, 1).flatten(1)
                made = seen @ self.proj.writes(self.experts)[e].t() * gates[b, at, e, None]
                y = y.index_put((torch.tensor(b), at), made, accumulate=True)
        return y


class SelectiveQueries(UnionAttention):
    """A decoder's attention whose heads ask for the tokens that they take alone.  (B, T, d).

    Keys and values are those of all tokens, so that a cache works as it did, and several heads may
    share them. q, k, v, o: the host's layers; norms: of queries and keys; layer: its number in the
    cache.  Rotary positions as in Llama.

    Raises: ConfigError for a mask of another form than (B, 1, T, keys).
    """

    def __init__(
        self,
        router: UnionRouter,
        layers: tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear],
        heads: int,
        *,
        norms: tuple[nn.Module | None, nn.Module | None],
        scale: float,
        drop: float,
        layer: int,
        shell: nn.Module,
    ) -> None:
        q, k, v, o = layers
        out = HeldMap(o)
        super().__init__(router, out, heads, q.out_features // heads, shell)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = HeldMap(q), k, v, out
        if norms[0] is not None:
            self.q_norm, self.k_norm = norms
        self.scale, self.drop, self.layer = scale, drop, layer
        self.pairs_of = heads // (k.out_features // self.width)  # heads that share a key

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        x, cache = hidden_states, others.pop("past_key_values", None) if cache is None else cache
        assert position_embeddings is not None
        k, v = self._keys(x, position_embeddings)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        pairs, weight = self.chosen(x)
        rows = x.reshape(-1, x.shape[-1]).index_select(0, pairs.token)
        q = linear_of(pairs.expert, self.experts)(rows, *self.q_proj.reads(self.experts))
        q = self._normed("q_norm", q.view(len(rows), self.each, self.width))
        q = rotated(q, *(_of_pairs(t, len(x), pairs.token) for t in position_embeddings))
        sees = self._sees(x, k, attention_mask)  # (B, T, keys)
        mask = pairs.pad(sees.reshape(-1, sees.shape[-1])[pairs.token], _all(sees))
        k, v = (t.to(q.dtype)[pairs.sequence[:, None], self._shared(pairs.owner)] for t in (k, v))
        drop = self.drop if self.training else 0.0
        asked = pairs.pad(q).transpose(1, 2)  # (S, g, n, w)
        if mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        seen = F.scaled_dot_product_attention(
            asked, k, v, attn_mask=mask[:, None], dropout_p=drop, scale=self.scale
        )
        seen = pairs.unpad(seen.transpose(1, 2)).flatten(1)
        return self.summed(x, pairs, weight, seen), None

    def _normed(self, name: str, x: Tensor) -> Tensor:
        norm = self._modules.get(name)
        return x if norm is None else norm(x)

    def _keys(self, x: Tensor, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, (B, heads of keys, T, w) both."""
        shape = (*x.shape[:2], -1, self.width)
        k, v = self.k_proj(x).view(shape), self.v_proj(x).view(shape)
        cos, sin = (t[:, :, None] for t in positions)
        k = rotated(self._normed("k_norm", k), cos, sin)
        return k.transpose(1, 2), v.transpose(1, 2)

    def _shared(self, owner: Tensor) -> Tensor:
        """Return the heads of keys that each expert's heads read.  (S,) -> (S, g)."""
        head = owner[:, None] * self.each + torch.arange(self.each, device=owner.device)
        return torch.div(head, self.pairs_of, rounding_mode="floor")

    def _sees(self, x: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Which keys each token sees, or what is added to its scores.  Returns (B, T, keys)."""
        (b, t), keys = x.shape[:2], k.shape[2]
        if mask is None:
            at = torch.arange(t, device=x.device)[:, None] + keys - t
            return (torch.arange(keys, device=x.device) <= at).expand(b, t, keys)
        if mask.dim() != 4 or mask.shape[1] != 1:
            got = f"a mask of shape {tuple(mask.shape)}"
            fix = "Load the model with attn_implementation='sdpa' or 'eager'."
            raise ConfigError("attention of a union", got=got, want="(B, 1, T, keys)", fix=fix)
        return mask[:, 0, :, :keys].expand(b, t, keys)

    def naive(self, x: Tensor, routing: Routing, positions: tuple[Tensor, Tensor]) -> Tensor:
        """Return the twin: every head on every token, what was not chosen times 0."""
        k, v = (t.repeat_interleave(self.pairs_of, 1) for t in self._keys(x, positions))
        q = F.linear(x, self.q_proj.weight, self.q_proj.bias)
        q = self._normed("q_norm", q.view(*x.shape[:2], self.heads, self.width))
        q = rotated(q, *(t[:, :, None] for t in positions)).transpose(1, 2)
        shares = (q @ k.mT * self.scale).masked_fill(~self._sees(x, k, None)[:, None], -torch.inf)
        seen = (shares.softmax(-1) @ v).transpose(1, 2)  # (B, T, H, w)
        gates = routing.dense().view(*x.shape[:2], self.experts)
        seen = seen * gates.repeat_interleave(self.each, -1)[..., None]
        return F.linear(seen.flatten(2), self.o_proj.weight, self.o_proj.bias)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (-x_2, x_1) sin, x_1 and x_2 the halves of the last axis, as in Llama."""
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


def _of_pairs(positions: Tensor, batch: int, token: Tensor) -> Tensor:
    """(1 or B, T, w) -> (N, 1, w), of each pair's token."""
    return positions.expand(batch, -1, -1).reshape(-1, positions.shape[-1])[token][:, None]


def _all(sees: Tensor) -> float | bool:
    """What a place without a pair sees: everything, since a softmax over nothing is NaN."""
    return True if sees.dtype == torch.bool else 0.0
