"""Between processes? Rows that are exchanged, files written together, shared-out weights."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
