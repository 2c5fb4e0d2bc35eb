"""Attention heads that each look back over a span of their own."""

from .core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
