"""Where pictures and pretrained backbones come from, and how they become batches."""

from ..core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
