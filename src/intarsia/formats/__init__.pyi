from .bitmask import Bitmask as Bitmask
from .gaussian import Gaussian as Gaussian
