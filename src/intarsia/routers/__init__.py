"""Which expert? A file per paper; every router maps x (T, ...) to a Routing, and nothing else."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
