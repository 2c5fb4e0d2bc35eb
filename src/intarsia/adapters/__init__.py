"""Adapters: one file per published cell that is added to a layer."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
