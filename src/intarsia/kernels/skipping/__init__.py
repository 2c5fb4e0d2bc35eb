"""x W^T of dense weights at 4 bits without the columns of small inputs: definition and kernel."""

from .naive import columnwise as columnwise
from .naive import kept as kept
from .naive import rowwise as rowwise
from .naive import skipping as naive_skipping
from .native import bound as bound
from .native import check as check

__all__ = ["bound", "check", "columnwise", "kept", "naive_skipping", "rowwise"]
