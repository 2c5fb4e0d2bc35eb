"""The blend of several classifiers: the weighted mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def blended(
    logits: Sequence[Tensor],
    weights: Sequence[float],
    temperatures: Sequence[float],
    several_labels: bool = False,
) -> Tensor:
    """Compute log p for p = sum_k w_k softmax(z_k / T_k), the blend of several members' answers.

    logits: z_k, (n, classes) of each member on the same samples; weights: w_k, above 0, their sum
    1; temperatures: T_k. several_labels: p = sum_k w_k sigmoid(z_k / T_k) of each label alone,
    and log p / (1 - p) is returned. A softmax, or sigmoid, of the result is p.
    """
    tempered = torch.stack([z.float() / t for z, t in zip(logits, temperatures, strict=True)])
    # (members, 1, 1) next to (members, n, classes)
    share = torch.tensor(weights, device=tempered.device).log()[:, None, None]
    if several_labels:
        there = (share + F.logsigmoid(tempered)).logsumexp(0)
        return there - (share + F.logsigmoid(-tempered)).logsumexp(0)
    return (share + tempered.log_softmax(-1)).logsumexp(0)
