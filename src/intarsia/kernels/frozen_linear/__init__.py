"""A linear map with a weight that stays: x W^T + b, and the gradient of x alone."""

from .naive import frozen_linear as naive_frozen_linear
from .packed import Packed as Packed
from .packed import packs as packs

__all__ = ["Packed", "naive_frozen_linear", "packs"]
