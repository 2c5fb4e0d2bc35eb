"""Mixtures: layers that combine experts by the routing of a router."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
