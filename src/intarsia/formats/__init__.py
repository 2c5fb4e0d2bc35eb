"""Stored how?"""

from .gaussian import Gaussian as Gaussian
