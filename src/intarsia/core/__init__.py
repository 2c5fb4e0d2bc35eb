"""The nouns: Partition, Cell, Routing, Format; and what a method says of itself."""

from .exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
