"""Pruned, packed and sparsely trained models."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
