"""Scores of the weights of a linear map: by size, by inputs, by curvature, by gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import DataError
from .statistics import Statistics

DAMPINGS = 3  # tenfold each


def magnitude(weight: Tensor, statistics: Statistics | None = None) -> Tensor:
    """Return |W|, of the weight's shape (out, in, ...).

    statistics: unused; other scores need them.
    Source: Han et al. (arXiv:1506.02626).
    """
    return weight.detach().abs()


def wanda(weight: Tensor, statistics: Statistics | Tensor) -> Tensor:
    """Return |W_ij| sqrt(mean x_j^2), the size of a weight times its input's size, (out, in).

    weight: W (out, in, ...); x_j: the input of column j; statistics: of the layer's inputs, with
      "square" collected, or these inputs (N, in). The paper has the norm of x_j over all tokens,
      which is the same but for one factor.
    Source: Wanda (arXiv:2306.11695), equation 1.
    """
    # the rows themselves, as in a notebook, are summed first
    if isinstance(statistics, Tensor):
        statistics = Statistics.of(statistics, needs=("square",))
    # a number for each input, for all outputs and kernel places
    size = statistics.mean_square.sqrt().to(weight)
    return weight.detach().abs() * size.view(1, -1, *[1] * (weight.dim() - 2))


def obs(weight: Tensor, statistics: Statistics | Tensor, damp: float = 0.01) -> Tensor:
    """Return the error that remains if a weight W_ij is set to 0 and later ones make up for it.

    It is W_ij^2 / U_jj^2, (out, in). Only weights of row i in columns after j are changed to make
    up for the error; so it depends on the order of the columns. weight: W (out, in); statistics: of
    the layer's inputs, with "hessian" collected, or these inputs (N, in); U (in, in) is their
    `inverse_factor` (upper Cholesky factor of the inverse) with damping `damp`.
    Raises: DataError as `inverse_factor`.
    Source: SparseGPT (arXiv:2301.00774), equation 5.
    """
    if isinstance(statistics, Tensor):
        statistics = Statistics.of(statistics, needs=("hessian",))
    # U_jj^2 is entry (j, j) of the inverse of H without the rows and columns before j
    factor = inverse_factor(statistics.second_moment, damp).to(weight)
    return weight.detach().square() / factor.diagonal().square()


def gradient(weight: Tensor, grad: Tensor) -> Tensor:
    """Return |g|: the weight that lowers the loss most if it grows (RigL, arXiv:1911.11134)."""
    return grad.detach().abs()


def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """Return |W g|, to first order the loss's change without the weight (SNIP, 1810.02340)."""
    return (weight.detach() * grad.detach()).abs()


def inverse_factor(moment: Tensor, damp: float = 0.01, name: str = "moments of inputs") -> Tensor:
    """Return the upper triangular U with U^T U = (H + damp mean(diag H) I)^-1.

    moment: H (d, d), the second moments of the inputs; damp: share of the mean diagonal that is
      added; name: how an error names H. Returns U (d, d) float64.
    Columns of inputs that are always 0 have a 1 on the diagonal of H instead of 0. Where H is not
    positive definite the damping is made ten times larger, twice at most.
    Raises: DataError for an H that is not finite, or not positive definite after that.
    """
    h = moment.detach().double().cpu().clone()
    if not bool((finite := torch.isfinite(h).all(0)).all()):
        got = f"{int((~finite).sum())} columns not finite"
        fix = "Look at the calibration rows, and at the blocks before: something has overflowed."
        raise DataError(name, got=got, want="finite numbers", fix=fix)
    diagonal = h.diagonal()  # a view
    diagonal[diagonal == 0] = 1
    eye = diagonal.mean().clone() * torch.eye(len(h), dtype=h.dtype)
    for power in range(DAMPINGS):
        # H^-1 by Cholesky, then the factor of H^-1: both fail where H is not positive definite
        lower, failed = torch.linalg.cholesky_ex(h + damp * 10**power * eye)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
    raise DataError(
        name,
        got=f"no positive definite matrix after dampings up to {damp * 10 ** (DAMPINGS - 1)}",
        want="inputs that span their channels",
        fix="Give more calibration rows, or a larger damp.",
    )
