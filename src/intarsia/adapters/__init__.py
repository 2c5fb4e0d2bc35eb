"""Adapters: one file per published cell that is added to a layer."""

from ..core.exports import exports

_OLD = {"S2ft": "methods.S2ft", "S2ftCell": "methods.S2ftCell"}

__getattr__, __dir__, __all__ = exports(__name__, __file__, _OLD)
