"""Parameters that are a stack of matrices, one for each expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

FUSED = ("gate_up_proj", "up_proj", "down_proj")  # names of transformers' experts


@runtime_checkable
class NamesMatrices(Protocol):
    """A module that names its stacks of matrices."""

    matrices: Sequence[str]


def stacked_matrices(module: nn.Module) -> dict[str, bool]:
    """Return the parameters of a module that hold a matrix for each expert, (E, out, in).

    module: one that names them in `matrices`, or the fused experts of transformers; others have
      none.  -> name -> True if it is stored as (E, in, out).
    """
    turned = getattr(module, "is_transposed", None)
    fused = () if turned is None else FUSED
    names = module.matrices if isinstance(module, NamesMatrices) else fused
    parameters = module._parameters
    return {n: bool(turned) for n in names if (w := parameters.get(n)) is not None and w.dim() == 3}
