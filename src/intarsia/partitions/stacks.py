"""A stack of weights rounded at once, later columns making up for errors: GPTQ for experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.errors import DataError, ShapeError
from ..scores import Statistics, inverse_factor
from .compensate import STRIP

Code = Callable[[Tensor], Tensor]  # a column of every weight (E, out) -> what can be stored


def compensate_stack(
    weights: Tensor,
    statistics: Sequence[Statistics | None],
    code: Code,
    *,
    damp: float = 0.1,
    block: int = 128,
) -> tuple[Tensor, list[str]]:
    """Round the weights of E experts column by column; later columns make up for earlier errors.

    weights: (E, out, in); statistics: second moments of each expert's inputs, None = it had none;
      code: rounds a column of all experts, (E, out), to what can be stored; damp: added to the
      moments' diagonal, see `inverse_factor`; block: columns between two updates of all later ones.
      Returns the new weights (E, out, in), and for each expert "" or the reason why its errors were
      not made up for: no token reached it, or its moments are not positive definite.
    The error of a column j, e = (w_j - w^_j) / U_jj, is subtracted from those behind it, W_k -= e
    U_jk, with w^_j the column as it is stored, and U the matrix that `inverse_factor` returns.

    Raises: ShapeError for statistics of another number or width.
    Source: QMoE (arXiv:2310.16795), section 3.2 (batching is a part of it); GPTQ
      (arXiv:2210.17323), algorithm 1.
    """
    experts, _, width = weights.shape
    collected = [s for s in statistics if s is not None]
    if len(statistics) != experts or any(s.count and s.width != width for s in collected):
        got = f"{len(statistics)} of widths {sorted({s.width or 0 for s in collected})}"
        fix = "Give what each expert's inputs were."
        raise ShapeError("statistics", got=got, want=f"{experts} of {width}", fix=fix)
    w = weights.detach().float().transpose(1, 2).contiguous()  # (E, in, out)
    factor = torch.eye(width).repeat(experts, 1, 1)  # the identity makes up for nothing
    reasons = [""] * experts
    for e, stats in enumerate(statistics):
        if stats is None or not stats.count:
            reasons[e] = "no row reached it"
            continue
        try:
            moment = stats.second_moment
            factor[e] = inverse_factor(moment, damp, f"moments of expert {e}").float()
            w[e, moment.diagonal() == 0] = 0  # inputs that are always 0
        except DataError as error:
            reasons[e] = str(error)
    for start in range(0, width, block):
        stop = min(start + block, width)
        errors = torch.zeros_like(w[:, start:stop])
        for first in range(start, stop, STRIP):
            last = min(first + STRIP, stop)
            for j in range(first, last):
                # round column j of all experts, and take its errors off the rest of the strip
                stored = code(w[:, j])
                error = (w[:, j] - stored) / factor[:, j, j, None]
                errors[:, j - start] = error
                rest = factor[:, j, j + 1 : last, None]
                w[:, j + 1 : last].baddbmm_(rest, error[:, None], alpha=-1)
                w[:, j] = stored
            # off the rest of the block once a strip, and off later blocks once a block
            part = factor[:, first:last, last:stop].transpose(1, 2)
            w[:, last:stop].baddbmm_(part, errors[:, first - start : last - start], alpha=-1)
        w[:, stop:].baddbmm_(factor[:, start:stop, stop:].transpose(1, 2), errors, alpha=-1)
    return w.transpose(1, 2).contiguous(), reasons
