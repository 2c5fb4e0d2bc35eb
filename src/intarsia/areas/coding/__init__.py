"""Probabilistic sparse coding: which causes are on in a sample, and with what probability."""

from ...core.exports import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
