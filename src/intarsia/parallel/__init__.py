"""Across devices? Experts on several processes, and plans carried out by them."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
