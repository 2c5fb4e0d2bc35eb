"""Scores of the weights of a linear map: by size, by inputs, by curvature, by gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import DataError
from .statistics import Statistics

DAMPINGS = 3  # tenfold each


def magnitude(weight: Tensor, statistics: Statistics | None = None) -> Tensor:
    """Return |W|, (out, in, ...).  Source: Han et al. (arXiv:1506.02626)."""
    return weight.detach().abs()


def wanda(weight: Tensor, statistics: Statistics) -> Tensor:
    """Return |W_ij| sqrt(mean x_j^2), x_j the input of column j.  (out, in) -> (out, in).

    statistics: the layer's inputs', with "square" collected. The paper has the norm of x_j over
      all tokens, which is the same but for one factor.
    Source: Wanda (arXiv:2306.11695), equation 1.
    """
    size = statistics.mean_square.sqrt().to(weight)
    return weight.detach().abs() * size.view(1, -1, *[1] * (weight.dim() - 2))


def obs(weight: Tensor, statistics: Statistics, damp: float = 0.01) -> Tensor:
    """Return the error that remains if one weight W_ij is set to 0: W_ij^2 / U_jj^2, (out, in).

    The other weights of row i in columns after j are then changed so as to reduce the error, those
    before j are not; so it depends on the order of the columns. weight: W (out, in); statistics:
      those of the layer's inputs, with "hessian" collected; U (in, in) is their `inverse_factor`
      (upper Cholesky factor of the inverse) with damping `damp`.
    Source: SparseGPT (arXiv:2301.00774), equation 5.  Raises: as `inverse_factor`.
    """
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

    moment: H, the second moments of the inputs, (d, d) -> U (d, d) float64; name: how an error
      names H.
    Columns of inputs that are always 0 have a 1 on the diagonal of H in place of 0. Where H is not
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
