"""One loop on accelerate, below hosts and models: it knows tasks and objectives, no method."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
