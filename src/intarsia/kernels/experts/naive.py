"""The naive definitions of the operations on experts, in torch's own operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .acts import ACTS


def mix_naive(x: Tensor, gates: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Compute a mixture of experts slowly: sum_e G_te expert_e(x_t) for each token t.  -> (T, out).

    x: (T, d); gates: G (T, E), each token's weight for each expert; experts: E functions (T, d) ->
      (T, out), all called with all tokens.
    """
    return torch.stack([gates[:, e, None] * f(x) for e, f in enumerate(experts)]).sum(0)


def mlps_naive(
    x: Tensor,
    token: Tensor,
    expert: Tensor,
    weight: Tensor,
    up: Tensor,
    gate: Tensor | None,
    down: Tensor,
    act: str,
) -> Tensor:
    """Compute sum_n weight_n MLP_e(n)(x_t) over the pairs n of each token t, expert by expert.

    The definition of `mixed_mlps`, which explains the arguments.  -> (T, out).
    """
    y = x.new_zeros(len(x), down.shape[1], dtype=torch.promote_types(x.dtype, weight.dtype))
    f = ACTS[act].forward
    for e in range(len(up)):
        pairs = (expert == e).nonzero()[:, 0]
        rows = x[token[pairs]]
        z = rows @ up[e].t()
        hidden = f(z) if gate is None else f(rows @ gate[e].t()) * z
        outputs = (hidden @ down[e].t()) * weight[pairs, None]
        y = y.index_add(0, token[pairs], outputs.to(y.dtype))
    return y
