"""How much does each weight matter? What layers saw, in one pass over calibration batches."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
