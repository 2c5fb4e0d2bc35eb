"""Where does an expert live, and when does it move? Traces, devices, plans and their times."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
