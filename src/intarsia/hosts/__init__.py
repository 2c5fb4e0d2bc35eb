"""Model surgery: where cells go in a host model, how they get there, and how they come out."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
