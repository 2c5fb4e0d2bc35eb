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


class CutLinear(nn.Module):
    """The weights of a linear map that is cut among experts; not a layer on its own."""

    def __init__(self, layer: nn.Linear) -> None:
        """Register the weight and bias of a linear map, without a copy."""
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def layer(self) -> nn.Linear:
        """Return the plain linear map, which holds these very parameters."""
        bias = None if self.bias is None else self.bias.detach()
        linear = plain_linear(self.weight.detach(), bias)
        linear.weight, linear.bias = self.weight, self.bias
        return linear

    def reads(self, experts: int) -> tuple[Tensor, Tensor | None]:
        """Return the weight cut along its outputs, (E, n, d), and the bias, (E, n) or None.

        experts: E; the weight is (E n, d), n outputs for each expert.
        """
        weight = self.weight.view(experts, -1, self.weight.shape[1])
        return weight, None if self.bias is None else self.bias.view(experts, -1)

    def writes(self, experts: int) -> Tensor:
        """Return the weight cut along its inputs, (E, d, n).

        experts: E; the weight is (d, E n), n inputs for each expert.
        """
        return self.weight.view(len(self.weight), experts, -1).transpose(0, 1)


class SharedBias(nn.Module):
    """The bias of a last layer, which is added once, whatever experts a token has."""

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.bias


class UnionMlp(Mixture):
    """y_t = b + sum_e G_te W2_e act(W1_e x_t + b1_e), a `Mixture`; its gate can learn from sizes.

    shell: the MLP's module without its weights, for `fold`.
    """

    def __init__(
        self,
        experts: StackedExperts,
        router: UnionRouter,
        bias: nn.Parameter | None,
        shell: nn.Module,
    ) -> None:
        """Make a mixture of slices of a dense MLP; bias: of its last layer, added once a token."""
        super().__init__(experts, router, None if bias is None else SharedBias(bias))
        self.shell = (shell,)  # not a part: it has no weights

    def forward(self, x: Tensor) -> Tensor:
        """Compute the weighted sum of the experts' outputs, plus the MLP's bias.

        A gate that is taught gets the outputs too, and learns to predict their sizes.
        """
        router = cast(UnionRouter, self.router)
        if not router.teaches:
            return super().forward(x)
        rows, routing = x.reshape(-1, x.shape[-1]), self.routing(x)
        pairs = by_expert(routing.expert, self.experts.experts)
        # the gate learns from the sizes of the outputs, so that they are computed here, unweighted
        token, weight = routing.token[pairs.order], routing.weight[pairs.order]
        outputs = self.experts(rows.index_select(0, token), pairs.expert)
        router.teach(rows, token, pairs.expert, outputs)
        outputs = outputs * weight[:, None]
        y = outputs.new_zeros(len(rows), outputs.shape[1]).index_add(0, token, outputs)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.shared is None else y + self.shared(x)


class UnionAttention(nn.Module):
    """The common part of the two attentions: pairs, the sum over experts, the gate's loss.

    experts: E, each of heads / E heads in a row.
    """

    def __init__(
        self, router: UnionRouter, out: CutLinear, heads: int, width: int, shell: nn.Module
    ) -> None:
        super().__init__()
        self.router, self.heads, self.width = router, heads, width
        self.experts, self.each = router.experts, heads // router.experts
        # a tuple hides a module from torch, which would register it a second time
        self.shell = (shell,)
        self._out = (out,)  # under the host's own name among the modules

    def route(self, x: Tensor) -> tuple[Segments, Tensor]:
        """Choose experts for each token; return the pairs (token, expert), and their weights (N,).

        x: (B, T, d), the attention's input. The pairs are grouped by expert and sequence.
        """
        routing: Routing = self.router(x)
        tokens, length = routing.tokens, x.shape[1]
        pairs = Segments.of(routing.token, routing.expert, tokens, length)
        return pairs, routing.weight.to(x.dtype)[pairs.order]

    def summed(self, x: Tensor, pairs: Segments, weight: Tensor, attended: Tensor) -> Tensor:
        """Apply the output layer to the heads of all pairs, and add up the results by token.

        y_t = b_o + sum_e G_te W_o,e a_te, with W_o,e the columns of the output layer for the heads
        of expert e, b_o its bias, and G_te the weight of expert e for token t.
        x: (B, T, d), the attention's input; pairs, weight: N pairs and their weights, as returned
          by `route`; attended: a, (N, heads of an expert * width), what the heads of each pair's
          expert return for its token.  -> (B, T, d).
        """
        (out,) = self._out
        linear = linear_of(pairs.expert, self.experts)
        outputs = linear(attended, out.writes(self.experts), None)
        rows = x.reshape(-1, x.shape[-1])
        # The gate learns from the sizes of the outputs before they are weighted.
        if self.router.teaches:
            self.router.teach(rows, pairs.token, pairs.expert, outputs)
        y = outputs.new_zeros(len(rows), outputs.shape[1])
        # a gate with all weights 1 needs no product
        outputs = outputs * weight[:, None] if self.router.weighs else outputs
        y = y.index_add(0, pairs.token, outputs)
        y = y if out.bias is None else y + out.bias.to(y.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])


class SelectiveAttention(UnionAttention):
    """Attention of every head over the tokens that it takes alone.  (B, T, d) -> (B, T, d).

    A token that a head does not take is neither query nor key there. qkv, proj: the host's layers,
    of 3 H w and of d outputs; q_norm, k_norm: over the width w of a head; drop: on the shares while
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
        out = CutLinear(proj)
        super().__init__(router, out, heads, qkv.out_features // (3 * heads), shell)
        self.qkv, self.proj = CutLinear(qkv), out
        self.q_norm, self.k_norm = norms
        self.drop, self.proj_drop = drop, behind

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend, in each head, from and to those tokens alone that were routed to it.

        x: (B, T, d) -> (B, T, d); attn_mask, is_causal: must be None and False; a host passes them.
        Raises: ConfigError for a mask.
        """
        if attn_mask is not None or is_causal:
            got, fix = "a mask over pairs of tokens", "Call the model without one."
            raise ConfigError("attention of a union", got=got, want="none", fix=fix)
        pairs, weight = self.route(x)
        # project each pair's token by its expert's rows of W_q, W_k and W_v
        rows = x.reshape(-1, x.shape[-1]).index_select(0, pairs.token)
        z = linear_of(pairs.expert, self.experts)(rows, *self._query_key_value())  # (N, 3 g w)
        q, k, v = z.view(len(rows), 3, self.each, self.width).unbind(1)
        # each (sequence, expert) becomes one padded sequence of the tokens that the expert takes
        q, k, v = (pairs.pad(t).transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        drop = self.drop if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=pairs.keys(), dropout_p=drop)
        attended = pairs.unpad(attended.transpose(1, 2)).flatten(1)  # (N, g w)
        return self.proj_drop(self.summed(x, pairs, weight, attended))

    def _query_key_value(self) -> tuple[Tensor, Tensor | None]:
        """Return each expert's weight for queries, keys and values, and its bias or None."""
        n, d = self.each * self.width, self.qkv.weight.shape[1]
        weight = self.qkv.weight.view(3, self.experts, n, d).transpose(0, 1)
        bias = self.qkv.bias
        if bias is not None:
            bias = bias.view(3, self.experts, n).transpose(0, 1).reshape(self.experts, 3 * n)
        return weight.reshape(self.experts, 3 * n, d), bias

    def naive(self, x: Tensor, routing: Routing) -> Tensor:
        """Compute the same as `forward`, slowly: expert by expert, sequence by sequence."""
        gates = routing.dense().view(*x.shape[:2], self.experts)
        # a pair of weight 0 takes part in its expert's attention, too
        selected = torch.zeros_like(gates, dtype=torch.bool).view(-1, self.experts)
        selected[routing.token, routing.expert] = True
        selected = selected.view_as(gates)
        weight, bias = self._query_key_value()
        y = x.new_zeros(*x.shape[:2], len(self.proj.weight))
        if self.proj.bias is not None:
            y = y + self.proj.bias
        for b in range(len(x)):
            for e in range(self.experts):
                places = selected[b, :, e].nonzero()[:, 0]
                if not len(places):
                    continue
                z = F.linear(x[b, places], weight[e], None if bias is None else bias[e])
                # an expert's heads attend among its own tokens alone
                q, k, v = z.view(len(places), 3, self.each, self.width).permute(1, 2, 0, 3)
                shares = (self.q_norm(q) @ self.k_norm(k).mT * self.width**-0.5).softmax(-1)
                attended = (shares @ v).transpose(0, 1).flatten(1)
                output = attended @ self.proj.writes(self.experts)[e].t()
                output = output * gates[b, places, e, None]
                y = y.index_put((torch.tensor(b), places), output, accumulate=True)
        return y


class SelectiveQueries(UnionAttention):
    """A decoder's attention with heads that have queries for only the tokens they take.  (B, T, d).

    Keys and values come from all tokens, so that a cache works as it did, and several heads may
    share them. q, k, v, o: the host's layers; norms: for queries and keys; layer: its number in the
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
        out = CutLinear(o)
        super().__init__(router, out, heads, q.out_features // heads, shell)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = CutLinear(q), k, v, out
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
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend, in each head, from the tokens that were routed to it to all tokens.

        hidden_states: (B, T, d); position_embeddings: (cos, sin) of the rotary positions;
          attention_mask: (B, 1, T, keys), None = causal; cache: of keys and values, also as
          past_key_values; kwargs: unused; hosts pass more.  -> ((B, T, d), None).
        """
        x, cache = hidden_states, kwargs.pop("past_key_values", None) if cache is None else cache
        assert position_embeddings is not None
        k, v = self._keys(x, position_embeddings)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        pairs, weight = self.route(x)
        rows = x.reshape(-1, x.shape[-1]).index_select(0, pairs.token)
        # queries of the pairs alone, with the rotary positions of their tokens
        q = linear_of(pairs.expert, self.experts)(rows, *self.q_proj.reads(self.experts))
        q = self._normed("q_norm", q.view(len(rows), self.each, self.width))
        q = rotated(q, *(_pair_positions(t, len(x), pairs.token) for t in position_embeddings))
        token_mask = self._key_mask(x, k, attention_mask)  # (B, T, keys)
        pair_mask = token_mask.reshape(-1, token_mask.shape[-1])[pairs.token]
        mask = pairs.pad(pair_mask, _visible(token_mask))
        k, v = (
            t.to(q.dtype)[pairs.sequence[:, None], self._key_heads(pairs.owner)] for t in (k, v)
        )
        drop = self.drop if self.training else 0.0
        queries = pairs.pad(q).transpose(1, 2)  # (S, g, n, w)
        if mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        attended = F.scaled_dot_product_attention(
            queries, k, v, attn_mask=mask[:, None], dropout_p=drop, scale=self.scale
        )
        attended = pairs.unpad(attended.transpose(1, 2)).flatten(1)
        return self.summed(x, pairs, weight, attended), None

    def _normed(self, name: str, x: Tensor) -> Tensor:
        """Apply the norm of this name to x, if the attention has one."""
        norm = self._modules.get(name)
        return x if norm is None else norm(x)

    def _keys(self, x: Tensor, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute keys and values of all tokens, (B, heads of keys, T, w) both."""
        shape = (*x.shape[:2], -1, self.width)
        k, v = self.k_proj(x).view(shape), self.v_proj(x).view(shape)
        # (1 or B, T, w) both
        cos, sin = (t[:, :, None] for t in positions)
        k = rotated(self._normed("k_norm", k), cos, sin)
        return k.transpose(1, 2), v.transpose(1, 2)

    def _key_heads(self, owner: Tensor) -> Tensor:
        """Return which key head each query head of an expert uses, by number, (S, g)."""
        # owner: (S,), the expert of each padded sequence; an expert has g query heads
        head = owner[:, None] * self.each + torch.arange(self.each, device=owner.device)
        return torch.div(head, self.pairs_of, rounding_mode="floor")

    def _key_mask(self, x: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Return which keys each token may see, (B, T, keys): bool, or a float mask."""
        # x: (B, T, d), queries' tokens; k: (B, heads, keys, w); mask: the host's, None = causal
        (b, t), keys = x.shape[:2], k.shape[2]
        if mask is None:
            # Token t of T may see the keys of the cache and those up to its own.
            last_key = torch.arange(t, device=x.device)[:, None] + keys - t
            return (torch.arange(keys, device=x.device) <= last_key).expand(b, t, keys)
        if mask.dim() != 4 or mask.shape[1] != 1:
            got = f"a mask of shape {tuple(mask.shape)}"
            fix = "Load the model with attn_implementation='sdpa' or 'eager'."
            raise ConfigError("attention of a union", got=got, want="(B, 1, T, keys)", fix=fix)
        return mask[:, 0, :, :keys].expand(b, t, keys)

    def naive(self, x: Tensor, routing: Routing, positions: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the same as `forward`, slowly: all heads on all tokens, times 0 where not routed.

        x: (B, T, d) -> (B, T, d); routing: the experts of the B T tokens; positions: (cos, sin) of
          the rotary positions.
        """
        k, v = (t.repeat_interleave(self.pairs_of, 1) for t in self._keys(x, positions))
        q = F.linear(x, self.q_proj.weight, self.q_proj.bias)
        q = self._normed("q_norm", q.view(*x.shape[:2], self.heads, self.width))
        q = rotated(q, *(t[:, :, None] for t in positions)).transpose(1, 2)
        shares = (q @ k.mT * self.scale).masked_fill(
            ~self._key_mask(x, k, None)[:, None], -torch.inf
        )
        attended = (shares.softmax(-1) @ v).transpose(1, 2)  # (B, T, H, w)
        gates = routing.dense().view(*x.shape[:2], self.experts)
        # An expert's weight multiplies all of its heads.
        attended = attended * gates.repeat_interleave(self.each, -1)[..., None]
        return F.linear(attended.flatten(2), self.o_proj.weight, self.o_proj.bias)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate by position: x cos + (-x_2, x_1) sin, x_1 and x_2 the halves of x, as in Llama.

    x: (..., w); cos, sin: of the rotary positions, broadcast against x.
    """
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _pair_positions(positions: Tensor, batch: int, token: Tensor) -> Tensor:
    """Return the rotary cos or sin, (1 or B, T, w), of each pair's token, (N, 1, w)."""
    return positions.expand(batch, -1, -1).reshape(-1, positions.shape[-1])[token][:, None]


def _visible(mask: Tensor) -> float | bool:
    """Return the mask value of padding, which sees every key: a softmax over nothing is NaN."""
    return True if mask.dtype == torch.bool else 0.0
