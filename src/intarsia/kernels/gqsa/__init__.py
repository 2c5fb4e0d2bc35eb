"""Group-sparse int4: y = W x, of W the kept groups of 16 inputs, 4 bits a weight."""

from .naive import affine as affine
from .naive import codes_of as codes_of
from .naive import gqsa as naive_gqsa
from .naive import rounded as rounded
from .naive import spread as spread
from .native import BLOCKS as BLOCKS
from .native import bound as bound
from .native import gqsa as gqsa

__all__ = ["BLOCKS", "affine", "bound", "codes_of", "gqsa", "naive_gqsa", "rounded", "spread"]
