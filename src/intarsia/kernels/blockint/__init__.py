"""x W^T of dense weights at 4 or 8 bits, 32 inputs with a scale each: definition and kernel."""

from .naive import BLOCK as BLOCK
from .naive import BUNDLE as BUNDLE
from .naive import blockint as naive_blockint
from .naive import bundled as bundled
from .naive import rounded as rounded
from .naive import unbundled as unbundled
from .native import blockint as blockint
from .native import bound as bound
from .native import check as check
from .native import runs as runs

__all__ = [
    "BLOCK",
    "BUNDLE",
    "blockint",
    "bound",
    "bundled",
    "check",
    "naive_blockint",
    "rounded",
    "runs",
    "unbundled",
]
