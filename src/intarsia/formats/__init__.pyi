from .bitmask import Bitmask as Bitmask
from .columns import Columns as Columns
from .gaussian import Gaussian as Gaussian
