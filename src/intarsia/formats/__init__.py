"""Formats: how the numbers of a weight are stored, and multiplied as they are stored."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
